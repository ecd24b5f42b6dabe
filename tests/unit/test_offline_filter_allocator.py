"""The offline filter: when prompts are measured, who is sampled afterwards, and the file of accept rates."""

import json
from pathlib import Path

import numpy as np
import pytest

from gvm_ray.allocators import AllocationDriver
from gvm_ray.allocators.base import RunShape
from gvm_ray.allocators.rivals.offline_filter import OfflineFilterAllocatorConfig
from gvm_ray.exceptions import ConfigError
from tests.allocator_cases import all_equal, run_step
from tests.builders import NAN

REWARDS = all_equal(solved="a", failed="c")


def offline_filter(**settings):
    config = OfflineFilterAllocatorConfig(**{"group_size": 4, "measurement_samples": 2, **settings})
    return AllocationDriver.of(config, accept_threshold=0.5)


def counts(strategy, ids: str, *, budget: int, rewards=REWARDS) -> list[dict[str, int]]:
    return [dict(allocation.counts) for allocation in run_step(strategy, ids, budget=budget, rewards=rewards)[0]]


def test_prompts_are_measured_once_and_those_outside_the_bounds_left_out() -> None:
    strategy = offline_filter()
    # twelve samples are three groups: a, b and c are measured, and only b stays: 6 more than its 2
    assert counts(strategy, "abcdef", budget=12) == [dict.fromkeys("abc", 2), {"b": 6}]
    assert strategy.state_dict()["strategy"]["accept_rates"] == {"a": 1.0, "b": 0.5, "c": 0.0}
    # b is known; two groups are left, for d and e, which are measured
    assert counts(strategy, "abcdef", budget=12) == [{"d": 2, "e": 2}, {"b": 4, "d": 2, "e": 2}]
    # enough are known: one round
    assert counts(strategy, "abcdef", budget=13) == [{"b": 5, "d": 4, "e": 4}]
    assert counts(strategy, "abcdef", budget=16) == [{"f": 2}, {"b": 4, "d": 4, "e": 4, "f": 2}]
    # more than enough: the first of them
    assert counts(strategy, "abcdef", budget=8) == [{"b": 4, "d": 4}]


def test_measurements_are_part_of_the_report() -> None:
    _, report = run_step(offline_filter(), "abcdef", budget=12, rewards=REWARDS)
    assert report.histograms["samples_per_prompt"].tolist() == [2, 8, 2, 0, 0, 0]
    np.testing.assert_array_equal(report.histograms["accept_rate"], [1, 0.5, 0, np.nan, np.nan, np.nan])
    assert report.estimator.num_prompts == 3
    assert report.estimator.kept == {}
    assert report.estimator.accept_rates == pytest.approx({"a": 1, "b": 0.5, "c": 0.5 / 3})
    assert report.estimator.pilots == dict.fromkeys("abc", (0, 1))
    assert (report.metrics["allocation/measured"], report.metrics["allocation/inside"]) == (3, 1)


def test_measurements_apart_are_charged_and_not_trained_on() -> None:
    strategy = offline_filter(train_on_measurements=False)
    # a first visit takes 2 + 4 samples, so 12 are enough for two
    rounds, report = run_step(strategy, "abcdef", budget=12, rewards=REWARDS)
    assert [dict(allocation.counts) for allocation in rounds] == [{"a": 2, "b": 2}, {"b": 8}]
    assert [allocation.trained_on for allocation in rounds] == [False, True]
    assert report.histograms["samples_per_prompt"].tolist() == [0, 8, 0, 0, 0, 0]
    assert report.estimator.num_prompts == 1


def test_bounds_are_exclusive() -> None:
    strategy = offline_filter(min_accept_rate=0.5, max_accept_rate=1.0)
    strategy.load_state_dict({"prompts": {}, "strategy": {"accept_rates": {"a": 1.0, "b": 0.5, "c": 0.6, "d": 0.4}}})
    assert counts(strategy, "abcd", budget=4) == [{"c": 4}]


def test_without_any_prompt_inside_the_nearest_are_sampled() -> None:
    strategy = offline_filter(min_accept_rate=0.2, max_accept_rate=0.8)
    strategy.load_state_dict({"prompts": {}, "strategy": {"accept_rates": {"a": 1.0, "b": 0.0, "c": 0.9, "d": 0.15}}})
    assert counts(strategy, "abcd", budget=8) == [{"d": 4, "c": 4}]


def test_unscored_prompts_are_measured_again() -> None:
    strategy = offline_filter()
    unscored = counts(strategy, "ab", budget=8, rewards=lambda _, n: [NAN] * n)
    assert unscored == [{"a": 2, "b": 2}, {"a": 2, "b": 2}]
    assert strategy.state_dict()["strategy"]["accept_rates"] == {}
    assert counts(strategy, "ab", budget=8)[0] == {"a": 2, "b": 2}


def test_a_file_takes_the_place_of_measurements(tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    path.write_text(json.dumps({"a": 1.0, "b": 0.25, "c": 0.5}))
    strategy = offline_filter(accept_rates_path=str(path))
    assert counts(strategy, "abc", budget=8) == [{"b": 4, "c": 4}]
    assert counts(strategy, "abd", budget=8) == [{"d": 2}, {"b": 4, "d": 2}]  # d isn't in the file


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, r"rates.json' can't be read: No such file"),
        ("[0.5]", "isn't a JSON object of prompt_id -> accept rate"),
        ('{"a": 1.5}', r"at \['a'\]: Input should be less than or equal to 1"),
        ("{", "Invalid JSON"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str | None, expected: str) -> None:
    path = tmp_path / "rates.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=expected):
        offline_filter(accept_rates_path=str(path))


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match=r"min_accept_rate=0.8 is not below max_accept_rate=0.8"):
        OfflineFilterAllocatorConfig(min_accept_rate=0.8, max_accept_rate=0.8)
    with pytest.raises(ValueError, match="measurement_samples=9 is above group_size=8"):
        OfflineFilterAllocatorConfig(measurement_samples=9)
    shape = RunShape(prompts_per_step=3, samples_per_prompt=4, max_staleness=0, checkpoint_every_steps=1)
    apart = OfflineFilterAllocatorConfig(train_on_measurements=False, candidates_per_step=9)
    with pytest.raises(ValueError, match=r"measurement_samples=8 \+ group_size=8 is above the step's budget of 12"):
        apart.check_fits(shape)
