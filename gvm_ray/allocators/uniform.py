"""The baseline: every prompt gets the same number of samples, in one round."""

from typing import Literal

from gvm_ray.allocators.base import (
    Allocator,
    AllocatorConfig,
    Rounds,
    RunShape,
    SmallestGroup,
    Step,
)
from gvm_ray.allocators.selection import even_counts


class UniformAllocatorConfig(AllocatorConfig):
    """Every prompt gets samples_per_prompt samples."""

    type: Literal["uniform"] = "uniform"

    def smallest_group(self, run: RunShape) -> SmallestGroup:
        """All are alike."""
        return SmallestGroup(setting="samples_per_prompt", value=run.samples_per_prompt)

    def build(self, *, accept_threshold: float, seed: int) -> "UniformAllocator":
        """The strategy."""
        return UniformAllocator()


class UniformAllocator(Allocator):
    """n_i = budget / P, as even as integers allow."""

    def rounds(self, step: Step) -> Rounds:
        """The whole budget at once."""
        yield even_counts(step.ids, step.budget)
