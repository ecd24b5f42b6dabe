"""MoPPS (arXiv 2507.04632): prompts whose accept rate, drawn from a posterior that forgets, is nearest the target."""

from gvm_ray.allocators.base import Allocator, Report, Rounds, Step
from gvm_ray.allocators.selection import even_counts, num_groups
from gvm_ray.config.selecting_allocators import MoPPSAllocatorConfig
from gvm_ray.functional.filtering import thompson_nearest


class MoPPSAllocator(Allocator):
    """Thompson sampling: one draw for each candidate, and equal groups for those nearest the target accept rate."""

    def __init__(self, settings: MoPPSAllocatorConfig) -> None:
        self._settings = settings
        self.memory_decay = settings.decay

    def rounds(self, step: Step) -> Rounds:
        """The whole budget at once."""
        settings = self._settings
        order = thompson_nearest(
            *step.memory.counts(step.ids),
            prior_successes=settings.prior_successes,
            prior_failures=settings.prior_failures,
            target=settings.target_accept_rate,
            rng=step.rng,
        )
        chosen = order[: num_groups(step.budget, group_size=settings.group_size, num_candidates=len(step.ids))]
        counts = even_counts([step.ids[row] for row in chosen], step.budget)
        rates = step.memory.accept_rates(
            step.ids, prior_successes=settings.prior_successes, prior_failures=settings.prior_failures
        )
        yield counts
        accept_rates = dict(zip(step.ids, rates.tolist(), strict=True))
        return Report(kept={}, accept_rates={prompt_id: accept_rates[prompt_id] for prompt_id in counts})
