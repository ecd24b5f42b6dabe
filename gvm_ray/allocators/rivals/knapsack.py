"""Knapsack RL (arXiv 2509.25849): samples go where they raise the chance of a useful gradient most."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gvm_ray.allocators.base import (
    Allocator,
    BoundedAllocatorConfig,
    Report,
    Rounds,
    Step,
)
from gvm_ray.maths.allocation import apportion
from gvm_ray.maths.rival_rules import allocate_by_gain, knapsack_gains
from gvm_ray.maths.statistics import divisible_rates
from gvm_ray.settings import Count, Probability
from gvm_ray.types import Float64Array


class KnapsackAllocatorConfig(BoundedAllocatorConfig):
    """Knapsack RL (arXiv 2509.25849): the n that maximise the sum of (1 - p^n - (1 - p)^n) p (1 - p)^2.

    p is the accept rate of the prompt's last visit. The paper solves this by dynamic programming; since the value is
    concave in n, taking the largest marginal gains is exact too. A prompt with p = 0 or 1 has no value and gets
    min_samples. Samples left over when all others are at max_samples go to prompts with p = 0.
    """

    type: Literal["knapsack"] = "knapsack"
    min_samples: Count = 2  # of every prompt
    max_samples: Count = 128  # of a prompt; at least samples_per_prompt
    decay: Probability = 0.0  # factor on a prompt's earlier counts at each visit; 0 forgets all, as published
    unseen_accept_rate: Probability = 0.5  # assumed before the first visit

    def build(self, *, accept_threshold: float, seed: int) -> "KnapsackAllocator":
        """Create the strategy."""
        return KnapsackAllocator(self)


class KnapsackAllocator(Allocator):
    """Choose the n_i with the largest total value, in one round, from the accept rates of the last visits."""

    def __init__(self, settings: KnapsackAllocatorConfig) -> None:
        self._settings = settings
        self.memory_decay = settings.decay

    def rounds(self, step: Step) -> Rounds:
        """Spend the whole budget in one round."""
        rates = np.nan_to_num(step.memory.accept_rates(step.ids), nan=self._settings.unseen_accept_rate)
        _, trials = step.memory.counts(step.ids)
        yield step.counts(self._split(rates, step.budget))
        divisors = divisible_rates(rates, trials)
        return Report(
            accept_rates=dict(zip(step.ids, divisors.tolist(), strict=True)),
            metrics={"allocation/p_hat_mean": float(rates.mean())},
        )

    def _split(self, rates: Float64Array, budget: int) -> NDArray[np.int64]:
        """Compute n [P]; samples that have no value for any prompt go to prompts with p = 0."""
        low, high = self._settings.min_samples, self._settings.max_samples
        gains = knapsack_gains(rates, minimum=low, maximum=high)
        valued = min(budget, low * len(rates) + int((gains > 0).sum()))
        counts = allocate_by_gain(gains, minimum=low, budget=valued)
        return apportion(rates == 0, budget=budget, minimum=counts, maximum=high)
