"""VIP's rounds; prediction and counts are tested with their formulas."""

import json

import numpy as np
import pytest
from pydantic import ValidationError

from gvm_ray.allocators import AllocationDriver
from gvm_ray.allocators.rivals.vip import VIPAllocatorConfig
from gvm_ray.maths.rival_rules import allocate_by_gain, variance_gains
from tests.allocator_cases import run_script

STATES = np.array([[0, 0], [4, 0], [0, 4]], dtype=np.float32)
REWARDS = {"a": [1, 0], "b": [1], "c": [0]}


def vip(**settings):
    return AllocationDriver.of(VIPAllocatorConfig(**settings), accept_threshold=0.5)


def test_without_observations_or_states_the_split_is_even() -> None:
    for states in (STATES, None):
        allocator = vip()
        rounds, _ = run_script(allocator, "abc", budget=24, rewards=REWARDS, states=states)
        assert rounds == [{"a": 8, "b": 8, "c": 8}]
    rounds, _ = run_script(allocator, "abc", budget=24, rewards=REWARDS, step=1)  # still without states
    assert rounds == [{"a": 8, "b": 8, "c": 8}]


def test_prompts_like_those_half_solved_get_more() -> None:
    allocator = vip()
    run_script(allocator, "abc", budget=24, rewards=REWARDS, states=STATES)
    rewards = {"x": [1], "y": [1], "z": [1]}
    rounds, report = run_script(allocator, "xyz", budget=24, rewards=rewards, states=STATES + 0.1, step=1)
    counts = rounds[0]
    assert counts["x"] > counts["y"]
    assert counts["y"] == counts["z"]
    assert report.metrics["allocation/p_hat_mean"] == pytest.approx(0.5, abs=0.01)  # b's and c's pull alike
    assert report.metrics["allocation/p_hat_std"] > 0.1


def test_the_counts_are_those_of_the_predicted_rates() -> None:
    allocator = vip(baseline="rloo", min_samples=2, max_samples=9, window=2)
    run_script(allocator, "abc", budget=24, rewards=REWARDS, states=STATES)
    assert len(allocator.state_dict()["strategy"]["observed"]) == 2
    # b's logit is ln(8.5 / 0.5) with noise 2 + 2/17 under variance 4, c's the opposite, their covariance 4 exp(-2);
    # a is as far from either, so that they cancel: p = 1/2
    covariance = np.exp(-2)
    logit = 4 * (1 - covariance) / (4 + 2 + 2 / 17 - 4 * covariance) * np.log(17)
    p = 1 / (1 + np.exp(-logit))
    gains = variance_gains([0.5, p, 1 - p], minimum=2, maximum=9, baseline="rloo")
    expected = allocate_by_gain(gains, minimum=2, budget=20)
    rounds, _ = run_script(allocator, "abc", budget=20, rewards=REWARDS, states=STATES, step=1)
    assert list(rounds[0].values()) == expected.tolist()


def test_unscored_samples_are_no_observation() -> None:
    allocator = vip()
    run_script(allocator, "ab", budget=16, rewards={"a": [float("nan")], "b": [1, float("nan")]}, states=STATES[:2])
    observed = allocator.state_dict()["strategy"]["observed"]
    assert [(each["successes"], each["trials"]) for each in observed] == [(4, 4)]


def test_observations_survive_json() -> None:
    allocator = vip()
    run_script(allocator, "abc", budget=24, rewards=REWARDS, states=STATES)
    state = json.loads(json.dumps(allocator.state_dict()))
    resumed = vip()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    steps = [
        run_script(each, "abc", budget=24, rewards=REWARDS, states=STATES, step=1)[0] for each in (allocator, resumed)
    ]
    assert steps[0] == steps[1] != [{"a": 8, "b": 8, "c": 8}]


def test_a_minimum_below_the_convex_part_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"min_samples=2 is too small for .*write min_samples=3 or more"):
        VIPAllocatorConfig(min_samples=2)
    VIPAllocatorConfig(min_samples=2, baseline="rloo")
