"""Steps of an allocator that overlap, fail, come in the wrong order, or have nothing to sample."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from gvm_ray.allocators import AllocationDriver, Allocator, Report, Rounds, Step
from gvm_ray.allocators.gvm import GVMAllocatorConfig
from gvm_ray.allocators.uniform import UniformAllocatorConfig
from gvm_ray.exceptions import ConfigError
from gvm_ray.types import Allocation, EstimatorTerms, GroupOutcome
from tests import builders
from tests.builders import prompts


def outcome(prompt_id: str, rewards: Sequence[float]) -> GroupOutcome:
    """Samples whose gradient norms are all 1."""
    return builders.outcome(prompt_id, rewards, gradient_norms=np.ones(len(rewards)))


class Scripted(Allocator):
    """An allocator whose steps are a generator function of the budget."""

    def __init__(self, script: Callable[[int], Any]) -> None:
        self.script = script

    def rounds(self, step: Step) -> Rounds:
        return self.script(step.budget)


def scripted(script: Callable[[int], Any]) -> AllocationDriver:
    return AllocationDriver(Scripted(script), accept_threshold=0.5)


def test_overlapping_steps_that_share_a_prompt_don_t_mix_their_samples() -> None:
    steps = AllocationDriver.of(
        GVMAllocatorConfig(pilot_samples=2, prior_successes=0, prior_failures=0, alpha=1e-15), accept_threshold=0.5
    )
    assert steps.plan(prompts("ab"), step=0, budget=12).counts == {"a": 2, "b": 2}
    assert steps.plan(prompts("bc"), step=1, budget=12).counts == {"b": 2, "c": 2}
    # step 0: p = 1, 1; step 1: p = 1/2, 1, so weights sqrt(2) and 1: 7.03 and 4.97
    assert steps.observe([outcome("b", [1, 0]), outcome("c", [1, 1])], step=1).counts == {"b": 5, "c": 3}
    assert steps.observe([outcome("a", [1, 1]), outcome("b", [1, 1])], step=0).counts == {"a": 4, "b": 4}
    assert steps.observe([outcome("b", [1] * 5), outcome("c", [0] * 3)], step=1).total == 0
    assert steps.observe([outcome("a", [0] * 4), outcome("b", [1] * 4)], step=0).total == 0
    reports = [steps.report(step=step) for step in (0, 1)]
    assert reports[0].estimator.accept_rates == {"a": 1, "b": 1}  # of the step's own pilots
    assert reports[1].estimator.accept_rates == {"b": 1 / 2, "c": 1}
    np.testing.assert_allclose(reports[0].histograms["accept_rate"], [2 / 6, 1])
    np.testing.assert_allclose(reports[1].histograms["accept_rate"], [6 / 7, 2 / 5])
    assert steps.memory.counts(["b"])[1] == [13]


def test_allocations_with_nothing_to_sample_are_passed_over() -> None:
    sent = []

    def script(budget: int) -> Rounds:
        for count in (0, budget, 0, 0, 1, 0):
            sent.append((yield Allocation(counts={"a": count})))
        return Report(metrics={"allocation/total": budget + 1.0})

    steps = scripted(script)
    assert steps.plan(prompts("a"), step=5, budget=3).counts == {"a": 3}
    first, second = [outcome("a", [1, 1, 1])], [outcome("a", [1])]
    assert steps.observe(first, step=5).counts == {"a": 1}
    assert steps.observe(second, step=5).total == 0
    assert sent == [[], first, [], [], second, []]
    assert steps.report(step=5).metrics["allocation/total"] == 4.0  # as the strategy has it


def test_a_step_that_needs_no_samples_is_finished_by_its_plan() -> None:
    def script(budget: int) -> Rounds:
        return Report(metrics={"allocation/spent": 0.0})
        yield

    steps = scripted(script)
    assert steps.plan(prompts("a"), step=0, budget=3).total == 0
    assert steps.report(step=0).metrics["allocation/spent"] == 0.0


def test_calls_in_the_wrong_order_are_refused() -> None:
    steps = AllocationDriver.of(UniformAllocatorConfig(), accept_threshold=0.5)
    with pytest.raises(AssertionError, match=r"step 3 is not waiting for outcomes; steps under way: \[\]"):
        steps.observe([], step=3)
    steps.plan(prompts("a"), step=3, budget=2)
    with pytest.raises(AssertionError, match="step 3 is under way"):
        steps.plan(prompts("a"), step=3, budget=2)
    with pytest.raises(AssertionError, match="step 3 has no report"):
        steps.report(step=3)
    steps.observe([outcome("a", [1, 0])], step=3)
    with pytest.raises(AssertionError, match="step 3 is finished"):
        steps.plan(prompts("a"), step=3, budget=2)
    steps.report(step=3)
    with pytest.raises(AssertionError, match="step 3 has no report"):
        steps.report(step=3)


def test_a_failed_step_is_forgotten_and_can_be_planned_anew() -> None:
    def script(budget: int) -> Rounds:
        if budget < 2:
            raise ConfigError("write 2 or more")
        outcomes = yield Allocation(counts={"a": budget})
        if not outcomes:
            raise ConfigError("no outcomes")
        return None

    steps = scripted(script)
    with pytest.raises(ConfigError, match="write 2 or more"):
        steps.plan(prompts("a"), step=0, budget=1)
    steps.plan(prompts("a"), step=0, budget=2)
    with pytest.raises(ConfigError, match="no outcomes"):
        steps.observe([], step=0)
    assert steps.plan(prompts("a"), step=0, budget=4).counts == {"a": 4}
    assert steps.observe([outcome("a", [1] * 4)], step=0).total == 0


def test_a_strategy_needs_no_report_and_can_give_only_one() -> None:
    def script(budget: int) -> Any:
        yield {"a": budget}
        return None if budget > 1 else {"a": 1}

    steps = scripted(script)
    steps.plan(prompts("ab"), step=0, budget=2)
    steps.observe([outcome("a", [1, 0])], step=0)
    report = steps.report(step=0)
    assert report.estimator == EstimatorTerms(num_prompts=1)
    assert report.metrics == {
        "allocation/min": 0,
        "allocation/max": 2,
        "allocation/zero": 1,
        "allocation/total": 2,
    }
    np.testing.assert_array_equal(report.histograms["accept_rate"], [0.5, np.nan])
    steps.plan(prompts("a"), step=1, budget=1)
    with pytest.raises(ConfigError, match=r"Scripted.rounds returned \{'a': 1\}; end it with `return Report"):
        steps.observe([outcome("a", [1])], step=1)
