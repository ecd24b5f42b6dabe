"""DAPO's dynamic sampling (arXiv 2503.14476, Section 3.2): groups that teach nothing are replaced by other prompts'."""

from typing import Literal

from gvm_ray.allocators.base import (
    Allocator,
    AllocatorConfig,
    Needs,
    Report,
    Rounds,
    RunShape,
    SmallestGroup,
    Step,
)
from gvm_ray.allocators.selection import even_counts, reward_ranges
from gvm_ray.settings import Count


class DAPOAllocatorConfig(AllocatorConfig):
    """DAPO's dynamic sampling (arXiv 2503.14476, Section 3.2): groups of equal rewards are dropped and replaced.

    The candidates are prompts_per_step * max_batches, each sampled samples_per_prompt times. A step costs more than its
    budget where groups are replaced, up to max_batches times as much, and everything is charged; max_batches = 1 drops
    and doesn't replace, within the budget. A refill samples as many groups as are missing; the authors' recipe samples
    whole batches and throws the surplus away. Groups count as equal by their reward, whatever its scale. The rest of
    DAPO is in the algorithm: `token_mean`, its own upper clip, no KL term.
    """

    type: Literal["dapo"] = "dapo"
    max_batches: Count = 3

    @property
    def max_budget_factor(self) -> int:
        """One budget for each batch of candidates."""
        return self.max_batches

    def needs(self, run: RunShape) -> Needs:
        """As many batches of candidates as may be drawn."""
        return Needs(candidates=run.prompts_per_step * self.max_batches)

    def smallest_group(self, run: RunShape) -> SmallestGroup:
        """All are alike."""
        return SmallestGroup(setting="samples_per_prompt", value=run.samples_per_prompt)

    def check_fits(self, run: RunShape) -> None:
        """A group can have reward variance."""
        if run.samples_per_prompt < 2:
            raise ValueError(
                "allocator.type='dapo' drops groups of equal rewards, and with samples_per_prompt=1 that is all of "
                "them; write samples_per_prompt=2 or more"
            )

    def build(self, *, accept_threshold: float, seed: int) -> "DAPOAllocator":
        """The strategy."""
        return DAPOAllocator(self)


class DAPOAllocator(Allocator):
    """A batch's share of the candidates first; each group of equal rewards is dropped and the next candidate sampled.

    A round refills just the groups that are missing. The step ends when no group is missing or no candidate is left.
    """

    def __init__(self, settings: DAPOAllocatorConfig) -> None:
        self._settings = settings

    def rounds(self, step: Step) -> Rounds:
        """The whole budget on the first groups, and up to max_batches times as much with the refills."""
        wanted = max(len(step.ids) // self._settings.max_batches, 1)
        candidates = step.ids[: wanted * self._settings.max_batches]
        sampled: list[str] = []
        informative: set[str] = set()
        batch = even_counts(candidates[:wanted], step.budget)
        num_rounds = 0
        while batch:
            outcomes = yield batch
            informative.update(id_ for id_, (low, high) in reward_ranges(outcomes).items() if low < high)
            sampled += batch
            num_rounds += 1
            refill = candidates[len(sampled) : len(sampled) + wanted - len(informative)]
            batch = dict.fromkeys(refill, step.budget // wanted)
        return Report(
            kept={prompt_id: () for prompt_id in sampled if prompt_id not in informative},
            metrics={"allocation/rounds": float(num_rounds)},
        )
