"""Division of the budget among the step's prompts by predictions, without selection."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gvm_ray.allocators.base import RunShape, SmallestGroup, check_bounds
from gvm_ray.allocators.predictive import PredictiveAllocator, PredictiveConfig, Score
from gvm_ray.maths.allocation import apportion, expected_samples
from gvm_ray.settings import Count, NonNegativeCount
from gvm_ray.types import Float64Array


class _BoundedConfig(PredictiveConfig):
    """Settings of allocators that divide the budget among the step's prompts, within bounds."""

    min_samples: NonNegativeCount = 0  # of every prompt
    max_samples: Count | None = None  # of a prompt, at least samples_per_prompt; none = no bound

    def smallest_group(self, run: RunShape) -> SmallestGroup:
        """The lower bound `min_samples`."""
        return SmallestGroup(setting="allocator.min_samples", value=self.min_samples)

    def check_fits(self, run: RunShape) -> None:
        """Check that samples_per_prompt lies within the bounds."""
        check_bounds(self.min_samples, self.max_samples, run)


class GVMOnlineAllocatorConfig(_BoundedConfig):
    """Divides the budget among the step's prompts by predictions; every prompt gets at least `min_samples`."""

    type: Literal["gvm_online"] = "gvm_online"
    score: Score = "gvm"  # as for gvm_pool

    def build(self, *, accept_threshold: float, seed: int) -> "GVMOnlineAllocator":
        """Create the strategy."""
        return GVMOnlineAllocator(self, accept_threshold=accept_threshold, seed=seed)


class NeymanAllocatorConfig(_BoundedConfig):
    """The optimal split among the step's prompts, with p predicted: n ~ sqrt(p (1 - p)) for a linear objective, or
    n ~ sqrt((1 - p) / p) for the log pass rate (arXiv 2510.04996, appendix B).
    """

    type: Literal["neyman"] = "neyman"
    score: Literal["neyman", "log_neyman"] = "neyman"  # for the linear objective, or for the log pass rate
    training_gradient_norms: bool = False
    min_samples: NonNegativeCount = 2  # a group of one has no baseline

    def build(self, *, accept_threshold: float, seed: int) -> "GVMOnlineAllocator":
        """Create the strategy."""
        return GVMOnlineAllocator(self, accept_threshold=accept_threshold, seed=seed)


class GVMOnlineAllocator(PredictiveAllocator):
    """Give every prompt of the step n_i in proportion to its score, within the bounds."""

    _settings: GVMOnlineAllocatorConfig | NeymanAllocatorConfig

    def _divide(
        self, scores: Float64Array, *, budget: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], Float64Array | None]:
        settings = self._settings
        expected = expected_samples(scores, budget=budget, uniform_share=settings.uniform_share)
        return apportion(expected, budget=budget, minimum=settings.min_samples, maximum=settings.max_samples), None
