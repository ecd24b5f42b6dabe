"""LoRA (Hu et al. 2021, arXiv 2106.09685): small trained matrices beside the frozen linear layers of a causal LM.

A layer W gets A [r, in] and B [out, r], and computes W x + s B A x, with s = alpha / r (alpha / sqrt(r) where
rank-stabilized, arXiv 2312.03732). B starts at 0, so the first policy is the base model. peft makes the layers; what
leaves the learners are whole weights W + s B A under the base model's own names.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gvm_ray.config.model import LoRAConfig
from gvm_ray.exceptions import ConfigError

_ADAPTER = "default"  # peft's name for a model's first
_BASE_LAYER = ".base_layer."  # stands in the names of the parameters that peft wraps


def check_target_modules(causal_lm: Any, lora: LoRAConfig) -> None:
    """Refuse `target_modules` that aren't linear layers of the blocks; the model may be on the meta device.

    Raises:
        ConfigError: it names the ones there are.
    """
    linear = {
        name.rpartition(".")[2]
        for name, module in causal_lm.model.layers.named_modules()
        if isinstance(module, nn.Linear)
    }
    unknown = [] if lora.target_modules == "all-linear" else sorted({*lora.target_modules} - linear)
    if unknown:
        raise ConfigError(
            f"learner.lora.target_modules names {', '.join(map(repr, unknown))}, and the linear layers of this model's "
            f"blocks are {', '.join(map(repr, sorted(linear)))}; write some of these, or 'all-linear'"
        )


def add_adapters(causal_lm: Any, lora: LoRAConfig, *, seed: int) -> None:
    """Put an adapter beside each target layer, in place, and leave only the adapters trainable.

    A is drawn from `seed` alone, the same on every rank; the global random state is left as it was.

    Raises:
        ConfigError: `target_modules` names a layer that isn't there.
    """
    from peft import LoraConfig, inject_adapter_in_model

    check_target_modules(causal_lm, lora)
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]  # peft only divides it
        use_rslora=lora.rank_stabilized,
        target_modules=targets,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, causal_lm, adapter_name=_ADAPTER)


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is that of an adapter's A or B."""
    return ".lora_A." in name or ".lora_B." in name


def base_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that aren't an adapter's, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if not is_adapter(name)}


def train_adapters(module: nn.Module, *, adapters: bool) -> None:
    """Make the adapters trainable and the base frozen, or the other way round."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(is_adapter(name) == adapters)


@contextmanager
def adapters_disabled(module: nn.Module) -> Iterator[None]:
    """Inside, forward passes are those of the base; not between a trained forward pass and its backward pass.

    Afterwards the adapters are trainable.
    """
    from peft.tuners.lora import LoraLayer

    layers = [layer for layer in module.modules() if isinstance(layer, LoraLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    train_adapters(module, adapters=True)  # that froze them, and FSDP2 looks once, at its first pass, what is trained
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def base_name(name: str) -> str:
    """What the base model calls a parameter that may have an adapter."""
    return name.replace(_BASE_LAYER, ".")


def merged_tensor(causal_lm: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """The whole tensor of a parameter that isn't an adapter's: W + s B A where it has an adapter, on a new tensor.

    In the parameter's float32. Gathers shards, so every rank must call.
    """
    layer_name, wrapped, parameter = name.rpartition(_BASE_LAYER)
    if not wrapped or parameter != "weight":
        return _whole(tensor)
    layer: Any = causal_lm.get_submodule(layer_name)
    down, up = (_whole(adapters[_ADAPTER].weight.detach()) for adapters in (layer.lora_A, layer.lora_B))
    return torch.addmm(_whole(tensor), up, down, alpha=layer.scaling[_ADAPTER])


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
