"""The default: choose and size groups out of a pool of candidates, by what the policy's own hidden states predict."""

import numpy as np
from numpy.typing import NDArray

from gvm_ray.allocators.predictive import PredictiveAllocator
from gvm_ray.config.predictive_allocators import GVMPoolAllocatorConfig
from gvm_ray.functional.selection import expected_samples, inclusion_weights, select_groups
from gvm_ray.types import Float64Array


class GVMPoolAllocator(PredictiveAllocator):
    """n_i in proportion to the score, and a group of `group_size` with probability n_i / group_size where that is less.

    The samples go where the predicted gradient is, so the objective changes with them: an implicit curriculum toward
    prompts that are neither solved nor out of reach. `undo_selection` weights it back (clipped).
    """

    def __init__(self, config: GVMPoolAllocatorConfig, *, accept_threshold: float, seed: int) -> None:
        super().__init__(config, accept_threshold=accept_threshold, seed=seed)
        self._config = config

    def _divide(
        self, scores: Float64Array, *, budget: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], Float64Array | None]:
        config = self._config
        expected = expected_samples(scores, budget=budget, uniform_share=config.uniform_share)
        counts = select_groups(
            expected, budget=budget, group_size=config.group_size, rng=rng, maximum=config.max_samples
        )
        if not config.undo_selection:
            return counts, None
        weights = inclusion_weights(
            expected, budget=budget, group_size=config.group_size, cap=config.undo_selection_cap
        )
        return counts, weights
