"""How new weights travel from the learners to the generators, and which ways fit which run."""

from dataclasses import dataclass
from typing import Literal

from gvm_ray.config.base import Count, Settings
from gvm_ray.types import WeightTransfer

GPULayout = Literal["none", "apart", "shared"]


class WeightSyncConfig(Settings):
    """New weights for the generators. `auto` takes what fits the run's GPUs, and prints the choice."""

    # "object_store" copies them through main memory and works everywhere. "nccl" broadcasts them between GPUs, where
    # learners and generators have GPUs of their own; "ipc" hands them over inside a GPU that both share. The last two
    # need the engine vllm. A generator that joins or restarts gets its first weights from the object store in any case.
    transfer: Literal["auto", "object_store", "nccl", "ipc"] = "auto"
    # Of one bucket, in the object store or in GPU memory; nccl holds two at a time, ipc one, and a larger tensor
    # counts as one.
    bucket_mib: Count = 256


@dataclass(frozen=True, kw_only=True)
class TransferSituation:
    """What the choice depends on."""

    engine: str  # as in engine.type
    learner_gpus: float  # of each rank
    generator_gpus: float  # of each generator

    @property
    def layout(self) -> GPULayout:
        """Whether learners and generators hold GPUs, and the same ones: a part of a GPU is shared with the others."""
        if not (self.learner_gpus and self.generator_gpus):
            return "none"
        return "shared" if self.learner_gpus < 1 or self.generator_gpus < 1 else "apart"


def choose_transfer(wanted: str, situation: TransferSituation) -> WeightTransfer:
    """What `weight_sync.transfer` means in this situation; an engine of type "auto" counts as vllm.

    Raises:
        ValueError: the situation rules it out.
    """
    can = situation.engine in ("auto", "vllm")
    match wanted, situation.layout:
        case "object_store", _:
            return "object_store"
        case "auto", "apart" if can:
            return "nccl"
        case "auto", "shared" if can:
            return "ipc"
        case "auto", _:
            return "object_store"
        case ("nccl", "apart") if can:
            return "nccl"
        case ("ipc", "shared") if can:
            return "ipc"
    raise ValueError(f"weight_sync.transfer={wanted!r} {_obstacle(wanted, situation)}, or leave it 'auto'")


def _obstacle(wanted: str, situation: TransferSituation) -> str:
    gpus = (
        f"learner.gpus_per_worker={situation.learner_gpus:g} and engine.gpus_per_generator={situation.generator_gpus:g}"
    )
    if situation.engine not in ("auto", "vllm"):
        return f"needs vLLM at the generators, and engine.type={situation.engine!r}; write engine.type='vllm'"
    if situation.layout == "none":
        return f"sends from GPU to GPU, and this is {gpus}; write transfer='object_store'"
    if wanted == "nccl":
        return f"needs whole GPUs on both sides, and this is {gpus}; write transfer='ipc', which is for shared GPUs"
    return f"needs learners and generators on the same GPUs, and this is {gpus}; write transfer='nccl'"
