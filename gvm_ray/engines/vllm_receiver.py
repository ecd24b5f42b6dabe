"""Weights that the learners send to a vLLM engine, received and counted in its workers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from gvm_ray.exceptions import SystemFailure
from gvm_ray.maths.checksum import TensorChecksum

_CHECKSUM = "_gvm_ray_checksum"  # attribute of a worker during an update


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
