"""MoPPS (arXiv 2507.04632): prompts whose accept rate, drawn from a decayed posterior, is nearest the target."""

from typing import Literal

from gvm_ray.allocators.base import (
    Allocator,
    Report,
    Rounds,
    Step,
)
from gvm_ray.allocators.selection import CandidateAllocatorConfig, ZeroVarianceSettings, draw_groups, num_groups
from gvm_ray.maths.rival_rules import thompson_nearest
from gvm_ray.settings import Positive, Probability


class MoPPSAllocatorConfig(CandidateAllocatorConfig, ZeroVarianceSettings):
    """MoPPS (arXiv 2507.04632): the candidates whose accept rate, drawn from a Beta posterior, is nearest the target.

    At each visit a prompt's earlier counts are multiplied by `decay` (the paper's lambda), which pulls the posterior
    back toward the prior. Then the accepted and rejected samples of the visit are added.

    With `refill`, which the paper doesn't have, groups of equal rewards are dropped as in DAPO, and the candidates with
    the next nearest draws are sampled in their place, up to max_batches budgets.
    """

    type: Literal["mopps"] = "mopps"
    target_accept_rate: Probability = 0.5  # 1/2 = the prompts whose rewards vary most
    decay: Probability = 0.5  # 1 forgets nothing
    # Beta prior of the accept rate.
    prior_successes: Positive = 1.0
    prior_failures: Positive = 1.0  # as prior_successes, of rejected samples
    refill: bool = False  # true: other candidates replace groups of equal rewards; false: these stay in the batch

    @property
    def knows_accept_rates(self) -> bool:
        """True: they are posterior means from earlier visits. But with refills the rewards say which samples stay."""
        return not self.refill

    def build(self, *, accept_threshold: float, seed: int) -> "MoPPSAllocator":
        """Create the strategy."""
        return MoPPSAllocator(self)


class MoPPSAllocator(Allocator):
    """Thompson sampling: one draw for each candidate; the draws nearest the target accept rate get equal groups."""

    def __init__(self, settings: MoPPSAllocatorConfig) -> None:
        self._settings = settings
        self.memory_decay = settings.decay

    def rounds(self, step: Step) -> Rounds:
        """Spend the whole budget in one round, and up to max_batches budgets with refills."""
        settings = self._settings
        order = thompson_nearest(
            *step.memory.counts(step.ids),
            prior_successes=settings.prior_successes,
            prior_failures=settings.prior_failures,
            target=settings.target_accept_rate,
            rng=step.rng,
        )
        wanted = num_groups(step.budget, group_size=settings.group_size, num_candidates=len(step.ids))
        chosen = order[: wanted * settings.max_budget_factor]
        candidates = [step.ids[row] for row in chosen]
        rates = step.memory.accept_rates(
            candidates, prior_successes=settings.prior_successes, prior_failures=settings.prior_failures
        )
        accept_rates = dict(zip(candidates, rates.tolist(), strict=True))
        drawn = yield from draw_groups(candidates, wanted=wanted, budget=step.budget, tolerance=settings.tolerance)
        if settings.refill:
            return Report(kept=drawn.dropped)
        return Report(kept={}, accept_rates={prompt_id: accept_rates[prompt_id] for prompt_id in drawn.sampled})
