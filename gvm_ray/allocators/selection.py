"""What allocators that choose among prompts, or among their samples, share: groups and their rewards."""

from collections.abc import Sequence

import numpy as np

from gvm_ray.types import GroupOutcome


def num_groups(budget: int, *, group_size: int, num_candidates: int) -> int:
    """Prompts that get samples: as many as have room for `group_size` each, and one at least."""
    return min(max(budget // group_size, 1), num_candidates)


def even_counts(prompt_ids: Sequence[str], budget: int) -> dict[str, int]:
    """prompt_id -> samples, as even as integers allow: what is left over goes one each to the first."""
    each, left_over = divmod(budget, len(prompt_ids))
    return {prompt_id: each + (index < left_over) for index, prompt_id in enumerate(prompt_ids)}


def sample_indices(outcomes: Sequence[GroupOutcome]) -> dict[str, tuple[int, ...]]:
    """prompt_id -> indices of its samples in a round."""
    indices: dict[str, tuple[int, ...]] = {}
    for outcome in outcomes:
        indices[outcome.prompt_id] = (*indices.get(outcome.prompt_id, ()), *outcome.sample_indices)
    return indices


def reward_ranges(outcomes: Sequence[GroupOutcome]) -> dict[str, tuple[float, float]]:
    """prompt_id -> lowest and highest reward of its scored samples; equal ones have zero variance."""
    ranges: dict[str, tuple[float, float]] = {}
    for outcome in outcomes:
        rewards = outcome.rewards[outcome.scored]
        if rewards.size:
            low, high = ranges.get(outcome.prompt_id, (np.inf, -np.inf))
            ranges[outcome.prompt_id] = (min(low, float(rewards.min())), max(high, float(rewards.max())))
    return ranges
