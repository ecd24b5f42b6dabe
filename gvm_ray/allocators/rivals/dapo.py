"""DAPO's dynamic sampling (arXiv 2503.14476, Section 3.2): groups without signal are replaced by other prompts."""

from typing import Literal

from gvm_ray.allocators.base import (
    Allocator,
    Needs,
    Report,
    Rounds,
    RunShape,
    SmallestGroup,
    Step,
)
from gvm_ray.allocators.selection import ZeroVarianceSettings, draw_groups


class DAPOAllocatorConfig(ZeroVarianceSettings):
    """DAPO's dynamic sampling (arXiv 2503.14476, Section 3.2): groups of equal rewards are dropped and replaced.

    There are prompts_per_step * max_batches candidates, each sampled samples_per_prompt times. When groups are
    replaced, a step costs up to max_batches times its budget, and all samples are charged. refill = false drops groups
    without replacing them, within the budget. A refill samples as many groups as are missing; the authors' recipe
    samples whole batches and discards the surplus. A group is dropped if its rewards are equal, up to `tolerance`.
    The rest of DAPO belongs to the algorithm: `token_mean`, a separate upper clip, no KL term.
    """

    type: Literal["dapo"] = "dapo"
    refill: bool = True  # false: the batch shrinks to the groups that have a signal

    def needs(self, run: RunShape) -> Needs:
        """Candidates for the largest number of batches."""
        return Needs(candidates=run.prompts_per_step * self.max_budget_factor)

    def smallest_group(self, run: RunShape) -> SmallestGroup:
        """The value of samples_per_prompt: all groups are alike."""
        return SmallestGroup(setting="samples_per_prompt", value=run.samples_per_prompt)

    def check_fits(self, run: RunShape) -> None:
        """Check that a group can have reward variance."""
        if run.samples_per_prompt < 2:
            raise ValueError(
                "allocator.type='dapo' drops groups of equal rewards, and with samples_per_prompt=1 that is every "
                "group; write samples_per_prompt=2 or more"
            )

    def build(self, *, accept_threshold: float, seed: int) -> "DAPOAllocator":
        """Create the strategy."""
        return DAPOAllocator(self)


class DAPOAllocator(Allocator):
    """Sample a first batch of candidates; drop each group of equal rewards, and sample the next candidate instead.

    A round refills only the missing groups. The step ends when no group is missing or no candidate is left.
    """

    def __init__(self, settings: DAPOAllocatorConfig) -> None:
        self._settings = settings

    def rounds(self, step: Step) -> Rounds:
        """Spend the whole budget on the first groups, and up to max_batches budgets including refills."""
        batches = self._settings.max_budget_factor
        wanted = max(len(step.ids) // batches, 1)
        drawn = yield from draw_groups(
            step.ids[: wanted * batches], wanted=wanted, budget=step.budget, tolerance=self._settings.tolerance
        )
        return Report(kept=drawn.dropped, metrics={"allocation/rounds": float(drawn.num_rounds)})
