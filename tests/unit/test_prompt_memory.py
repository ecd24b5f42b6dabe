"""What is remembered of a prompt over its visits."""

import json
from typing import Any

import numpy as np
import pytest

from gvm_ray.allocators import AllocationDriver, Allocator, Rounds, Step
from gvm_ray.allocators.memory import PromptMemory
from tests.builders import outcome, prompts


class Visits(Allocator):
    """As many rounds of one sample a prompt as there are batches of outcomes, and none after a round without any."""

    def __init__(self, decay: float = 1.0) -> None:
        self.memory_decay = decay

    def rounds(self, step: Step) -> Rounds:
        while (yield dict.fromkeys(step.ids, 1)):
            pass


def visit(driver: AllocationDriver, *rounds: dict[str, list[float]]) -> None:
    """One step with these rounds."""
    driver.plan(prompts(rounds[0]), step=0, budget=1)
    for rewards in rounds:
        driver.observe([outcome(prompt_id, values) for prompt_id, values in rewards.items()], step=0)
    driver.observe([], step=0)
    driver.report(step=0)


def driver_of(decay: float = 1.0) -> AllocationDriver:
    return AllocationDriver(Visits(decay), accept_threshold=0.5)


def counts(memory: PromptMemory, *prompt_ids: str) -> list[list[float]]:
    return [each.tolist() for each in memory.counts(prompt_ids)]


@pytest.mark.parametrize(("decay", "trials", "successes"), [(1.0, 6, 3), (0.5, 4, 2.5), (0.0, 2, 2)])
def test_a_visit_decays_the_counts_of_earlier_ones_once(decay: float, trials: float, successes: float) -> None:
    driver = driver_of(decay)
    visit(driver, {"a": [1, 0], "b": [1]}, {"a": [0, 0]})
    visit(driver, {"a": [1]}, {"a": [1]})
    assert counts(driver.memory, "a", "b") == [[successes, 1], [trials, 1]]


def test_unscored_samples_are_no_visit() -> None:
    driver = driver_of(0.5)
    visit(driver, {"a": [1, 0]})
    visit(driver, {"a": [float("nan")]})
    visit(driver, {"a": []})
    assert counts(driver.memory, "a") == [[1], [2]]


def test_rates_are_posterior_means_and_nan_where_nothing_tells() -> None:
    driver = driver_of()
    visit(driver, {"a": [1, 1, 1, 0], "b": [0]})
    np.testing.assert_array_equal(driver.memory.accept_rates(["x", "a", "b", "a"]), [np.nan, 0.75, 0, 0.75])
    rates = driver.memory.accept_rates(["x", "a", "b"], prior_successes=1, prior_failures=3)
    np.testing.assert_allclose(rates, [1 / 4, 4 / 8, 1 / 5])
    assert driver.memory.prompt_ids == ("a", "b")  # asking adds no prompt


def test_a_step_knows_what_it_saw_itself() -> None:
    seen: list[list[list[float]]] = []

    class Looks(Visits):
        def rounds(self, step: Step) -> Rounds:
            yield from super().rounds(step)
            seen.append(counts(step.samples, *step.ids))

    driver = AllocationDriver(Looks(), accept_threshold=0.5)
    visit(driver, {"a": [1, 1]})
    visit(driver, {"a": [1, 0, float("nan")], "b": [0]}, {"a": [1]})
    assert seen == [[[2], [2]], [[2, 0], [3, 1]]]
    assert counts(driver.memory, "a") == [[4], [5]]


def test_a_growing_memory_is_not_copied_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []

    def concatenate(arrays: Any, join: Any = np.concatenate) -> Any:
        if arrays[0].dtype.names:
            copied.append(len(arrays[0]))
        return join(arrays)

    monkeypatch.setattr(np, "concatenate", concatenate)
    memory = PromptMemory()
    for first in range(0, 2000, 10):
        group = [outcome(str(i), [1, 0]) for i in range(first, first + 10)]
        memory.add(PromptMemory.of(group, accept_threshold=0.5))
        memory.add(PromptMemory.of(group[:1], accept_threshold=0.5))
        (successes, trials), asked = memory.counts([str(first), str(first + 9), "x"]), len(memory)
        assert (successes.tolist(), trials.tolist(), asked) == ([2, 1, 0], [4, 2, 0], first + 10)
    assert len([rows for rows in copied if rows > 100]) < 50
    other = PromptMemory()
    other.load_state_dict(memory.state_dict())
    assert other.state_dict() == memory.state_dict()
    assert len(other.state_dict()) == 2000


def test_a_memory_survives_json() -> None:
    driver = driver_of()
    visit(driver, {"a": [1, 0], "b": [1]})
    state = json.loads(json.dumps(driver.state_dict()))
    assert state == {"prompts": {"a": [2.0, 1.0, None], "b": [1.0, 1.0, None]}, "strategy": {}}
    other = driver_of()
    other.load_state_dict(state)
    assert other.state_dict() == state
    assert len(other.memory) == 2
    empty = driver_of()
    empty.load_state_dict({"prompts": {}, "strategy": {}})
    assert counts(empty.memory, "a") == [[0], [0]]
