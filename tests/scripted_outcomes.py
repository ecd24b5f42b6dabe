"""An allocator's step driven by rewards that are written out."""

from collections.abc import Mapping, Sequence
from typing import Any

from allocator_cases import outcome, prompts

from gvm_ray.allocators import AllocationDriver
from gvm_ray.types import AllocationReport


def run_step(
    allocator: AllocationDriver,
    ids: str,
    *,
    budget: int,
    rewards: Mapping[str, Sequence[float]],
    step: int = 0,
    **arguments: Any,
) -> tuple[list[dict[str, int]], AllocationReport]:
    """The counts of each round, and the report; a prompt's samples have its rewards in turn, over and over."""
    steps = allocator
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
