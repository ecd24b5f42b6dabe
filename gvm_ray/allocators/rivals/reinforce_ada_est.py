"""Reinforce-Ada-Est (arXiv 2510.04996): the split for the log pass rate, from estimates kept over epochs."""

from gvm_ray.allocators.base import Allocator, Report, Rounds, Step
from gvm_ray.config.history_allocators import ReinforceAdaEstAllocatorConfig
from gvm_ray.functional.allocation import apportion
from gvm_ray.functional.history_allocation import log_objective_weights
from gvm_ray.functional.statistics import divisible_rates


class ReinforceAdaEstAllocator(Allocator):
    """n_i ~ 1 / sqrt(p_i + epsilon) within the bounds, in one round."""

    def __init__(self, settings: ReinforceAdaEstAllocatorConfig) -> None:
        self._settings = settings
        self.memory_decay = settings.decay

    def rounds(self, step: Step) -> Rounds:
        """The whole budget at once."""
        settings = self._settings
        rates = step.memory.accept_rates(
            step.ids, prior_successes=settings.prior_successes, prior_failures=settings.prior_failures
        )
        _, trials = step.memory.counts(step.ids)
        divisors = divisible_rates(rates, trials + settings.prior_successes + settings.prior_failures)
        weights = log_objective_weights(rates, epsilon=settings.epsilon)
        yield step.counts(
            apportion(weights, budget=step.budget, minimum=settings.min_samples, maximum=settings.max_samples)
        )
        rescale = settings.rescale_advantages
        return Report(
            accept_rates=dict(zip(step.ids, divisors.tolist(), strict=True)),
            baselines=dict(zip(step.ids, rates.tolist(), strict=True)) if rescale else {},
            scales=dict(zip(step.ids, (1 / weights).tolist(), strict=True)) if rescale else {},
            metrics={"allocation/p_hat_mean": float(rates.mean())},
        )
