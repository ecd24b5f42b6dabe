"""Where a run's actors lie: the Ray cluster, GPUs that are shared or not, and how new weights travel between them."""

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
    """Which Ray cluster; with neither an address here nor RAY_ADDRESS set, a local one is started."""

    address: str | None = None
    # Of learner ranks and generators that use GPUs: "disaggregated" = each has its own, "colocated" = every GPU holds a
    # rank and a generator (or one of a generator's tensor-parallel parts), as engine.sleep says. gpus_per_worker and
    # gpus_per_generator count GPUs either way.
    placement: Placement = "disaggregated"
    num_cpus: Count | None = None  # logical CPUs of a local cluster; none = as many as the run needs
    dashboard: bool = True  # of a local cluster
    object_store_mb: Annotated[int, Field(ge=80)] = 512  # of a local cluster
    # Of one GPU, which a run is planned against; none = as this machine's GPUs have, or 80 where it has none.
    gpu_memory_gib: Positive | None = None


def check_gpus(config: "RunConfig") -> None:
    """Raises:
    ValueError: learner ranks and generators can't lie on GPUs as the settings say.
    """
    ranks, generators = config.learner.gpus_per_worker, config.engine.gpus_per_generator
    if ranks not in (0, 1):
        raise ValueError(
            f"learner.gpus_per_worker={ranks:g}, and a rank computes on one GPU; write learner.gpus_per_worker=1, with "
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
            f"evaluation.num_generators={config.evaluation.num_generators} and cluster.placement='colocated': all GPUs "
            "are taken by ranks and generators that share them; write evaluation.num_generators=0, or "
            "cluster.placement='disaggregated'"
        )
    if config.engine.sleep and config.max_staleness:
        raise ValueError(
            f"max_staleness={config.max_staleness} has generators sample while the learners work, and with "
            "cluster.placement='colocated' and engine.sleep=true they sleep then; write max_staleness=0, or "
            "engine.sleep=false"
        )


def _check_shares(config: "RunConfig") -> None:
    """Every GPU is to hold one rank, and one generator or a part of one."""
    engine, num_ranks = config.engine, config.learner.num_workers
    parts = engine.tensor_parallel_size
    if engine.gpus_per_generator < 1:
        raise ValueError(
            f"engine.gpus_per_generator={engine.gpus_per_generator:g} and cluster.placement='colocated', which divides "
            f"GPUs by itself; write engine.gpus_per_generator={parts}"
        )
    if num_ranks % parts:
        raise ValueError(
            f"engine.tensor_parallel_size={parts} does not divide learner.num_workers={num_ranks}, and with "
            f"cluster.placement='colocated' generators lie on the ranks' GPUs; write learner.num_workers="
            f"{-(-num_ranks // parts) * parts}, or engine.tensor_parallel_size=1"
        )
    if engine.num_generators * parts != num_ranks:
        raise ValueError(
            f"engine.num_generators={engine.num_generators} of {parts} GPU(s) each and learner.num_workers={num_ranks}:"
            f" with cluster.placement='colocated' they share the same GPUs; write engine.num_generators="
            f"{num_ranks // parts}"
        )


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
    colocated: bool  # a rank and a generator, or a part of one, on every GPU

    @property
    def layout(self) -> GPULayout:
        """How GPUs are given out. "parts": several generators may lie on one GPU, which NCCL can't tell apart."""
        if not (self.learner_gpus and self.generator_gpus):
            return "none"
        if self.colocated:
            return "shared"
        return "apart" if self.generator_gpus >= 1 else "parts"


def choose_transfer(wanted: str, situation: TransferSituation) -> WeightTransfer:
    """What `weight_sync.transfer` means in this situation; an engine of type "auto" counts as vllm.

    Raises:
        ValueError: the situation rules it out.
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
        else (f"needs vLLM at the generators, and engine.type={situation.engine!r}; write engine.type='vllm'")
    )
    raise ValueError(f"weight_sync.transfer={wanted!r} {obstacle}, or leave it 'auto'")


def _obstacle(wanted: str, situation: TransferSituation) -> str:
    ranks, generators = situation.learner_gpus, situation.generator_gpus
    match situation.layout:
        case "none":
            return (
                f"sends from GPU to GPU, and learner.gpus_per_worker={ranks:g} and engine.gpus_per_generator="
                f"{generators:g}; write weight_sync.transfer='object_store'"
            )
        case "shared":
            return (
                "is for GPUs that learners and generators don't share, and cluster.placement='colocated'; write "
                "weight_sync.transfer='ipc'"
            )
        case "apart" | "parts" if wanted == "ipc":
            return (
                "is for GPUs that learners and generators share, and cluster.placement='disaggregated'; write "
                "cluster.placement='colocated'"
            )
        case _:
            return (
                f"needs a whole GPU for every generator, and engine.gpus_per_generator={generators:g}; write "
                "engine.gpus_per_generator=1"
            )
