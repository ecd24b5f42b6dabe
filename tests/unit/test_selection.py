"""Groups chosen out of many candidates: exact sums for any input, and the promised chances over many draws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gvm_ray.maths.allocation import expected_samples, inclusion_chances, inclusion_weights, select_groups

DRAWS = 4000
MIXED = np.array([30.0, 9.0, *np.full(20, 1.2), 1.0])  # two large candidates, 21 that together make 25 / 8 groups


def draws(expected: np.ndarray, *, budget: int, group_size: int) -> np.ndarray:
    """[DRAWS, C] of one generator."""
    rng = np.random.default_rng(0)
    return np.array([select_groups(expected, budget=budget, group_size=group_size, rng=rng) for _ in range(DRAWS)])


def test_expected_samples_by_hand() -> None:
    scores = np.array([3.0, 1.0, 0.0, 0.0])
    np.testing.assert_allclose(expected_samples(scores, budget=16, uniform_share=0.0), [12, 4, 0, 0])
    np.testing.assert_allclose(expected_samples(scores, budget=16, uniform_share=0.5), [8, 4, 2, 2])
    np.testing.assert_allclose(expected_samples(np.zeros(4), budget=16, uniform_share=0.1), [4, 4, 4, 4])
    np.testing.assert_allclose(expected_samples(np.array([7.0]), budget=16, uniform_share=0.1), [16])


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_a_score_that_is_no_weight_is_named(bad: float) -> None:
    with pytest.raises(ValueError, match=rf"scores\[1\] = {bad} is not a finite number >= 0"):
        expected_samples(np.array([1.0, bad]), budget=8, uniform_share=0.1)


@st.composite
def selections(draw):
    scores = draw(st.lists(st.one_of(st.just(0.0), st.floats(1e-9, 1e9)), min_size=1, max_size=40))
    share = draw(st.sampled_from([0.0, 0.1, 1.0]))
    budget = draw(st.integers(1, 200))
    return expected_samples(np.array(scores), budget=budget, uniform_share=share), budget


@settings(deadline=None)
@given(selections(), st.integers(1, 20), st.one_of(st.none(), st.integers(0, 30)), st.integers(0, 99))
def test_groups_are_whole_and_the_budget_exact(selection, group_size: int, above: int | None, seed: int) -> None:
    expected, budget = selection
    maximum = None if above is None else group_size + above
    rng = np.random.default_rng(seed)
    counts = select_groups(expected, budget=budget, group_size=group_size, rng=rng, maximum=maximum)
    chosen = counts[counts > 0]
    assert counts.sum() == budget
    assert chosen.min() >= min(group_size, budget)
    assert (expected[counts > 0] > 0).all()
    if maximum is not None:
        assert chosen.max() <= max(maximum, -(-budget // len(chosen)))


@settings(deadline=None)
@given(selections(), st.integers(1, 20))
def test_chances_fill_the_budget_and_no_more(selection, group_size: int) -> None:
    expected, budget = selection
    group_size = min(group_size, budget)
    chances = inclusion_chances(expected, budget=budget, group_size=group_size)
    assert ((chances >= 0) & (chances <= 1)).all()
    assert chances.sum() <= budget // group_size + 1e-9
    assert (chances[expected == 0] == 0).all()


@pytest.mark.parametrize(
    "expected",
    [
        expected_samples(np.random.default_rng(1).uniform(size=60), budget=64, uniform_share=0.1),
        expected_samples(np.array([5.0] * 8 + [0.0] * 40), budget=67, uniform_share=0.3),  # 8 groups and 3 samples
        MIXED,
    ],
    ids=["only small", "a rest", "some large"],
)
def test_candidates_are_sampled_as_often_as_their_chances_say(expected: np.ndarray) -> None:
    budget = round(expected.sum())
    frequencies = (draws(expected, budget=budget, group_size=8) > 0).mean(axis=0)
    chances = inclusion_chances(expected, budget=budget, group_size=8)
    errors = np.sqrt(chances * (1 - chances) / DRAWS)
    assert (np.abs(frequencies - chances) <= 4.5 * errors).all()


def test_without_large_candidates_samples_are_in_proportion_to_the_scores() -> None:
    scores = np.random.default_rng(2).uniform(0.2, 1, size=50)
    expected = expected_samples(scores, budget=64, uniform_share=0.0)
    counts = draws(expected, budget=64, group_size=8)
    assert set(np.unique(counts)) == {0, 8}
    errors = np.sqrt(8 * expected / DRAWS)  # a count is 8 with chance expected / 8
    assert (np.abs(counts.mean(axis=0) - expected) < 4.5 * errors).all()


def test_large_candidates_keep_their_samples_beside_the_chosen_small_ones() -> None:
    counts = draws(MIXED, budget=64, group_size=8)
    assert set((counts[:, 2:] > 0).sum(axis=1)) == {3, 4}  # of 25 / 8 expected
    assert (counts[:, :2].min(axis=0) >= [22, 8]).all()
    np.testing.assert_allclose(counts.mean(axis=0), MIXED, rtol=0.25)
    assert abs(counts[:, 2:].sum(axis=1).mean() - 25) < 1


def test_a_budget_below_a_group_goes_to_one_candidate() -> None:
    counts = draws(np.array([3.0, 1.0, 0.0]), budget=4, group_size=8)
    assert set(np.unique(counts)) == {0, 4}
    assert ((counts > 0).sum(axis=1) == 1).all()
    assert abs((counts[:, 0] > 0).mean() - 0.75) < 4.5 * np.sqrt(0.75 * 0.25 / DRAWS)


def test_weights_make_the_mean_over_the_chosen_that_over_all() -> None:
    scores = np.random.default_rng(3).uniform(0.3, 1, size=64)
    values = scores**2  # which a plain mean over the chosen overestimates
    expected = expected_samples(scores, budget=64, uniform_share=0.0)
    weights = inclusion_weights(expected, budget=64, group_size=8, cap=100.0)
    chosen = draws(expected, budget=64, group_size=8) > 0
    means = (chosen * weights * values).sum(axis=1) / chosen.sum(axis=1)
    plain = (chosen * values).sum(axis=1) / chosen.sum(axis=1)
    error = means.std() / np.sqrt(DRAWS)
    assert abs(means.mean() - values.mean()) < 4.5 * error
    assert plain.mean() - values.mean() > 20 * error


def test_weights_by_hand_and_their_cap() -> None:
    expected = np.array([12.0, 3.0, 1.0, 0.0])  # chances 1, 3/4, 1/4, 0, whose mean is 1/2
    weights = inclusion_weights(expected, budget=16, group_size=4, cap=1.5)
    np.testing.assert_allclose(weights, [0.5, 2 / 3, 1.5, 1.5])
