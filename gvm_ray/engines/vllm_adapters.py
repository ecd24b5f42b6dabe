"""LoRA adapters in a vLLM engine: one slot, whose adapter every new version replaces."""

import json
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor
from vllm import EngineArgs
from vllm.config.lora import MaxLoRARanks
from vllm.lora.request import LoRARequest

from gvm_ray.engines.adapters import whole_adapters
from gvm_ray.exceptions import SystemFailure
from gvm_ray.types import AdapterSpec

_SLOT = 1  # vLLM's ids begin at 1


class VLLMAdapters:
    """The adapters of one engine, passed to its workers as a folder in peft's format.

    All versions have the same id, so samples under way continue with the new version, and the old one is gone. Names
    and paths being the same too, the caller must keep the prefix cache's versions apart.
    """

    def __init__(self, adapters: AdapterSpec) -> None:
        self._adapters = adapters
        self._folder = TemporaryDirectory(prefix="gvm-ray-adapters-")

    def enable(self, arguments: EngineArgs) -> None:
        """Set the engine's arguments for one adapter."""
        arguments.enable_lora = True
        arguments.max_lora_rank = min(rank for rank in get_args(MaxLoRARanks) if rank >= self._adapters.rank)
        arguments.max_loras = arguments.max_cpu_loras = 1

    @property
    def request(self) -> LoRARequest:
        """The adapters as requests name them."""
        return LoRARequest("policy", _SLOT, self._folder.name)

    def load_zeros(self, llm_engine: Any) -> None:
        """Fill the slot with adapters that change nothing.

        Raises:
            ValueError: vLLM can't take adapters of these layers.
        """
        self._replace(llm_engine, {name: torch.zeros(shape) for name, shape in self._adapters.shapes})
        left_out = sorted({name for names in llm_engine.collective_rpc(_left_out) for name in names})
        if left_out:
            raise ValueError(f"its model has no place for adapters of {', '.join(left_out)}")

    def load(self, llm_engine: Any, policy_version: int, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Replace the adapters by these.

        Raises:
            SystemFailure: a tensor is missing, unknown or of another shape, or vLLM kept another adapter.
        """
        self._replace(llm_engine, whole_adapters(self._adapters, tensors, policy_version=policy_version))
        if (present := llm_engine.list_loras()) != {_SLOT}:
            raise SystemFailure(f"after adapters version {policy_version} vLLM has the adapters {present}, not {_SLOT}")

    def close(self) -> None:
        """Remove the folder."""
        self._folder.cleanup()

    def _replace(self, llm_engine: Any, tensors: dict[str, Tensor]) -> None:
        folder = Path(self._folder.name)
        settings = {
            "peft_type": "LORA",
            "r": self._adapters.rank,
            "lora_alpha": self._adapters.scale * self._adapters.rank,
            "target_modules": sorted({name.rpartition(".")[2] for name in self._adapters.layers}),
        }
        (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
        named = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in tensors.items()}
        save_file(named, folder / "adapter_model.safetensors")
        llm_engine.add_lora(LoRARequest("policy", _SLOT, self._folder.name, load_inplace=True))


# --- in a worker's process --------------------------------------------------------------------------------------------
def _left_out(worker: Any) -> list[str]:
    """Layers of the present adapters that the worker's model has no place for; vLLM passes over them in silence."""
    manager = worker.get_model().lora_manager
    return sorted(manager.get_adapter(_SLOT).loras.keys() - manager.modules.keys())
