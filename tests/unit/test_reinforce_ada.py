"""Reinforce-Ada, estimated and sequential, in steps with written-out rewards."""

import pytest
from pydantic import ValidationError

from gvm_ray.allocators import AllocationDriver
from gvm_ray.allocators.base import RunShape
from gvm_ray.allocators.rivals.reinforce_ada_est import ReinforceAdaEstAllocatorConfig
from gvm_ray.allocators.rivals.reinforce_ada_seq import ReinforceAdaSeqAllocatorConfig
from gvm_ray.exceptions import ConfigError
from tests.allocator_cases import run_script
from tests.builders import NAN


def est(**settings):
    defaults = {"min_samples": 1, "prior_successes": 1, "prior_failures": 1, "epsilon": 1e-12}
    config = ReinforceAdaEstAllocatorConfig(**{**defaults, **settings})
    return AllocationDriver.of(config, accept_threshold=0.5)


def seq(**settings):
    config = ReinforceAdaSeqAllocatorConfig(**settings)
    return AllocationDriver.of(config, accept_threshold=0.5)


def shape(samples_per_prompt: int) -> RunShape:
    return RunShape(
        prompts_per_step=4, samples_per_prompt=samples_per_prompt, max_staleness=0, checkpoint_every_steps=1
    )


# --- estimated ---
def test_the_first_visit_is_even_and_the_second_goes_by_the_inverse_root() -> None:
    allocator = est(decay=1.0)
    rounds, report = run_script(allocator, "abc", budget=18, rewards={"a": [1], "b": [1, 0], "c": [0]})
    assert rounds == [{"a": 6, "b": 6, "c": 6}]
    assert report.estimator.accept_rates == {"a": 0.5, "b": 0.5, "c": 0.5}  # the prior's, not that of these samples
    assert report.metrics["allocation/p_hat_mean"] == 0.5
    # p: 7/8, 4/8, 1/8; in units of 1 / sqrt(7/8): 1, 1.323, 2.646 of 4.969, so 5.03, 6.66, 13.31 of 25
    rounds, report = run_script(allocator, "abc", budget=25, rewards={"a": [1], "b": [1], "c": [1]}, step=1)
    assert rounds == [{"a": 5, "b": 7, "c": 13}]
    assert report.estimator.baselines == pytest.approx({"a": 7 / 8, "b": 1 / 2, "c": 1 / 8})
    assert report.estimator.scales == pytest.approx({"a": (7 / 8) ** 0.5, "b": 0.5**0.5, "c": 0.125**0.5})


def test_earlier_visits_are_forgotten_by_the_decay() -> None:
    allocator = est(decay=0.25)
    run_script(allocator, "a", budget=4, rewards={"a": [1]})
    run_script(allocator, "a", budget=4, rewards={"a": [0]}, step=1)
    _, report = run_script(allocator, "a", budget=4, rewards={"a": [0]}, step=2)
    assert report.estimator.baselines == pytest.approx({"a": (1 + 1) / (2 + 1 + 4)})


def test_bounds_hold_and_the_rest_is_shared() -> None:
    allocator = est(min_samples=4, max_samples=8)
    run_script(allocator, "abc", budget=24, rewards={"a": [1], "b": [0], "c": [0]})
    rounds, _ = run_script(allocator, "abc", budget=19, rewards={"a": [1], "b": [0], "c": [0]}, step=1)
    assert rounds == [{"a": 4, "b": 8, "c": 7}]


def test_advantages_are_left_alone_without_rescaling() -> None:
    _, report = run_script(est(rescale_advantages=False), "ab", budget=8, rewards={"a": [1], "b": [0]})
    assert report.estimator.baselines == report.estimator.scales == {}


def test_est_refuses_bounds_that_exclude_the_mean_and_a_prior_that_says_nothing() -> None:
    with pytest.raises(
        ValueError,
        match=r"samples_per_prompt=2 is outside allocator.min_samples=4 to max_samples=32.*"
        r"min_samples=1, max_samples=32",
    ):
        ReinforceAdaEstAllocatorConfig().check_fits(shape(2))
    with pytest.raises(ValueError, match=r"samples_per_prompt=64.*max_samples=64"):
        ReinforceAdaEstAllocatorConfig().check_fits(shape(64))
    ReinforceAdaEstAllocatorConfig().check_fits(shape(32))
    with pytest.raises(ValidationError, match=r"write e.g. prior_successes=1, prior_failures=1"):
        ReinforceAdaEstAllocatorConfig(prior_successes=0, prior_failures=0)


# --- sequential ---
def test_balanced_prompts_stop_and_leave_their_samples_to_the_others() -> None:
    rewards = {"a": [1, 0], "b": [0, 0, 0, 0, 1, 1], "c": [1]}
    rounds, report = run_script(seq(), "abc", budget=24, rewards=rewards)
    # a stops after 4, b after 8 (two right ones at 4 and 5), c never; the 4th round is cut to the 4 that are left
    assert rounds == [
        {"a": 4, "b": 4, "c": 4},
        {"a": 0, "b": 4, "c": 4},
        {"a": 0, "b": 0, "c": 4},
    ]
    assert report.metrics["allocation/total"] == 24
    assert report.metrics["allocation/unsatisfied"] == 1
    assert report.estimator.accept_rates == {}  # sampling stops by the samples themselves


def test_what_all_leave_goes_to_all() -> None:
    rounds, report = run_script(seq(), "abc", budget=30, rewards={"a": [1, 0], "b": [0, 1], "c": [1, 1, 0, 0]})
    assert rounds == [{"a": 4, "b": 4, "c": 4}, {"a": 6, "b": 6, "c": 6}]
    assert report.metrics["allocation/unsatisfied"] == 0


def test_after_the_last_round_the_unsatisfied_get_what_is_left() -> None:
    rounds, _ = run_script(seq(max_rounds=2), "abc", budget=30, rewards={"a": [1, 0], "b": [0], "c": [1]})
    assert rounds == [{"a": 4, "b": 4, "c": 4}, {"a": 0, "b": 4, "c": 4}, {"a": 0, "b": 5, "c": 5}]


def test_the_positive_rule_asks_for_no_negatives() -> None:
    rounds, _ = run_script(
        seq(round_samples=2, enough_positives=1, enough_negatives=0),
        "abc",
        budget=12,
        rewards={"a": [1], "b": [0], "c": [0, 1]},
    )
    assert rounds == [
        {"a": 2, "b": 2, "c": 2},
        {"a": 0, "b": 2, "c": 0},
        {"a": 0, "b": 2, "c": 0},
        {"a": 0, "b": 2, "c": 0},
    ]


def test_half_of_each_class_is_kept_over_the_rounds_and_the_baseline_is_that_of_all() -> None:
    rewards = {"a": [0, 0, 0, 1, 0, 0, 0, 1], "b": [1, 1, 0, NAN, 1, 1, 1, 1]}
    _, report = run_script(seq(), "ab", budget=16, rewards=rewards)
    assert report.estimator.kept == {"a": (0, 1, 3, 7), "b": (0, 1, 2, 4)}
    assert report.estimator.baselines == pytest.approx({"a": 2 / 8, "b": 6 / 7})


def test_keeping_and_baseline_are_switches() -> None:
    rewards = {"a": [0, 1], "b": [1]}
    _, report = run_script(seq(kept_samples=None, pool_baseline=False), "ab", budget=16, rewards=rewards)
    assert report.estimator.kept == report.estimator.baselines == {}


def test_the_first_round_must_fit_and_leave_something() -> None:
    with pytest.raises(ValueError, match=r"round_samples=4 leaves nothing of samples_per_prompt=4.*round_samples=2"):
        ReinforceAdaSeqAllocatorConfig().check_fits(shape(4))
    ReinforceAdaSeqAllocatorConfig().check_fits(shape(5))
    with pytest.raises(
        ConfigError, match=r"a budget of 7 samples for 2 prompts is below the 8.*round_samples=3 or less"
    ):
        run_script(seq(), "ab", budget=7, rewards={"a": [1], "b": [0]})
