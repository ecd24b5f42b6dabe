"""An allocator's steps whose samples have the rewards that a test gives them; prompts are of one letter each."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gvm_ray.allocators import AllocationDriver
from gvm_ray.types import Allocation, AllocationReport
from tests.builders import outcome, prompts

Rewards = Callable[[str, int], Sequence[float]]


def accepted(number: int, count: int) -> list[float]:
    """So many rewards of 1 among `count`, the others 0."""
    return [1.0] * number + [0.0] * (count - number)


def all_equal(solved: str = "", failed: str = "") -> Rewards:
    """Rewards 1 for the prompts named as solved, 0 for those named as failed, and half and half for the others."""

    def rewards(prompt_id: str, count: int) -> Sequence[float]:
        return accepted(count if prompt_id in solved else 0 if prompt_id in failed else count // 2, count)

    return rewards


def run_step(
    driver: AllocationDriver, ids: Iterable[str], *, budget: int, rewards: Rewards, step: int = 0, **arguments: Any
) -> tuple[list[Allocation], AllocationReport]:
    """The rounds of a step whose samples get these rewards, and its report."""
    rounds = []
    drawn: Counter[str] = Counter()
    allocation = driver.plan(prompts(ids), step=step, budget=budget, **arguments)
    while allocation.total:
        rounds.append(allocation)
        outcomes = []
        for id_, count in allocation.counts.items():
            if count:
                outcomes.append(outcome(id_, rewards(id_, count), first_index=drawn[id_]))
                drawn[id_] += count
        allocation = driver.observe(outcomes, step=step)
    return rounds, driver.report(step=step)


def run_script(
    driver: AllocationDriver, ids: str, *, rewards: Mapping[str, Sequence[float]], **arguments: Any
) -> tuple[list[dict[str, int]], AllocationReport]:
    """The counts of each round of a step, and its report; a prompt's samples have its rewards in turn, again and
    again."""
    scripts = {id_: itertools.cycle(values) for id_, values in rewards.items()}
    rounds, report = run_step(
        driver, ids, rewards=lambda id_, count: list(itertools.islice(scripts[id_], count)), **arguments
    )
    return [dict(allocation.counts) for allocation in rounds], report
