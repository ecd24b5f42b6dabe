"""Knapsack RL (arXiv 2509.25849): samples where they most raise the chance of a useful gradient."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gvm_ray.allocators.counts import report_counts, sum_by_prompt
from gvm_ray.allocators.history import PromptHistory
from gvm_ray.config.history_allocators import KnapsackAllocatorConfig
from gvm_ray.functional.allocation import apportion
from gvm_ray.functional.history_allocation import allocate_by_gain, knapsack_gains
from gvm_ray.functional.statistics import divisible_rates
from gvm_ray.protocols import Rounds
from gvm_ray.types import EstimatorTerms, Float64Array, FloatArray, Prompt


class KnapsackAllocator:
    """The n_i of the largest total value, in one round, from the accept rates of the last visits."""

    def __init__(self, config: KnapsackAllocatorConfig, *, accept_threshold: float) -> None:
        self._config = config
        self._history = PromptHistory(accept_threshold=accept_threshold, decay=config.decay)

    def rounds(
        self,
        prompts: Sequence[Prompt],
        *,
        step: int,
        budget: int,
        upcoming: Sequence[Prompt] = (),
        states: FloatArray | None = None,
    ) -> Rounds:
        """The whole budget at once."""
        ids = [prompt.prompt_id for prompt in prompts]
        rates = np.nan_to_num(self._history.accept_rates(ids), nan=self._config.unseen_accept_rate)
        divisors = divisible_rates(rates, self._history.all.look_up(ids)["trials"])
        counts = sum_by_prompt(ids, self._split(rates, budget))
        samples = yield from self._history.sample_once(counts)
        terms = EstimatorTerms(num_prompts=len(counts), accept_rates=dict(zip(ids, divisors.tolist(), strict=True)))
        return report_counts(
            counts,
            accept_rates=samples.accept_rates(),
            estimator=terms,
            estimates={"allocation/p_hat_mean": float(rates.mean())},
        )

    def state_dict(self) -> dict[str, Any]:
        """The decayed counts of every prompt seen."""
        return self._history.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`'s memory."""
        self._history.load_state_dict(state)

    def _split(self, rates: Float64Array, budget: int) -> NDArray[np.int64]:
        """n [P]; what has no value to anyone goes to prompts never solved."""
        low, high = self._config.min_samples, self._config.max_samples
        gains = knapsack_gains(rates, minimum=low, maximum=high)
        valued = min(budget, low * len(rates) + int((gains > 0).sum()))
        counts = allocate_by_gain(gains, minimum=low, budget=valued)
        return apportion(rates == 0, budget=budget, minimum=counts, maximum=high)
