"""The baseline: every prompt gets the same number of samples, in one round."""

from gvm_ray.allocators.base import Allocator, Rounds, Step
from gvm_ray.allocators.selection import even_counts


class UniformAllocator(Allocator):
    """n_i = budget / P, as even as integers allow."""

    def rounds(self, step: Step) -> Rounds:
        """The whole budget at once."""
        yield even_counts(step.ids, step.budget)
