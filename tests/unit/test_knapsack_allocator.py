"""Knapsack RL's rounds; that its counts are the best of all is tested with the formula."""

import pytest

from gvm_ray.allocators import AllocationDriver
from gvm_ray.allocators.base import RunShape
from gvm_ray.allocators.rivals.knapsack import KnapsackAllocatorConfig
from tests.allocator_cases import run_script


def knapsack(**settings):
    return AllocationDriver.of(KnapsackAllocatorConfig(**settings), accept_threshold=0.5)


REWARDS = {"a": [0, 0, 0, 1], "b": [1, 1, 1, 0], "c": [1], "d": [0]}


def test_the_first_visit_is_even_and_the_second_takes_the_largest_gains() -> None:
    allocator = knapsack()
    rounds, _ = run_script(allocator, "abcd", budget=18, rewards=REWARDS)
    assert rounds == [{"a": 5, "b": 5, "c": 4, "d": 4}]
    allocator = knapsack()
    run_script(allocator, "abcd", budget=16, rewards=REWARDS)
    # gains of a and b at p = 1/4 and 3/4 are 3/16 (3/4) and 3/16 (1/4) times u_n = p^n (1 - p) + (1 - p)^n p,
    # u_2, u_3 ... = .1875, .1172, .0830, .0612, .0456: b's first, a third of .1875, comes just after a's fourth
    rounds, report = run_script(allocator, "abcd", budget=13, rewards=REWARDS, step=1)
    assert rounds == [{"a": 6, "b": 3, "c": 2, "d": 2}]
    assert report.metrics["allocation/p_hat_mean"] == 0.5


def test_only_the_last_visit_counts() -> None:
    allocator = knapsack()
    run_script(allocator, "ab", budget=8, rewards={"a": [1], "b": [0, 1]})
    run_script(allocator, "ab", budget=8, rewards={"a": [0, 1], "b": [1]}, step=1)
    rounds, _ = run_script(allocator, "ab", budget=8, rewards={"a": [1], "b": [1]}, step=2)
    assert rounds == [{"a": 6, "b": 2}]


def test_what_is_left_goes_to_the_never_solved_and_then_to_the_always_solved() -> None:
    allocator = knapsack(max_samples=6)
    run_script(allocator, "abcd", budget=16, rewards=REWARDS)
    for budget, counts in ((19, [6, 6, 2, 5]), (21, [6, 6, 3, 6])):
        again = knapsack(max_samples=6)
        again.load_state_dict(allocator.state_dict())
        rounds, _ = run_script(again, "abcd", budget=budget, rewards=REWARDS, step=1)
        assert list(rounds[0].values()) == counts


def test_a_prompt_not_seen_before_has_the_rate_of_the_settings() -> None:
    allocator = knapsack(unseen_accept_rate=1.0)
    run_script(allocator, "a", budget=4, rewards={"a": [0, 1]})
    rounds, report = run_script(allocator, "ax", budget=8, rewards={"a": [0, 1], "x": [1]}, step=1)
    assert rounds == [{"a": 6, "x": 2}]
    assert report.estimator.accept_rates == {"a": 0.5, "x": 1.0}
    _, report = run_script(allocator, "ax", budget=8, rewards={"a": [0], "x": [0]}, step=2)
    assert report.estimator.accept_rates == {"a": 0.5, "x": 1.0}  # of the last visit
    _, report = run_script(allocator, "ax", budget=8, rewards={"a": [1], "x": [1]}, step=3)
    assert report.estimator.accept_rates == pytest.approx({"a": 0.5 / 7, "x": 0.5 / 3})  # none of 6, none of 2


def test_bounds_admit_the_mean() -> None:
    shape = RunShape(prompts_per_step=4, samples_per_prompt=1, max_staleness=0, checkpoint_every_steps=1)
    with pytest.raises(ValueError, match=r"samples_per_prompt=1 is outside allocator.min_samples=2 to max_samples=128"):
        KnapsackAllocatorConfig().check_fits(shape)
