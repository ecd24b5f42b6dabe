"""What reward to expect at an accept rate: rewards of 0 and 1, other levels, and a spread within them."""

import json

import numpy as np
import pytest

from gvm_ray.allocators import AllocationDriver
from gvm_ray.allocators.gvm_pool import GVMPoolAllocatorConfig
from gvm_ray.allocators.predictor import RewardLevels
from tests.builders import NAN, outcome, prompts


def test_before_any_sample_and_with_rewards_of_0_and_1_a_reward_is_a_bernoulli_draw() -> None:
    levels = RewardLevels(accept_threshold=0.5, forgetting=0.9)
    p = np.array([0.02, 0.5, 0.9])
    for outcomes in ([], [outcome("a", [1, 1, 0])], [outcome("a", [1])], [outcome("a", [0, 0])]):
        levels.observe(outcomes)
        means, deviations = levels.expected(p)
        assert means == pytest.approx(p)
        assert deviations == pytest.approx(np.sqrt(p * (1 - p)))


def test_means_and_deviations_are_those_of_the_samples_themselves() -> None:
    """At the accept rate of what was seen, the mixture's moments are the plain moments of all its rewards."""
    rewards = [1.1, 0.9, 1.0, 0.1, 0.1, 0.0, -0.5, 0.2]
    levels = RewardLevels(accept_threshold=0.5, forgetting=0.9)
    levels.observe([outcome("a", [*rewards[:5], NAN]), outcome("b", rewards[5:])])
    means, deviations = levels.expected(np.array([3 / 8]))
    assert means[0] == pytest.approx(np.mean(rewards))
    assert deviations[0] == pytest.approx(np.std(rewards))


def test_older_steps_weigh_less_and_a_resumed_run_goes_on() -> None:
    levels = RewardLevels(accept_threshold=0.5, forgetting=0.5)
    levels.observe([outcome("a", [1.0, 1.0])])
    levels.observe([outcome("a", [2.0])])
    means, deviations = levels.expected(np.array([1.0]))
    assert means[0] == pytest.approx((0.5 * 2 * 1 + 2) / (0.5 * 2 + 1))
    assert deviations[0] == pytest.approx(0.5)
    resumed = RewardLevels(accept_threshold=0.5, forgetting=0.5)
    resumed.load_state_dict(json.loads(json.dumps(levels.state_dict())))
    for each in (levels, resumed):
        each.observe([outcome("a", [3.0, 0.0])])
    assert [values.tolist() for values in resumed.expected(np.array([0.3]))] == [
        values.tolist() for values in levels.expected(np.array([0.3]))
    ]


def test_a_deviation_is_never_zero() -> None:
    levels = RewardLevels(accept_threshold=-1.0, forgetting=1.0)
    levels.observe([outcome("a", [0.0, 0.0])])
    assert levels.expected(np.array([0.5]))[1][0] > 0


def test_the_baseline_of_a_step_knows_nothing_of_its_samples() -> None:
    """Twice the reward for a right answer moves the baselines of the next step, not those of the step it came in."""
    config = GVMPoolAllocatorConfig(candidates_per_step=4, group_size=1, predicted_baseline=True, states=None)
    allocator = AllocationDriver.of(config, accept_threshold=0.5, seed=0)
    steps = allocator
    baselines = []
    for step in range(2):
        counts = steps.plan(prompts(4), step=step, budget=8).counts
        steps.observe([outcome(id_, [2.0] * n) for id_, n in counts.items() if n], step=step)
        baselines.append(steps.report(step=step).estimator.baselines)
    assert set(baselines[0].values()) == {0.5}
    assert set(baselines[1].values()) == {1.0}  # 2 for a half: too few groups yet to say more of p
