"""LoRA (Hu et al. 2021, arXiv 2106.09685): small trained matrices beside the frozen linear layers of a causal LM.

A layer W gets A [r, in] and B [out, r], and computes W x + s B A x, with s = alpha / r (alpha / sqrt(r) if
rank-stabilized, arXiv 2312.03732). B starts at 0, so the first policy is the base model. peft makes the layers. The
learners export merged weights W + s B A, under the base model's own names, and publish these or the adapters alone.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gvm_ray.config.model import LoRAConfig
from gvm_ray.exceptions import ConfigError
from gvm_ray.types import AdapterSpec

_ADAPTER = "default"  # peft's name for a model's first adapter
_BASE_LAYER = ".base_layer."  # part of the names of parameters that peft wraps


def check_target_modules(causal_lm: Any, lora: LoRAConfig) -> None:
    """Refuse `target_modules` that aren't linear layers of the model's blocks; the model may be on the meta device.

    Raises:
        ConfigError: some aren't; the message lists the linear layers.
    """
    linear = {
        name.rpartition(".")[2]
        for name, module in causal_lm.model.layers.named_modules()
        if isinstance(module, nn.Linear)
    }
    unknown = [] if lora.target_modules == "all-linear" else sorted({*lora.target_modules} - linear)
    if unknown:
        raise ConfigError(
            f"learner.lora.target_modules names {', '.join(map(repr, unknown))}, but the linear layers of this model's "
            f"blocks are {', '.join(map(repr, sorted(linear)))}; write some of these, or 'all-linear'"
        )


def add_adapters(causal_lm: Any, lora: LoRAConfig, *, seed: int) -> None:
    """Put an adapter beside each target layer, in place, and leave only the adapters trainable.

    A depends on `seed` alone, so it is the same on every rank. The global random state is unchanged.

    Raises:
        ConfigError: `target_modules` names a layer that doesn't exist.
    """
    from peft import LoraConfig, inject_adapter_in_model

    check_target_modules(causal_lm, lora)
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]  # peft only divides alpha by r
        use_rslora=lora.rank_stabilized,
        target_modules=targets,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, causal_lm, adapter_name=_ADAPTER)


def is_adapter(name: str) -> bool:
    """Whether the parameter with this name is an adapter's A or B."""
    return ".lora_A." in name or ".lora_B." in name


def adapter_spec(causal_lm: nn.Module, lora: LoRAConfig) -> AdapterSpec:
    """The adapters that `add_adapters` put beside the layers of an unsharded model, as engines get them."""
    return AdapterSpec(
        rank=lora.rank,
        scale=lora.alpha / (math.sqrt(lora.rank) if lora.rank_stabilized else lora.rank),
        shapes=tuple((name, tuple(tensor.shape)) for name, tensor in named_adapter_tensors(causal_lm)),
    )


def named_adapter_tensors(causal_lm: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(Name in an `AdapterSpec`, whole float32 tensor) of every A and B; gathers shards, so every rank must iterate."""
    for name, tensor in causal_lm.state_dict().items():
        if is_adapter(name):
            yield name.replace(f".{_ADAPTER}.weight", ".weight"), _whole(tensor)


def base_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that don't belong to an adapter, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if not is_adapter(name)}


def train_adapters(module: nn.Module, *, adapters: bool) -> None:
    """Make the adapters trainable and the base frozen, or the other way round."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(is_adapter(name) == adapters)


@contextmanager
def adapters_disabled(module: nn.Module) -> Iterator[None]:
    """Context in which forward passes use the base alone. Afterwards the adapters are trainable.

    Don't enter it between a forward pass that is trained on and its backward pass.
    """
    from peft.tuners.lora import LoraLayer

    layers = [layer for layer in module.modules() if isinstance(layer, LoraLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    train_adapters(module, adapters=True)  # peft just froze them, but FSDP2 notes in its first pass what is trainable
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def base_name(name: str) -> str:
    """The base model's name for a parameter that may have an adapter."""
    return name.replace(_BASE_LAYER, ".")


def merged_tensor(causal_lm: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """The whole tensor of a base parameter in its float32; if it has an adapter, a new tensor W + s B A.

    Gathers shards, so every rank must call.
    """
    layer_name, wrapped, parameter = name.rpartition(_BASE_LAYER)
    if not wrapped or parameter != "weight":
        return _whole(tensor)
    layer: Any = causal_lm.get_submodule(layer_name)
    down, up = (_whole(adapters[_ADAPTER].weight.detach()) for adapters in (layer.lora_A, layer.lora_B))
    return torch.addmm(_whole(tensor), up, down, alpha=layer.scaling[_ADAPTER])


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
