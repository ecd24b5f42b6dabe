"""What allocators that choose among prompts, or among their samples, share: groups, their rewards, and the report."""

from collections.abc import Mapping, Sequence

import numpy as np

from gvm_ray.allocators.counts import report_counts
from gvm_ray.allocators.history import StepHistory
from gvm_ray.types import AllocationReport, EstimatorTerms, GroupOutcome, Prompt


def unique_ids(prompts: Sequence[Prompt]) -> list[str]:
    """Their ids in order of first appearance."""
    assert prompts, "a step needs at least one prompt"
    return list(dict.fromkeys(prompt.prompt_id for prompt in prompts))


def num_groups(budget: int, *, group_size: int, num_candidates: int) -> int:
    """How many prompts get samples: as many as have room for `group_size` each, and one at least."""
    return min(max(budget // group_size, 1), num_candidates)


def even_counts(prompt_ids: Sequence[str], budget: int) -> dict[str, int]:
    """prompt_id -> samples, as even as integers allow: what is left over goes one each to the first."""
    each, left_over = divmod(budget, len(prompt_ids))
    return {prompt_id: each + (index < left_over) for index, prompt_id in enumerate(prompt_ids)}


def reward_ranges(outcomes: Sequence[GroupOutcome]) -> dict[str, tuple[float, float]]:
    """prompt_id -> lowest and highest reward of its scored samples; equal ones have zero variance."""
    ranges: dict[str, tuple[float, float]] = {}
    for outcome in outcomes:
        rewards = outcome.rewards[outcome.scored]
        if rewards.size:
            low, high = ranges.get(outcome.prompt_id, (np.inf, -np.inf))
            ranges[outcome.prompt_id] = (min(low, float(rewards.min())), max(high, float(rewards.max())))
    return ranges


def report_selection(
    samples: StepHistory,
    candidate_ids: Sequence[str],
    counts: Mapping[str, int],
    *,
    kept: Mapping[str, tuple[int, ...]] | None = None,
    accept_rates: Mapping[str, float] | None = None,
    pilots: Mapping[str, tuple[int, ...]] | None = None,
    estimates: Mapping[str, float] | None = None,
) -> AllocationReport:
    """The report of a step in which some candidates got samples, and the others none.

    The accept rate of a candidate without samples is NaN. A prompt of which no sample is kept isn't averaged over;
    `allocation/dropped` counts those.

    Args:
        samples: what the step saw, started with `candidate_ids`.
        candidate_ids: [P] the prompts that were to choose from.
        counts: prompt_id -> n of those that got any.
        kept: prompt_id -> sample indices to train on, of the prompts with others besides.
        accept_rates: as in `EstimatorTerms`, where the allocator has them.
        pilots: likewise.
        estimates: further metrics.
    """
    kept = kept or {}
    dropped = [prompt_id for prompt_id, indices in kept.items() if not indices]
    all_counts = {prompt_id: counts.get(prompt_id, 0) for prompt_id in candidate_ids}
    sampled = np.fromiter(all_counts.values(), dtype=np.int64) > 0
    terms = EstimatorTerms(
        num_prompts=int(sampled.sum()) - len(dropped),
        accept_rates=accept_rates or {},
        pilots=pilots or {},
        kept=kept,
    )
    return report_counts(
        all_counts,
        accept_rates=np.where(sampled, samples.accept_rates(), np.nan),
        estimator=terms,
        estimates={"allocation/dropped": float(len(dropped)), **(estimates or {})},
    )
