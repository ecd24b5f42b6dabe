"""EBPO: shrunk baselines by hand, and the running moments behind them."""

import json

import numpy as np
import pytest

from gvm_ray.allocators import AllocationDriver
from gvm_ray.allocators.rivals.ebpo import EBPOAllocatorConfig
from tests.allocator_cases import run_script, run_step
from tests.builders import NAN


def ebpo() -> AllocationDriver:
    return AllocationDriver.of(EBPOAllocatorConfig(), accept_threshold=0.5)


def test_group_means_are_shrunk_to_the_mean_of_all_rewards_so_far() -> None:
    driver = ebpo()
    rounds, report = run_script(driver, "ab", budget=4, rewards={"a": [1.0, 1.0], "b": [0.0, 1.0]})
    assert rounds == [{"a": 2, "b": 2}]
    # rewards 1, 1, 0, 1: mu = 3/4, sigma^2 = (3/16 + 9/16) / 3 = 1/4; means 1 and 1/2: tau^2 = 1/8
    # S = (1/8) / (1/8 + 1/8) = 1/2: b = (1 + 3/4) / 2 and (1/2 + 3/4) / 2
    assert report.estimator.baselines == pytest.approx({"a": 7 / 8, "b": 5 / 8}, rel=1e-12)
    assert report.metrics["allocation/shrinkage_mean"] == pytest.approx(1 / 2)
    _, report = run_script(driver, "cd", budget=4, rewards={"c": [0.0, 0.0], "d": [0.0, 1.0]}, step=1)
    # all rewards 1, 1, 0, 1, 0, 0, 0, 1: mu = 1/2, sigma^2 = 8 (1/4) / 7 = 2/7
    # means 1, 1/2, 0, 1/2: tau^2 = (1/4 + 0 + 1/4 + 0) / 3 = 1/6
    # S = (1/7) / (1/7 + 1/6) = 6/13: a group of failures has the baseline 0 + 6/13 1/2, and trains
    assert report.estimator.baselines == pytest.approx({"c": 3 / 13, "d": 1 / 2}, rel=1e-12)
    assert report.estimator.scales == {}


def test_small_groups_are_shrunk_more() -> None:
    driver = ebpo()
    _, report = run_script(driver, "ab", budget=3, rewards={"a": [1.0, 0.0], "b": [0.0]})
    # rewards 1, 0, 0: mu = 1/3, sigma^2 = 1/3; means 1/2 and 0: tau^2 = 1/8
    # S = (1/6) / (1/6 + 1/8) = 4/7 and (1/3) / (1/3 + 1/8) = 8/11
    assert report.estimator.baselines == pytest.approx({"a": 3 / 14 + 4 / 21, "b": 8 / 33}, rel=1e-12)


def test_running_moments_are_those_of_all_values_at_once() -> None:
    driver, rng, rewards = ebpo(), np.random.default_rng(0), []
    for step in range(5):
        script = {id_: rng.random(3).tolist() for id_ in "abcd"}
        run_script(driver, "abcd", budget=12, rewards=script, step=step)
        rewards += list(script.values())
    state = driver.state_dict()["strategy"]
    for name, values in (("rewards", np.ravel(rewards)), ("means", np.mean(rewards, axis=1))):
        assert state[name]["count"] == len(values)
        assert state[name]["mean"] == pytest.approx(values.mean(), rel=1e-12)
        assert state[name]["squares"] == pytest.approx(((values - values.mean()) ** 2).sum(), rel=1e-10)


def test_equal_or_missing_rewards_are_no_trouble() -> None:
    driver = ebpo()
    _, report = run_step(driver, "ab", budget=4, rewards=lambda _, n: [NAN] * n)
    assert report.estimator.baselines == {}
    _, report = run_step(driver, "ab", budget=4, rewards=lambda _, n: [1.0] * n, step=1)
    assert report.estimator.baselines == {"a": 1.0, "b": 1.0}


def test_it_resumes_to_the_bit() -> None:
    driver, resumed = ebpo(), ebpo()
    run_script(driver, "ab", budget=6, rewards={"a": [0.1, 0.7, 0.2], "b": [0.3, 1.0]})
    resumed.load_state_dict(json.loads(json.dumps(driver.state_dict())))
    script = {"a": [0.9, 0.1, 0.3], "b": [0.4, 0.4, 0.6]}
    reports = [run_script(each, "ab", budget=6, rewards=script, step=1)[1] for each in (driver, resumed)]
    assert reports[0].estimator == reports[1].estimator
    assert driver.state_dict() == resumed.state_dict()
