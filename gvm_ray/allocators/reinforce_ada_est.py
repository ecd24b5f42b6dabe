"""Reinforce-Ada-Est (arXiv 2510.04996): more samples for prompts that were rarely solved so far."""

from collections.abc import Mapping, Sequence
from typing import Any

from gvm_ray.allocators.counts import report_counts, sum_by_prompt
from gvm_ray.allocators.history import PromptHistory
from gvm_ray.config.history_allocators import ReinforceAdaEstAllocatorConfig
from gvm_ray.functional.allocation import apportion
from gvm_ray.functional.history_allocation import log_objective_weights
from gvm_ray.functional.statistics import divisible_rates
from gvm_ray.protocols import Rounds
from gvm_ray.types import EstimatorTerms, FloatArray, Prompt


class ReinforceAdaEstAllocator:
    """n_i ~ 1 / sqrt(p_i + epsilon) within bounds, in one round, from the posterior mean of the earlier visits."""

    def __init__(self, config: ReinforceAdaEstAllocatorConfig, *, accept_threshold: float) -> None:
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
        config = self._config
        ids = [prompt.prompt_id for prompt in prompts]
        rates = self._history.accept_rates(
            ids, prior_successes=config.prior_successes, prior_failures=config.prior_failures
        )
        prior_samples = config.prior_successes + config.prior_failures
        divisors = divisible_rates(rates, self._history.all.look_up(ids)["trials"] + prior_samples)
        weights = log_objective_weights(rates, epsilon=config.epsilon)
        counts = sum_by_prompt(
            ids, apportion(weights, budget=budget, minimum=config.min_samples, maximum=config.max_samples)
        )
        samples = yield from self._history.sample_once(counts)
        rescale = config.rescale_advantages
        terms = EstimatorTerms(
            num_prompts=len(counts),
            accept_rates=dict(zip(ids, divisors.tolist(), strict=True)),
            baselines=dict(zip(ids, rates.tolist(), strict=True)) if rescale else {},
            scales=dict(zip(ids, (1 / weights).tolist(), strict=True)) if rescale else {},
        )
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
