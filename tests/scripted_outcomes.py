"""Prompts and outcomes with rewards written out, and an allocator's step driven by them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gvm_ray.allocators import AllocatorSteps
from gvm_ray.protocols import AllocatorStrategy
from gvm_ray.types import AllocationReport, GroupOutcome, GroupRef, Prompt


def prompts(ids: str) -> list[Prompt]:
    """One prompt for each letter."""
    return [Prompt(prompt_id=id_, text=id_, token_ids=np.zeros(1, dtype=np.int32), answer="1") for id_ in ids]


def outcome(prompt_id: str, rewards: Sequence[float], *, first_index: int = 0) -> GroupOutcome:
    """Samples of one prompt with indices from `first_index` on."""
    n = len(rewards)
    return GroupOutcome(
        prompt_id=prompt_id,
        sample_indices=tuple(range(first_index, first_index + n)),
        rewards=np.array(rewards, dtype=np.float64),
        num_tokens=np.ones(n, dtype=np.int32),
        policy_versions=np.zeros(n, dtype=np.int32),
        truncated=np.zeros(n, dtype=np.bool_),
        ref=GroupRef(ref=prompt_id, index=0),
    )


def run_step(
    allocator: AllocatorStrategy,
    ids: str,
    *,
    budget: int,
    rewards: Mapping[str, Sequence[float]],
    step: int = 0,
    **arguments: Any,
) -> tuple[list[dict[str, int]], AllocationReport]:
    """The counts of each round, and the report; a prompt's samples have its rewards in turn, over and over."""
    steps = AllocatorSteps(allocator)
    allocation = steps.plan(prompts(ids), step=step, budget=budget, **arguments)
    rounds: list[dict[str, int]] = []
    drawn = dict.fromkeys(ids, 0)
    while allocation.total:
        rounds.append(dict(allocation.counts))
        outcomes = []
        for prompt_id, count in allocation.counts.items():
            script = rewards[prompt_id]
            indices = range(drawn[prompt_id], drawn[prompt_id] + count)
            outcomes.append(outcome(prompt_id, [script[i % len(script)] for i in indices], first_index=indices.start))
            drawn[prompt_id] += count
        allocation = steps.observe(outcomes, step=step)
    return rounds, steps.report(step=step)
