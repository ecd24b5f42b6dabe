"""Builders for the tests of single allocators: prompts of one letter each, and scripted outcomes."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from gvm_ray.allocators import AllocationDriver
from gvm_ray.types import Allocation, AllocationReport, GroupOutcome, GroupRef, Prompt

NAN = float("nan")
Rewards = Callable[[str, int], Sequence[float]]


def prompts(ids: Iterable[str]) -> list[Prompt]:
    """One prompt for each id."""
    return [Prompt(prompt_id=id_, text=id_, token_ids=np.zeros(1, dtype=np.int32), answer="1") for id_ in ids]


def outcome(prompt_id: str, rewards: Sequence[float], *, first_index: int = 0) -> GroupOutcome:
    """Scored samples of a prompt, NaN being unscored."""
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


def accepted(number: int, count: int) -> list[float]:
    """So many rewards of 1 among `count`, the others 0."""
    return [1.0] * number + [0.0] * (count - number)


def all_equal(solved: str = "", failed: str = "") -> Rewards:
    """Rewards 1 for the prompts named as solved, 0 for those named as failed, and half and half for the others."""

    def rewards(prompt_id: str, count: int) -> Sequence[float]:
        return accepted(count if prompt_id in solved else 0 if prompt_id in failed else count // 2, count)

    return rewards


def run_step(
    strategy: AllocationDriver, ids: Iterable[str], *, budget: int, rewards: Rewards, step: int = 0
) -> tuple[list[Allocation], AllocationReport]:
    """The rounds of a step whose samples get these rewards, and its report."""
    steps = strategy
    rounds = []
    allocation = steps.plan(prompts(ids), step=step, budget=budget)
    while allocation.total:
        rounds.append(allocation)
        outcomes = [outcome(id_, rewards(id_, count)) for id_, count in allocation.counts.items() if count]
        allocation = steps.observe(outcomes, step=step)
    return rounds, steps.report(step=step)
