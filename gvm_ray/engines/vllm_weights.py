"""Weights that a learner sends into vLLM's workers by vLLM's own transfer, with a checksum of what came."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from gvm_ray.exceptions import SystemFailure
from gvm_ray.functional.checksum import TensorChecksum

_CHECKSUM = "_gvm_ray_checksum"  # attribute of a worker while an update is under way


class VLLMWeightReceiver:
    """The phases of a transfer in all workers of one vLLM engine.

    Args:
        llm_engine: vLLM's own, made with a weight transfer config.
        names: of the tensors that have to come; none = unknown.
    """

    def __init__(self, llm_engine: Any, *, names: frozenset[str]) -> None:
        self._llm_engine = llm_engine
        self._names = names
        self._announced: set[str] = set()

    def join_world(self, init_info: Mapping[str, Any]) -> None:
        """Connect the workers to the sender, in place of an earlier connection."""
        self._llm_engine.collective_rpc("shutdown_weight_transfer_engine")
        self._llm_engine.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": dict(init_info)})

    def start_update(self) -> None:
        """Make the workers ready for checkpoint tensors."""
        self._announced.clear()
        self._llm_engine.collective_rpc("start_weight_update")
        self._llm_engine.collective_rpc(_count_tensors)

    def receive_weights(self, update_info: Mapping[str, Any]) -> None:
        """Take what is announced here, in every worker."""
        self._announced.update(update_info["names"])
        self._llm_engine.collective_rpc("update_weights", kwargs={"update_info": dict(update_info)})

    def finish_update(self, policy_version: int) -> Sequence[str]:
        """Put the weights in place; the checksum of what each worker got.

        Raises:
            SystemFailure: a weight did not come; vLLM would silently keep the old one.
        """
        checksums = self._llm_engine.collective_rpc(_checksum)
        self._llm_engine.collective_rpc("finish_weight_update")
        missing = sorted(self._names - self._announced)
        if missing:
            raise SystemFailure(f"weights version {policy_version} lack {len(missing)} weights: {missing[:3]} ...")
        return checksums


# --- in a worker's process --------------------------------------------------------------------------------------------
def has_output_head(worker: Any) -> bool:
    """Whether the worker's model has a module for it; some use their input embedding in its place."""
    return hasattr(worker.get_model(), "lm_head")


def _count_tensors(worker: Any) -> None:
    """Add every tensor that the transfer loads from here on to a checksum."""
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
    """A model for the time of an update: what is loaded into it is counted."""

    def __init__(self, model: Any, checksum: TensorChecksum) -> None:
        self._model = model
        self._checksum = checksum

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Any:
        counted = self._checksum.following(weights)
        if not hasattr(self._model, "lm_head"):  # the sender gives a tied head its own name for those that have one
            counted = (pair for pair in counted if pair[0] != "lm_head.weight")
        return self._model.load_weights(counted)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
