"""Reinforce-Ada-Est (arXiv 2510.04996): the split for the log pass rate, from estimates kept across epochs."""

from typing import ClassVar, Literal

from pydantic import model_validator

from gvm_ray.allocators.base import Allocator, BoundedAllocatorConfig, Report, Rounds, Step
from gvm_ray.maths.allocation import apportion
from gvm_ray.maths.rival_rules import log_objective_weights
from gvm_ray.maths.statistics import divisible_rates
from gvm_ray.settings import Count, NonNegative, Positive, Probability


class ReinforceAdaEstAllocatorConfig(BoundedAllocatorConfig):
    """Reinforce-Ada-Est (arXiv 2510.04996): n ~ 1 / sqrt(p + epsilon), p from the prompt's decayed counts.

    `rescale_advantages` makes the advantage (r - p) / sqrt(p + epsilon), with the same p. With
    weighting = "token_mean", where a prompt counts in proportion to its samples, both together give the gradient of
    ln p, as published. With "prompt_mean" a prompt's weight is 1 / sqrt(p) instead of 1 / p.

    At a prompt's first visit only the prior is known, so the first epoch is sampled evenly.
    """

    baseline_setting: ClassVar[str | None] = "rescale_advantages"

    type: Literal["reinforce_ada_est"] = "reinforce_ada_est"
    min_samples: Count = 4  # of every prompt
    max_samples: Count = 32  # of a prompt; at least samples_per_prompt
    epsilon: Positive = 1e-6  # added to p, so that it isn't divided by 0
    decay: Probability = 0.9  # factor on a prompt's earlier counts at each visit; 1 forgets nothing
    prior_successes: NonNegative = 1.0  # Beta prior of the accept rate, as in the released code
    prior_failures: NonNegative = 16.0  # as prior_successes, of rejected samples
    rescale_advantages: bool = True  # false: the algorithm's own advantages

    @model_validator(mode="after")
    def _prior_tells(self) -> "ReinforceAdaEstAllocatorConfig":
        if self.prior_successes + self.prior_failures == 0:
            raise ValueError(
                "prior_successes=0 with prior_failures=0 leaves a prompt's first visit without an accept rate; write "
                "e.g. prior_successes=1, prior_failures=1"
            )
        return self

    def build(self, *, accept_threshold: float, seed: int) -> "ReinforceAdaEstAllocator":
        """Create the strategy."""
        return ReinforceAdaEstAllocator(self)


class ReinforceAdaEstAllocator(Allocator):
    """Give n_i ~ 1 / sqrt(p_i + epsilon) within the bounds, in one round."""

    def __init__(self, settings: ReinforceAdaEstAllocatorConfig) -> None:
        self._settings = settings
        self.memory_decay = settings.decay

    def rounds(self, step: Step) -> Rounds:
        """Spend the whole budget in one round."""
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
