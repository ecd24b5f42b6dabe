"""GVM without pilots: the step's prompts share the budget by predicted accept rates and gradient norms."""

import numpy as np
from numpy.typing import NDArray

from gvm_ray.allocators.predictive import PredictiveAllocator
from gvm_ray.config.predictive_allocators import GVMOnlineAllocatorConfig, NeymanAllocatorConfig
from gvm_ray.functional.allocation import apportion
from gvm_ray.functional.selection import expected_samples
from gvm_ray.types import Float64Array


class GVMOnlineAllocator(PredictiveAllocator):
    """n_i in proportion to the score within the bounds, inside the batch."""

    def __init__(
        self, config: GVMOnlineAllocatorConfig | NeymanAllocatorConfig, *, accept_threshold: float, seed: int
    ) -> None:
        super().__init__(config, accept_threshold=accept_threshold, seed=seed)
        self._config = config

    def _divide(
        self, scores: Float64Array, *, budget: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], Float64Array | None]:
        config = self._config
        expected = expected_samples(scores, budget=budget, uniform_share=config.uniform_share)
        return apportion(expected, budget=budget, minimum=config.min_samples, maximum=config.max_samples), None
