"""An allocator of your own: one class with a method `rounds`, named in the config.

This one gives prompts that have always been solved so far half of what the others get. On the quickstart's task:

    cd examples && gvm-ray train ../configs/quickstart.toml --set name=custom-allocator \
        --set allocator.type=custom --set allocator.path=custom_allocator:FewerForSolved
"""

from gvm_ray.allocators import Allocator, Report, Rounds, Step
from gvm_ray.maths.allocation import apportion


class FewerForSolved(Allocator):
    """n_i proportional to 1 for a prompt whose samples were all accepted, to 2 for any other."""

    def rounds(self, step: Step) -> Rounds:
        """The whole budget at once."""
        successes, trials = step.memory.counts(step.ids)
        weights = [1.0 if 0 < total == solved else 2.0 for solved, total in zip(successes, trials, strict=True)]
        # What algorithm.weighting = "inverse" divides by: of earlier visits, never of the samples that it weights.
        rates = step.memory.accept_rates(step.ids, prior_successes=0.5, prior_failures=0.5)
        yield step.counts(apportion(weights, budget=step.budget))
        return Report(accept_rates=dict(zip(step.ids, rates.tolist(), strict=True)))
