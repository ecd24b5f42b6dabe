"""DAPO's rounds: what is dropped, what takes its place, and when it ends."""

import pytest

from gvm_ray.allocators import AllocationDriver
from gvm_ray.allocators.base import RunShape
from gvm_ray.allocators.rivals.dapo import DAPOAllocatorConfig
from tests.allocator_cases import all_equal, run_step
from tests.builders import NAN, outcome, prompts


def dapo(**settings):
    return AllocationDriver.of(DAPOAllocatorConfig(**settings), accept_threshold=0.5)


def test_groups_of_equal_rewards_are_replaced_until_none_is_missing() -> None:
    rounds, report = run_step(dapo(), "abcdefghi", budget=12, rewards=all_equal(solved="ae", failed="b"))
    assert [dict(allocation.counts) for allocation in rounds] == [
        {"a": 4, "b": 4, "c": 4},  # a and b are dropped
        {"d": 4, "e": 4},  # e as well
        {"f": 4},
    ]
    assert all(allocation.trained_on for allocation in rounds)
    assert report.estimator.kept == {"a": (), "b": (), "e": ()}
    assert report.estimator.num_prompts == 3
    assert report.estimator.accept_rates == {}
    assert report.metrics["allocation/total"] == 24
    assert report.metrics["allocation/zero"] == 3
    assert report.metrics["allocation/dropped"] == 3
    assert report.metrics["allocation/rounds"] == 3


def test_it_ends_with_the_candidates() -> None:
    rounds, report = run_step(dapo(), "abcdef", budget=8, rewards=all_equal(failed="abcde"))
    assert [list(allocation.counts) for allocation in rounds] == [["a", "b"], ["c", "d"], ["e", "f"]]
    assert report.estimator.num_prompts == 1
    assert report.metrics["allocation/total"] == 3 * 8


@pytest.mark.parametrize("settings", [{"refill": False}, {"max_batches": 1}])
def test_without_a_refill_the_batch_shrinks(settings: dict[str, object]) -> None:
    rounds, report = run_step(dapo(**settings), "abc", budget=11, rewards=all_equal(solved="b"))
    assert [dict(allocation.counts) for allocation in rounds] == [{"a": 4, "b": 4, "c": 3}]
    assert report.estimator.kept == {"b": ()}
    assert report.estimator.num_prompts == 2


def test_no_more_batches_of_an_uneven_number_of_candidates_than_allowed() -> None:
    _, report = run_step(dapo(), "abcdefgh", budget=8, rewards=all_equal(failed="abcdefgh"))
    assert report.metrics["allocation/total"] == 3 * 8  # 8 // 3 = 2 prompts a batch: g and h are never drawn
    assert report.estimator.num_prompts == 0


def test_variance_is_of_the_scored_rewards_of_any_scale() -> None:
    strategy = dapo()
    assert dict(strategy.plan(prompts("abcdefghi"), step=0, budget=12).counts) == {"a": 4, "b": 4, "c": 4}
    # a differs below the threshold, and over two outcomes; b only by what is unscored; c is unscored
    outcomes = [outcome("a", [0.1, 0.1]), outcome("a", [0.2, 0.1]), outcome("b", [1, NAN]), outcome("c", [NAN] * 4)]
    assert dict(strategy.observe(outcomes, step=0).counts) == {"d": 4, "e": 4}


def test_rewards_within_the_tolerance_are_equal() -> None:
    strategy = dapo(tolerance=0.1, refill=False)
    strategy.plan(prompts("abc"), step=0, budget=6)
    strategy.observe([outcome("a", [0.7, 0.8]), outcome("b", [0.7, 0.81]), outcome("c", [0.5, 0.5])], step=0)
    assert strategy.report(step=0).estimator.kept == {"a": (), "c": ()}


def test_the_settings_say_how_many_candidates_and_what_a_step_may_cost() -> None:
    config = DAPOAllocatorConfig(max_batches=4)
    wide = RunShape(prompts_per_step=16, samples_per_prompt=8, max_staleness=0, checkpoint_every_steps=1)
    assert config.needs(wide).candidates == 64
    assert config.max_budget_factor == 4
    assert DAPOAllocatorConfig(max_batches=4, refill=False).max_budget_factor == 1
    assert DAPOAllocatorConfig(max_batches=4, refill=False).needs(wide).candidates == 16
    shape = RunShape(prompts_per_step=4, samples_per_prompt=1, max_staleness=0, checkpoint_every_steps=1)
    with pytest.raises(ValueError, match="write samples_per_prompt=2 or more"):
        config.check_fits(shape)
