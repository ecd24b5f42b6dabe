"""SPEED's two rounds: who is continued, with how many samples, and who is trained on."""

import pytest

from gvm_ray.allocators import AllocationDriver
from gvm_ray.allocators.base import RunShape
from gvm_ray.allocators.rivals.speed import SPEEDAllocatorConfig
from gvm_ray.exceptions import ConfigError
from tests.allocator_cases import all_equal, run_step
from tests.builders import NAN


def speed(**settings):
    return AllocationDriver.of(SPEEDAllocatorConfig(screening_samples=2, **settings), accept_threshold=0.5)


def test_the_rest_goes_to_the_prompts_that_pass_the_screening() -> None:
    rounds, report = run_step(speed(), "abcd", budget=17, rewards=all_equal(solved="a", failed="c"))
    # 17 - 4 * 2 = 9 for b and d
    assert [dict(allocation.counts) for allocation in rounds] == [dict.fromkeys("abcd", 2), {"b": 5, "d": 4}]
    assert report.histograms["samples_per_prompt"].tolist() == [2, 7, 2, 6]
    assert report.estimator.kept == {"a": (), "c": ()}
    assert report.estimator.num_prompts == 2
    assert report.metrics["allocation/passed"] == 2
    # Of the screening alone, which is named; none accepted of 2 counts as half of one of 3
    assert report.estimator.accept_rates == pytest.approx({"a": 1, "b": 0.5, "c": 0.5 / 3, "d": 0.5})
    assert report.estimator.pilots == dict.fromkeys("abcd", (0, 1))


def test_screened_out_prompts_are_trained_on_where_that_is_set() -> None:
    _, report = run_step(speed(train_on_screened_out=True), "abc", budget=12, rewards=all_equal(solved="a"))
    assert report.estimator.kept == {}
    assert report.estimator.num_prompts == 3


@pytest.mark.parametrize("rewards", [all_equal(solved="ab"), all_equal(failed="ab"), lambda _, n: [NAN] * n])
def test_where_none_passes_all_are_continued(rewards) -> None:
    rounds, report = run_step(speed(), "ab", budget=11, rewards=rewards)
    assert dict(rounds[1].counts) == {"a": 4, "b": 3}
    assert report.estimator.kept == {}
    assert report.metrics["allocation/passed"] == 0


def test_a_screening_that_costs_more_than_the_budget_is_refused() -> None:
    with pytest.raises(ConfigError, match="a budget of 7 samples is below the 8 that screen 4 prompts"):
        run_step(speed(), "abcd", budget=7, rewards=all_equal())


def test_a_screening_that_leaves_nothing_is_refused_before_the_run() -> None:
    shape = RunShape(prompts_per_step=4, samples_per_prompt=8, max_staleness=0, checkpoint_every_steps=1)
    SPEEDAllocatorConfig(screening_samples=4, candidates_per_step=7).check_fits(shape)
    with pytest.raises(
        ValueError, match=r"screening 8 candidates .* budget of 32 samples; write candidates_per_step=4"
    ):
        SPEEDAllocatorConfig(screening_samples=4, candidates_per_step=8).check_fits(shape)
