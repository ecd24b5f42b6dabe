"""Checks across the parts of a run: algorithm against allocator, engines against learners on GPUs."""

from typing import TYPE_CHECKING, get_args

from gvm_ray.allocators import AllocatorSettings
from gvm_ray.allocators.base import AllocatorConfig, RunShape
from gvm_ray.config.strategy import (
    AlgorithmSettings,
    DrGRPOConfig,
    GRPOConfig,
    RaftConfig,
    RaftPlusPlusConfig,
    RLOOConfig,
)

if TYPE_CHECKING:
    from gvm_ray.config.run import RunConfig


def check_baselines(allocator: AllocatorConfig, algorithm: AlgorithmSettings, run: RunShape) -> None:
    """Refuse groups of one sample if the group mean is the baseline: the advantage would be 0 and nothing is learned.

    Raises:
        ValueError: the smallest group has fewer than 2 samples.
    """
    smallest, switch = allocator.smallest_group(run), allocator.baseline_setting
    if not isinstance(algorithm, GRPOConfig | DrGRPOConfig | RLOOConfig) or smallest is None or smallest.value >= 2:
        return
    if switch is not None and getattr(allocator, switch):
        return
    other = f"allocator.{switch}=true" if switch else "an algorithm without a group baseline, e.g. 'reinforce++'"
    raise ValueError(
        f"{smallest.setting}={smallest.value} gives {algorithm.type} nothing to compare a prompt's only sample with, "
        f"so nothing would be learned; write {smallest.setting}=2 or more, or {other}"
    )


def check_accept_rates(allocator: AllocatorConfig, algorithm: AlgorithmSettings) -> None:
    """Refuse to divide by accept rates if the only known ones are those of the samples themselves.

    Raises:
        ValueError: the algorithm divides by accept rates, and the allocator knows none.
    """
    divides = isinstance(algorithm, RaftConfig | RaftPlusPlusConfig) and algorithm.weighting == "inverse"
    if not divides or allocator.knows_accept_rates:
        return
    kind = getattr(allocator, "type", "")
    able = [name for name, settings in _allocators().items() if settings.model_construct().knows_accept_rates]
    raise ValueError(
        f"algorithm.weighting='inverse' divides by each prompt's accept rate, but allocator.type={kind!r} has none "
        "that is independent of the samples, or it selects samples by their rewards, so the estimate would be biased; "
        f"write algorithm.weighting='prompt_mean', or an allocator that knows accept rates: {', '.join(able)}"
    )


def _allocators() -> dict[str, type[AllocatorConfig]]:
    """The settings classes of all allocators, by `type`."""
    members = get_args(get_args(AllocatorSettings)[0])
    return {settings.model_fields["type"].default: settings for settings in members}


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
