"""Whether the samples of a prompt have something to be compared with."""

from gvm_ray.config.allocators import AllocatorSettings, UniformAllocatorConfig
from gvm_ray.config.predictive_allocators import GVMPoolAllocatorConfig
from gvm_ray.config.strategy import AlgorithmSettings, DrGRPOConfig, GRPOConfig, RLOOConfig


def check_baselines(allocator: AllocatorSettings, algorithm: AlgorithmSettings, *, samples_per_prompt: int) -> None:
    """Refuse groups of one where the group's mean is the baseline: their advantage is 0, and nothing is learned.

    Raises:
        ValueError: what is wrong, and what to write instead.
    """
    if not isinstance(algorithm, GRPOConfig | DrGRPOConfig | RLOOConfig):
        return
    alone = f"gives {algorithm.type} nothing to compare a prompt's only sample with, so that it could not learn"
    match allocator:
        case UniformAllocatorConfig() if samples_per_prompt == 1:
            raise ValueError(
                f"samples_per_prompt=1 {alone}; write samples_per_prompt=2 or more, or an algorithm without a group's "
                "baseline, e.g. algorithm.type='reinforce++'"
            )
        case GVMPoolAllocatorConfig(group_size=1, predicted_baseline=False):
            raise ValueError(
                f"allocator.group_size=1 {alone}; write allocator.predicted_baseline=true, or group_size=2 or more"
            )
        case _:
            return
