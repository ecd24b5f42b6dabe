"""Counts as arrays with ids: a mapping like any other, made from one, and made in a plan without dictionaries."""

import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from gvm_ray.allocators import AllocationDriver, Allocator, Rounds, Step
from gvm_ray.allocators.uniform import UniformAllocatorConfig
from gvm_ray.exceptions import ConfigError
from gvm_ray.types import Allocation, Counts
from tests.builders import outcome, prompts


def test_they_are_a_mapping() -> None:
    counts = Counts(["a", "b", "c"], [2, 0, 3])
    assert counts == {"a": 2, "b": 0, "c": 3} == dict(counts)
    assert counts != {"a": 2, "b": 0}
    assert (counts["c"], counts.get("x"), "b" in counts, "x" in counts, len(counts)) == (3, None, True, False, 3)
    assert (list(counts), list(counts.values())) == (["a", "b", "c"], [2, 0, 3])
    assert repr(counts) == "{'a': 2, 'b': 0, 'c': 3}"
    assert pickle.loads(pickle.dumps(counts)) == counts
    with pytest.raises(KeyError):
        counts["x"]


@pytest.mark.parametrize("counts", [Counts(["a", "b", "c"], np.array([2, 0, 3])), {"a": 2, "b": 0, "c": 3}])
def test_arrays_and_dictionaries_say_the_same(counts: Mapping[str, int]) -> None:
    columns = Counts.of(counts)
    assert (columns.total, columns.sizes.tolist()) == (5, [2, 0, 3])
    assert list(columns.sampled()) == [("a", 2), ("c", 3)] == list(Allocation(counts=counts).sampled())
    assert columns.at(["c", "x", "a", "b"]).tolist() == [3, 0, 2, 0]
    assert Allocation(counts=counts).total == 5
    assert Counts.of(columns) is columns


def test_there_may_be_none() -> None:
    assert (Counts.of({}).total, list(Counts.of({}).sampled()), Allocation.empty().total) == (0, [], 0)
    assert not Counts.of({})


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([2, -1], "prompt 'b' gets -1 samples; give it an integer >= 0"),
        ([2, 1.5], "prompt 'a' gets 2.0 samples"),
        ([2, None], "prompt 'b' gets None samples"),
        ([True, False], "prompt 'a' gets True samples"),
        ([2], r"sizes have shape \(1,\) for 2 prompts"),
    ],
)
def test_what_is_no_count_is_refused(sizes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Counts(["a", "b"], sizes)


class Yields(Allocator):
    """One round of these counts."""

    def __init__(self, counts: Mapping[str, Any]) -> None:
        self._counts = counts

    def rounds(self, step: Step) -> Rounds:
        yield self._counts


def test_a_strategy_yields_either() -> None:
    for counts in ({"b": 2, "a": 1}, Counts(["b", "a"], [2, 1])):
        driver = AllocationDriver(Yields(counts), accept_threshold=0.5)
        assert driver.plan(prompts("abc"), step=0, budget=3).counts == {"b": 2, "a": 1}
        driver.observe([outcome("b", [1, 0]), outcome("a", [1])], step=0)
        assert driver.report(step=0).histograms["samples_per_prompt"].tolist() == [1, 2, 0]


def test_a_wrong_round_names_the_strategy_the_prompt_and_the_value() -> None:
    driver = AllocationDriver(Yields({"a": 1, "b": -3}), accept_threshold=0.5)
    with pytest.raises(ConfigError, match=r"Yields\.rounds yielded a wrong round: prompt 'b' gets -3 samples"):
        driver.plan(prompts("ab"), step=0, budget=3)


def test_a_plan_makes_no_dictionary_of_its_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(counts: Counts) -> dict[str, int]:
        raise AssertionError("looked up one by one")

    monkeypatch.setattr(Counts, "_by_id", property(refuse))
    driver = AllocationDriver.of(UniformAllocatorConfig(), accept_threshold=0.5)
    allocation = driver.plan(prompts("abc"), step=0, budget=8)
    assert list(allocation.sampled()) == [("a", 3), ("b", 3), ("c", 2)]
    driver.observe([outcome("a", [1, 0, 0]), outcome("b", [1, 1, 1]), outcome("c", [0, 0])], step=0)
    assert driver.report(step=0).metrics["allocation/total"] == 8
