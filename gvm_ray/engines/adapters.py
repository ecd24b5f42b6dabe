"""LoRA adapters in engines: which engine can take them, whether all arrived, and engines that merge them themselves."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from gvm_ray.config.engine import EngineConfig
from gvm_ray.exceptions import SystemFailure
from gvm_ray.types import AdapterSpec

MAX_VLLM_RANK = 512
# Dense models whose vLLM class takes adapters on all linear layers of the blocks.
VLLM_ARCHITECTURES = frozenset(
    {
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
        "GemmaForCausalLM",
        "GraniteForCausalLM",
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Olmo2ForCausalLM",
        "Phi3ForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
    }
)


def adapter_obstacle(kind: str, config: EngineConfig, adapters: AdapterSpec) -> str | None:
    """The reason why an engine of this kind, as `resolve_engine` names it, can't take these adapters; None if it can.

    Imports no engine: a model that vLLM's own code refuses is reported by the engine when it starts.
    """
    if kind == "custom":
        return "a custom engine takes whole weights only"
    if kind == "vllm" and adapters.rank > MAX_VLLM_RANK:
        return f"vLLM takes adapters up to rank {MAX_VLLM_RANK}, and learner.lora.rank={adapters.rank}"
    if kind == "vllm" and config.gpus_per_generator and config.dtype == "float32":
        return "vLLM's adapter kernels for GPUs don't compute in engine.dtype='float32'"
    return None


def adapter_drawback(kind: str, config: EngineConfig, *, architectures: Sequence[str]) -> str | None:
    """The reason why whole weights suit an engine better that might take adapters; None if there is none."""
    if kind == "vllm" and not config.gpus_per_generator:
        return "on a CPU vLLM samples more slowly with adapters"
    if kind == "vllm" and (changing := sorted(config.vllm.given.keys() & {*config.vllm.changing})):
        return f"vLLM's adapters weren't tried with [engine.vllm] {', '.join(changing)}"
    if kind == "vllm" and not VLLM_ARCHITECTURES.issuperset(architectures):
        return f"it isn't known that vLLM takes adapters of {', '.join(architectures) or 'this model'}"
    return None


def whole_adapters(
    adapters: AdapterSpec, tensors: Iterable[tuple[str, Tensor]], *, policy_version: int
) -> dict[str, Tensor]:
    """The tensors by name.

    Raises:
        SystemFailure: one is missing, unknown or of another shape.
    """
    found = dict(tensors)
    shapes, expected = {name: tuple(tensor.shape) for name, tensor in found.items()}, dict(adapters.shapes)
    if wrong := sorted(name for name in {*shapes, *expected} if shapes.get(name) != expected.get(name)):
        name = wrong[0]
        raise SystemFailure(
            f"adapters version {policy_version} have {len(wrong)} tensors that are missing, unknown or of another "
            f"shape, among them {name!r}: {shapes.get(name)} instead of {expected.get(name)}"
        )
    return found


class MergingAdapters:
    """Adapters merged into the layers of a transformers model, each version into the base as it was loaded.

    Sampling costs the same as without adapters. Copies of the base's layers stay in main memory.
    """

    def __init__(self, model: Any, adapters: AdapterSpec) -> None:
        self._adapters = adapters
        self._weights: dict[str, Tensor] = {name: model.get_submodule(name).weight for name in adapters.layers}
        self._base = {name: weight.detach().cpu().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def load(self, policy_version: int, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Replace the last version's adapters by these.

        Raises:
            SystemFailure: a tensor is missing, unknown or of another shape.
        """
        found = whole_adapters(self._adapters, tensors, policy_version=policy_version)
        for name, weight in self._weights.items():
            base, down, up = (
                tensor.to(device=weight.device, dtype=torch.float32)
                for tensor in (self._base[name], found[f"{name}.lora_A.weight"], found[f"{name}.lora_B.weight"])
            )
            weight.copy_(torch.addmm(base, up, down, alpha=self._adapters.scale))
