"""Settings of the weight transfer from learners to generators, and the choice of one that fits the run."""

from dataclasses import dataclass
from typing import Literal

from gvm_ray.settings import Count, Settings
from gvm_ray.types import WeightTransfer

GPULayout = Literal["none", "apart", "parts", "shared"]


class WeightSyncConfig(Settings):
    """The transfer of new weights to the generators. `auto` takes what fits the run's GPUs, and prints the choice."""

    # "object_store" copies weights through main memory and works everywhere. "nccl" broadcasts them between GPUs if
    # learners and generators have GPUs of their own; "ipc" hands them over inside a GPU that both share. These two need
    # the engine vllm. A generator that joins or restarts always gets its first weights from the object store.
    transfer: Literal["auto", "object_store", "nccl", "ipc"] = "auto"
    # Size of one bucket, in the object store or in GPU memory. nccl holds two at a time, ipc one. A larger tensor is a
    # bucket of its own.
    bucket_mib: Count = 256


@dataclass(frozen=True, kw_only=True)
class TransferSituation:
    """The facts that decide the transfer."""

    engine: str  # as in engine.type
    learner_gpus: float  # per rank
    generator_gpus: float  # per generator
    colocated: bool  # every GPU holds a rank and a generator, or a part of one

    @property
    def layout(self) -> GPULayout:
        """The distribution of GPUs. "parts": several generators may share a GPU, and NCCL can't tell them apart."""
        if not (self.learner_gpus and self.generator_gpus):
            return "none"
        if self.colocated:
            return "shared"
        return "apart" if self.generator_gpus >= 1 else "parts"


def choose_transfer(wanted: str, situation: TransferSituation) -> WeightTransfer:
    """The transfer that `weight_sync.transfer` gives in this situation; an engine of type "auto" counts as vllm.

    Raises:
        ValueError: the situation rules out the wanted transfer.
    """
    has_vllm = situation.engine in ("auto", "vllm")
    fitting: WeightTransfer | None = None
    if has_vllm:
        fitting = "nccl" if situation.layout == "apart" else "ipc" if situation.layout == "shared" else None
    if wanted == "object_store" or (wanted == "auto" and fitting is None):
        return "object_store"
    if fitting is not None and wanted in ("auto", fitting):
        return fitting
    obstacle = (
        _obstacle(wanted, situation)
        if has_vllm
        else (f"needs vLLM in the generators, but engine.type={situation.engine!r}; write engine.type='vllm'")
    )
    raise ValueError(f"weight_sync.transfer={wanted!r} {obstacle}, or leave it 'auto'")


def _obstacle(wanted: str, situation: TransferSituation) -> str:
    ranks, generators = situation.learner_gpus, situation.generator_gpus
    match situation.layout:
        case "none":
            return (
                f"sends from GPU to GPU, but learner.gpus_per_worker={ranks:g} and engine.gpus_per_generator="
                f"{generators:g}; write weight_sync.transfer='object_store'"
            )
        case "shared":
            return (
                "is for GPUs that learners and generators don't share, but cluster.placement='colocated'; write "
                "weight_sync.transfer='ipc'"
            )
        case "apart" | "parts" if wanted == "ipc":
            return (
                "is for GPUs that learners and generators share, but cluster.placement='disaggregated'; write "
                "cluster.placement='colocated'"
            )
        case _:
            return (
                f"needs a whole GPU for every generator, but engine.gpus_per_generator={generators:g}; write "
                "engine.gpus_per_generator=1"
            )
