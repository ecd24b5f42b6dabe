"""Settings of the Ray cluster, of the placement on its GPUs, and of the weight transfer between them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from gvm_ray.settings import Count, Positive, Settings
from gvm_ray.types import WeightTransfer

if TYPE_CHECKING:
    from gvm_ray.config.run import RunConfig

Placement = Literal["disaggregated", "colocated"]

GPULayout = Literal["none", "apart", "parts", "shared"]


class ClusterConfig(Settings):
    """The Ray cluster. Without an address here and in RAY_ADDRESS, a local one is started."""

    # HOST:PORT of the head node, or "auto" on a node of the cluster; RAY_ADDRESS says the same.
    address: str | None = None
    # For learner ranks and generators on GPUs: "disaggregated" = each has its own, "colocated" = every GPU holds a rank
    # and a generator (or a tensor-parallel part of one), which share it as engine.sleep says. gpus_per_worker and
    # gpus_per_generator count GPUs either way.
    placement: Placement = "disaggregated"
    num_cpus: Count | None = None  # logical CPUs of a local cluster; none = as many as the run needs
    dashboard: bool = True  # of a local cluster
    object_store_mb: Annotated[int, Field(ge=80)] = 512  # of a local cluster
    # Memory of one GPU, for planning; none = that of this machine's GPUs, or 80 if it has none.
    gpu_memory_gib: Positive | None = None


def check_gpus(config: "RunConfig") -> None:
    """Refuse learner ranks and generators that can't be placed on GPUs as the settings say.

    Raises:
        ValueError: the settings contradict each other.
    """
    ranks, generators = config.learner.gpus_per_worker, config.engine.gpus_per_generator
    if ranks not in (0, 1):
        raise ValueError(
            f"learner.gpus_per_worker={ranks:g}, but a rank computes on one GPU; write learner.gpus_per_worker=1, with "
            "cluster.placement='colocated' if a generator shares it, and learner.num_workers for the number of GPUs"
        )
    if config.cluster.placement == "disaggregated":
        return
    if not ranks or not generators:
        raise ValueError(
            f"cluster.placement='colocated' without GPUs: learner.gpus_per_worker={ranks:g} and "
            f"engine.gpus_per_generator={generators:g}; write learner.gpus_per_worker=1 and "
            f"engine.gpus_per_generator={config.engine.tensor_parallel_size}, or leave out cluster.placement"
        )
    _check_shares(config)
    if config.evaluation.num_generators:
        raise ValueError(
            f"evaluation.num_generators={config.evaluation.num_generators} with cluster.placement='colocated': ranks "
            "and generators share all GPUs, and none is left; write evaluation.num_generators=0, or "
            "cluster.placement='disaggregated'"
        )
    if config.engine.sleep and config.max_staleness:
        raise ValueError(
            f"max_staleness={config.max_staleness} makes generators sample while the learners work, but with "
            "cluster.placement='colocated' and engine.sleep=true they sleep then; write max_staleness=0, or "
            "engine.sleep=false"
        )


def _check_shares(config: "RunConfig") -> None:
    """Check that every GPU holds one rank, and one generator or a tensor-parallel part of a generator."""
    engine, num_ranks = config.engine, config.learner.num_workers
    parts = engine.tensor_parallel_size
    if engine.gpus_per_generator < 1:
        raise ValueError(
            f"engine.gpus_per_generator={engine.gpus_per_generator:g}, but cluster.placement='colocated' divides the "
            f"GPUs by itself; write engine.gpus_per_generator={parts}"
        )
    if num_ranks % parts:
        raise ValueError(
            f"engine.tensor_parallel_size={parts} does not divide learner.num_workers={num_ranks}, and with "
            f"cluster.placement='colocated' generators use the ranks' GPUs; write learner.num_workers="
            f"{-(-num_ranks // parts) * parts}, or engine.tensor_parallel_size=1"
        )
    if engine.num_generators * parts != num_ranks:
        raise ValueError(
            f"engine.num_generators={engine.num_generators} with {parts} GPU(s) each and learner.num_workers="
            f"{num_ranks}: with cluster.placement='colocated' they share the same GPUs; write engine.num_generators="
            f"{num_ranks // parts}"
        )


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
