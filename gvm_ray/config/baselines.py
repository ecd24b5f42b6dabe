"""What an algorithm needs of the allocator: samples to compare a sample with, and accept rates to divide by."""

from typing import get_args

from gvm_ray.config.allocator_base import AllocatorConfig, RunShape
from gvm_ray.config.allocators import AllocatorSettings
from gvm_ray.config.strategy import (
    AlgorithmSettings,
    DrGRPOConfig,
    GRPOConfig,
    RaftConfig,
    RaftPlusPlusConfig,
    RLOOConfig,
)


def check_baselines(allocator: AllocatorConfig, algorithm: AlgorithmSettings, run: RunShape) -> None:
    """Refuse groups of one where the group's mean is the baseline: their advantage is 0, and nothing is learned.

    Raises:
        ValueError: what is wrong, and what to write instead.
    """
    smallest, switch = allocator.smallest_group(run), allocator.baseline_setting
    if not isinstance(algorithm, GRPOConfig | DrGRPOConfig | RLOOConfig) or smallest is None or smallest.value >= 2:
        return
    if switch is not None and getattr(allocator, switch):
        return
    other = f"allocator.{switch}=true" if switch else "an algorithm without a group's baseline, e.g. 'reinforce++'"
    raise ValueError(
        f"{smallest.setting}={smallest.value} gives {algorithm.type} nothing to compare a prompt's only sample with, "
        f"so that it could not learn; write {smallest.setting}=2 or more, or {other}"
    )


def check_accept_rates(allocator: AllocatorConfig, algorithm: AlgorithmSettings) -> None:
    """Refuse to divide by accept rates where none is known but that of the samples themselves.

    Raises:
        ValueError: what is wrong, and what to write instead.
    """
    divides = isinstance(algorithm, RaftConfig | RaftPlusPlusConfig) and algorithm.weighting == "inverse"
    if not divides or allocator.knows_accept_rates:
        return
    kind = getattr(allocator, "type", "")
    able = [name for name, settings in _allocators().items() if settings.model_construct().knows_accept_rates]
    raise ValueError(
        f"algorithm.weighting='inverse' divides by each prompt's accept rate, and allocator.type={kind!r} has none but "
        "that of the very samples, or chooses among them by their rewards, so that it would not be unbiased; write "
        f"algorithm.weighting='prompt_mean', or an allocator that knows one: {', '.join(able)}"
    )


def _allocators() -> dict[str, type[AllocatorConfig]]:
    """By their `type`."""
    members = get_args(get_args(AllocatorSettings)[0])
    return {settings.model_fields["type"].default: settings for settings in members}
