"""New weights in a vLLM engine: sent by the learners and counted in its workers, or LoRA adapters in one slot."""

import json
from collections.abc import Iterable, Mapping, Sequence
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
from gvm_ray.maths.checksum import TensorChecksum
from gvm_ray.types import AdapterSpec

_CHECKSUM = "_gvm_ray_checksum"  # attribute of a worker during an update
_SLOT = 1  # of adapters: vLLM's ids begin at 1


class VLLMWeightReceiver:
    """Runs the phases of a weight transfer in all workers of one vLLM engine.

    Args:
        llm_engine: vLLM's engine, created with a weight transfer config.
        names: names of the tensors that have to arrive; empty if unknown.
    """

    def __init__(self, llm_engine: Any, *, names: frozenset[str]) -> None:
        self._llm_engine = llm_engine
        self._names = names
        self._announced: set[str] = set()

    def join_world(self, init_info: Mapping[str, Any]) -> None:
        """Connect the workers to the sender, replacing an earlier connection."""
        self._llm_engine.collective_rpc("shutdown_weight_transfer_engine")
        self._llm_engine.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": dict(init_info)})

    def start_update(self) -> None:
        """Prepare the workers for checkpoint tensors."""
        self._announced.clear()
        self._llm_engine.collective_rpc("start_weight_update")
        self._llm_engine.collective_rpc(_count_tensors)

    def receive_weights(self, update_info: Mapping[str, Any]) -> None:
        """Receive the announced weights in every worker."""
        self._announced.update(update_info["names"])
        self._llm_engine.collective_rpc("update_weights", kwargs={"update_info": dict(update_info)})

    def finish_update(self, policy_version: int) -> Sequence[str]:
        """Put the weights in place, and return the checksum of each worker's received weights.

        Raises:
            SystemFailure: a weight did not arrive; vLLM would silently keep the old one.
        """
        checksums = self._llm_engine.collective_rpc(_checksum)
        self._llm_engine.collective_rpc("finish_weight_update")
        missing = sorted(self._names - self._announced)
        if missing:
            raise SystemFailure(f"weights version {policy_version} lack {len(missing)} weights: {missing[:3]} ...")
        return checksums


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
def _count_tensors(worker: Any) -> None:
    """Start a checksum of every tensor that the transfer loads from now on."""
    transfer = worker.weight_transfer_engine
    checksum = TensorChecksum()
    setattr(worker, _CHECKSUM, checksum)
    transfer.set_weight_update_target(_CountingModel(transfer.model, checksum), transfer.model_config)


def _checksum(worker: Any) -> str:
    worker.weight_transfer_engine.reset_weight_update_target()
    checksum = getattr(worker, _CHECKSUM)
    delattr(worker, _CHECKSUM)
    return checksum.hexdigest()


class _CountingModel:
    """A model during an update: every tensor loaded into it is added to the checksum."""

    def __init__(self, model: Any, checksum: TensorChecksum) -> None:
        self._model = model
        self._checksum = checksum

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Any:
        counted = self._checksum.following(weights)
        if not hasattr(self._model, "lm_head"):  # the sender also sends a tied head by its own name, for models with it
            counted = (pair for pair in counted if pair[0] != "lm_head.weight")
        return self._model.load_weights(counted)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _left_out(worker: Any) -> list[str]:
    """Layers of the present adapters that the worker's model has no place for; vLLM passes over them in silence."""
    manager = worker.get_model().lora_manager
    return sorted(manager.get_adapter(_SLOT).loras.keys() - manager.modules.keys())
