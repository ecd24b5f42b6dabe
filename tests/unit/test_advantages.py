"""Advantages of ragged groups against hand-computed numbers and torch's standard deviation."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gvm_ray.maths.advantages import batch_normalized, group_normalized, leave_one_out, shrunk_leave_one_out

# Groups 7: rewards 1, 0, 0, 1; 3: rewards 1; 5: rewards 0, 0; in mixed order.
REWARDS = [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0]
GROUPS = [7, 3, 7, 5, 7, 5, 7]


def test_group_normalized_uses_the_sample_standard_deviation() -> None:
    # group 7: mean 1/2, deviations +-1/2, sample variance 4 * (1/4) / 3 = 1/3
    value = 0.5 / (np.sqrt(1 / 3) + 1e-6)
    expected = [value, 0.0, -value, 0.0, -value, 0.0, value]
    np.testing.assert_allclose(group_normalized(REWARDS, GROUPS), expected, rtol=1e-12)


def test_group_normalized_without_std_is_the_distance_to_the_mean() -> None:
    advantages = group_normalized(REWARDS, GROUPS, normalize_std=False)
    assert advantages.tolist() == [0.5, 0.0, -0.5, 0.0, -0.5, 0.0, 0.5]


def test_leave_one_out_subtracts_the_mean_of_the_others() -> None:
    # group 7: 1 - (0 + 0 + 1) / 3 = 2/3 and 0 - (1 + 0 + 1) / 3 = -2/3
    np.testing.assert_allclose(
        leave_one_out(REWARDS, GROUPS), [2 / 3, 0.0, -2 / 3, 0.0, -2 / 3, 0.0, 2 / 3], rtol=1e-12, atol=0
    )


def test_rewards_within_the_tolerance_are_equal() -> None:
    rewards, groups = [0.7, 0.8, 0.7, 0.9, 0.7], [0, 0, 1, 1, 2]
    for advantages in (
        group_normalized(rewards, groups, tolerance=0.1),
        group_normalized(rewards, groups, tolerance=0.1, normalize_std=False),
        leave_one_out(rewards, groups, tolerance=0.1),
    ):
        assert (advantages != 0).tolist() == [False, False, True, True, False]  # though 0.8 - 0.7 > 0.1 in binary
    assert group_normalized(rewards, groups)[0] != 0


def test_batch_normalized_is_over_all_samples() -> None:
    # mean 1/2, sample std sqrt(1/3); epsilon 0.5
    np.testing.assert_allclose(
        batch_normalized([1.0, 0.0, 0.0, 1.0], epsilon=0.5), np.array([1, -1, -1, 1]) * 0.5 / (np.sqrt(1 / 3) + 0.5)
    )
    assert batch_normalized([0.3], epsilon=1e-6).tolist() == [0.0]


def test_batch_normalized_over_tokens_counts_a_sample_once_for_each() -> None:
    # values 1, -1, 1/2 with 2, 4 and 6 tokens: mean (2 - 4 + 3) / 12 = 1/12
    # variance (2 (11/12)^2 + 4 (13/12)^2 + 6 (5/12)^2) / 11 = (242 + 676 + 150) / 144 / 11
    sigma = np.sqrt(1068 / 144 / 11) + 0.5
    expected = np.array([11, -13, 5]) / 12 / sigma
    tokens = [2, 4, 6]
    np.testing.assert_allclose(batch_normalized([1.0, -1.0, 0.5], epsilon=0.5, num_tokens=tokens), expected)
    # the same as each value repeated so often
    repeated = batch_normalized(np.repeat([1.0, -1.0, 0.5], tokens), epsilon=0.5)
    np.testing.assert_allclose(np.repeat(expected, tokens), repeated, rtol=1e-12)
    ones = batch_normalized([1.0, 0.0, 0.25], epsilon=1e-8, num_tokens=[1, 1, 1])
    np.testing.assert_allclose(ones, batch_normalized([1.0, 0.0, 0.25], epsilon=1e-8), rtol=1e-12)


def test_batch_normalized_over_tokens_takes_degenerate_batches() -> None:
    for values, tokens in (([], []), ([0.3], [5]), ([0.1] * 3, [1, 2, 3]), ([1.0, 0.0], [0, 0])):
        assert batch_normalized(values, epsilon=1e-8, num_tokens=tokens).tolist() == [0.0] * len(values)
    with pytest.raises(ValueError, match=r"num_tokens has shape \(1,\), values \(2,\)"):
        batch_normalized([1.0, 0.0], epsilon=1e-8, num_tokens=[3])


def test_the_mean_of_the_others_is_shrunk_to_the_other_groups() -> None:
    rewards, groups = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0], [0, 0, 1, 1, 2, 2, 3, 3]
    # group 0: the others' means 1, 0, 1/2: M = 1/2, s = (1/4 + 1/4 + 0) / 3 = 1/6; their var / n 0, 0, 1/4: v = 1/12
    # lambda = (1/12) / (1/12 + 1/6) = 1/3; reward 1: b = (2/3) 0 + (1/3) (1/2); reward 0: b = 2/3 + 1/6
    # group 1: means 1/2, 0, 1/2: M = 1/3, s = (1/36 + 4/36 + 1/36) / 3 = 1/18; v = (1/4 + 0 + 1/4) / 3 = 1/6
    # lambda = (1/6) / (1/6 + 1/18) = 3/4: b = (1/4) 1 + (3/4) (1/3) = 1/2. Group 2 is its mirror image.
    expected = [5 / 6, -5 / 6, 1 / 2, 1 / 2, -1 / 2, -1 / 2, -5 / 6, 5 / 6]
    np.testing.assert_allclose(shrunk_leave_one_out(rewards, groups), expected, rtol=1e-12)
    # a group of one has the mean of the other groups alone: here (1/2 + 1) / 2
    np.testing.assert_allclose(shrunk_leave_one_out([1.0, 0.0, 1.0, 1.0, 0.0], [0, 0, 1, 1, 2])[-1], -3 / 4, rtol=1e-12)
    # nothing to shrink to, and no noise to shrink for
    np.testing.assert_allclose(
        shrunk_leave_one_out([1.0, 0.0, 0.0], [7, 7, 7]), leave_one_out([1.0, 0.0, 0.0], [7] * 3)
    )
    assert shrunk_leave_one_out([1.0, 1.0, 0.0, 0.0], [0, 0, 1, 1]).tolist() == [0.0] * 4
    assert shrunk_leave_one_out([], []).tolist() == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=2, max_size=12), st.data())
def test_a_shrunk_baseline_does_not_depend_on_its_sample(samples: list[tuple[int, int]], data: st.DataObject) -> None:
    groups, rewards = [group for group, _ in samples], np.array([reward / 4 for _, reward in samples])
    row = data.draw(st.integers(0, len(samples) - 1))
    changed = rewards.copy()
    changed[row] += 1.0
    before, after = (values - shrunk_leave_one_out(values, groups) for values in (rewards, changed))
    if groups.count(groups[row]) > 1 or len(set(groups)) > 1:
        assert before[row] == pytest.approx(after[row], abs=1e-9)


def test_equal_rewards_give_exactly_zero_though_their_mean_is_rounded() -> None:
    rewards = [0.1] * 3 + [0.7] * 6  # np.mean([0.1] * 3) is not 0.1
    groups = [0] * 3 + [1] * 6
    for advantages in (group_normalized(rewards, groups), leave_one_out(rewards, groups)):
        assert advantages.tolist() == [0.0] * 9
    assert batch_normalized([0.1] * 3, epsilon=1e-6).tolist() == [0.0] * 3


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-5, 5)), min_size=1, max_size=25))
def test_groups_are_independent_of_order_and_company(samples) -> None:
    groups = np.array([group for group, _ in samples])
    rewards = np.array([reward for _, reward in samples])
    normalized, left_out = group_normalized(rewards, groups, epsilon=0.1), leave_one_out(rewards, groups)
    for group in set(groups.tolist()):
        own = rewards[groups == group]
        std = torch.tensor(own).std().item() if len(own) > 1 else 0.0
        np.testing.assert_allclose(normalized[groups == group], (own - own.mean()) / (std + 0.1), atol=1e-9)
        others = [np.delete(own, i).mean() if len(own) > 1 else own[i] for i in range(len(own))]
        np.testing.assert_allclose(left_out[groups == group], own - others, atol=1e-9)


def test_no_samples_give_no_advantages() -> None:
    for advantages in (group_normalized([], []), leave_one_out([], []), batch_normalized([], epsilon=1e-6)):
        assert advantages.shape == (0,)


def test_refuses_unscored_rewards_and_wrong_shapes() -> None:
    with pytest.raises(ValueError, match=r"rewards\[1\] = nan"):
        group_normalized([0.0, float("nan")], [0, 0])
    with pytest.raises(ValueError, match="group_ids has shape"):
        leave_one_out([0.0, 1.0], [0])
