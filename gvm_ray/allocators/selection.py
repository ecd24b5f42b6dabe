"""Helpers of allocators that select prompts or samples: group counts, sample indices, reward ranges."""

from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gvm_ray.allocators.base import AllocatorConfig, GroupSize, Needs, RunShape, SmallestGroup
from gvm_ray.maths.advantages import has_signal
from gvm_ray.settings import Count, NonNegative
from gvm_ray.types import Counts, Float64Array, GroupOutcome


class CandidateAllocatorConfig(AllocatorConfig):
    """Settings of allocators that select candidates: one group of samples each, until the budget is spent.

    The other candidates get no samples, and return in the next epoch.
    """

    # Prompts to select from, more than the budget makes groups; none = prompts_per_step.
    candidates_per_step: Count | None = None
    group_size: GroupSize = 8  # n of a selected prompt; the budget's remainder goes one each to the first prompts

    def num_groups(self, run: RunShape) -> int:
        """The number of groups that the budget makes."""
        return run.prompts_per_step * run.samples_per_prompt // self.group_size

    def needs(self, run: RunShape) -> Needs:
        """Candidates to select from."""
        return Needs(candidates=self.candidates_per_step or run.prompts_per_step)

    def smallest_group(self, run: RunShape) -> SmallestGroup:
        """The group size: all groups are alike."""
        return SmallestGroup(setting="allocator.group_size", value=self.group_size)

    def check_fits(self, run: RunShape) -> None:
        """Check that the budget makes at least one group, and that there are more candidates than groups."""
        budget = run.prompts_per_step * run.samples_per_prompt
        groups, candidates = self.num_groups(run), self.needs(run).candidates
        if groups == 0:
            raise ValueError(
                f"allocator.group_size={self.group_size} is above the step's budget of {budget} samples; "
                f"write group_size={max(2, run.samples_per_prompt)}"
            )
        if candidates <= groups:
            raise ValueError(
                f"{candidates} candidates leave the allocator nothing to select: the budget of {budget} samples makes "
                f"{groups} groups of allocator.group_size={self.group_size}; write candidates_per_step={4 * groups}"
            )


def num_groups(budget: int, *, group_size: int, num_candidates: int) -> int:
    """The number of prompts that get samples: as many as the budget allows at `group_size` each, and at least one."""
    return min(max(budget // group_size, 1), num_candidates)


def even_counts(prompt_ids: Sequence[str], budget: int) -> Counts:
    """prompt_id -> number of samples, as even as integers allow; the remainder goes one each to the first prompts."""
    each, left_over = divmod(budget, len(prompt_ids))
    sizes = np.full(len(prompt_ids), each)
    sizes[:left_over] += 1
    return Counts(prompt_ids, sizes)


def sample_indices(outcomes: Sequence[GroupOutcome]) -> dict[str, tuple[int, ...]]:
    """prompt_id -> indices of its samples in a round."""
    indices: dict[str, tuple[int, ...]] = {}
    for outcome in outcomes:
        indices[outcome.prompt_id] = (*indices.get(outcome.prompt_id, ()), *outcome.sample_indices)
    return indices


class ZeroVarianceSettings(AllocatorConfig):
    """Settings of allocators that drop groups of equal rewards, which train nothing under a group baseline."""

    refill: bool  # true: other candidates replace dropped groups, at their own cost; false: the batch shrinks
    max_batches: Count = 3  # budgets that a step costs at most with `refill`
    tolerance: NonNegative = 0.0  # rewards of a group that differ by no more are equal

    @property
    def max_budget_factor(self) -> int:
        """The budgets that refills may cost."""
        return self.max_batches if self.refill else 1


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnGroups:
    """The groups of a step that were drawn in the order of its candidates."""

    sampled: Sequence[str]  # prompt ids in that order
    informative: Collection[str]  # those whose rewards differ
    outcomes: Sequence[GroupOutcome]
    num_rounds: int

    @property
    def dropped(self) -> dict[str, tuple[int, ...]]:
        """`Report.kept` that drops every group without different rewards."""
        return {prompt_id: () for prompt_id in self.sampled if prompt_id not in self.informative}


def draw_groups(
    candidates: Sequence[str], *, wanted: int, budget: int, tolerance: float
) -> Generator[Mapping[str, int], Sequence[GroupOutcome], DrawnGroups]:
    """Draw rounds of groups: the first candidates share the budget, and each group of equal rewards is replaced by one
    of the next candidate, until no group is missing or no candidate is left.

    Args:
        candidates: prompt ids; the first `wanted`, if none is to be replaced.
        wanted: number of groups, at least 1.
        budget: number of samples of these groups; the replacements come on top.
        tolerance: rewards of a group that differ by no more are equal.
    """
    sampled: list[str] = []
    informative: set[str] = set()
    outcomes: list[GroupOutcome] = []
    num_rounds = 0
    batch: Mapping[str, int] = even_counts(candidates[:wanted], budget)
    while batch:
        drawn = yield batch
        outcomes += drawn
        informative |= {id_ for id_, ends in reward_ranges(drawn).items() if has_signal(*ends, tolerance=tolerance)}
        sampled += batch
        num_rounds += 1
        missing = candidates[len(sampled) : len(sampled) + wanted - len(informative)]
        batch = dict.fromkeys(missing, budget // wanted)
    return DrawnGroups(sampled=sampled, informative=informative, outcomes=outcomes, num_rounds=num_rounds)


def rewards_by_prompt(outcomes: Sequence[GroupOutcome]) -> dict[str, Float64Array]:
    """prompt_id -> rewards of its scored samples, at least one."""
    rewards: dict[str, list[Float64Array]] = {}
    for outcome in outcomes:
        if outcome.scored.any():
            rewards.setdefault(outcome.prompt_id, []).append(outcome.rewards[outcome.scored])
    return {prompt_id: np.concatenate(parts) for prompt_id, parts in rewards.items()}


def reward_ranges(outcomes: Sequence[GroupOutcome]) -> dict[str, tuple[float, float]]:
    """prompt_id -> lowest and highest reward of its scored samples."""
    return {id_: (float(own.min()), float(own.max())) for id_, own in rewards_by_prompt(outcomes).items()}
