"""The formulas of methods that choose prompts or samples, against numbers by hand and by brute force."""

from itertools import combinations

import numpy as np
import pytest

from gvm_ray.allocators.selection import even_counts, num_groups, reward_ranges
from gvm_ray.maths.rival_rules import (
    adjusted_exploration,
    max_variance_subset,
    sampling_probability,
    thompson_nearest,
    zero_variance_run,
)
from tests.builders import NAN, outcome


@pytest.mark.parametrize("kind", ["binary", "graded", "continuous"])
def test_max_variance_subset_is_the_best_of_all_subsets(kind: str) -> None:
    rng = np.random.default_rng(0)
    draw = {
        "binary": lambda n: rng.integers(0, 2, size=n).astype(float),
        "graded": lambda n: rng.integers(0, 4, size=n) / 2,
        "continuous": lambda n: rng.normal(loc=1e6, size=n),
    }[kind]
    for _ in range(40):
        n = int(rng.integers(1, 9))
        rewards = draw(n)
        for size in range(1, n + 1):
            chosen = max_variance_subset(rewards, size=size)
            best = max(np.var(rewards[list(subset)]) for subset in combinations(range(n), size))
            assert len(set(chosen.tolist())) == size
            assert np.var(rewards[chosen]) == pytest.approx(best, abs=1e-9)


def test_max_variance_subset_balances_binary_rewards_and_takes_the_first_of_equal_ones() -> None:
    assert max_variance_subset([0, 1, 0, 1, 0, 1, 0], size=4).tolist() == [0, 2, 3, 5]
    # no low end is needed: the highest three, of which the later ones
    assert max_variance_subset([0, 0, 0, 1, 0], size=3).tolist() == [2, 3, 4]
    assert max_variance_subset([2.0, 2.0, 2.0], size=3).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("rewards", "size", "expected"),
    [([1, NAN], 1, "must be finite"), ([1, 0], 3, "the number of samples, 2"), ([1, 0], 0, "size = 0")],
)
def test_a_subset_that_cannot_be_is_refused(rewards, size: int, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        max_variance_subset(rewards, size=size)


def test_a_run_counts_visits_of_one_kind() -> None:
    def after(run: int, low: float, high: float) -> int:
        return zero_variance_run(run, lowest=low, highest=high, accept_threshold=0.5)

    assert [after(run, 1, 1) for run in (-2, 0, 2)] == [1, 1, 3]
    assert [after(run, 0, 0) for run in (-2, 0, 2)] == [-3, -1, -1]
    assert [after(run, 0, 1) for run in (-2, 0, 2)] == [0, 0, 0]


def test_the_probability_falls_with_the_run_of_either_kind() -> None:
    probabilities = sampling_probability([0, 1, 2, -1, -3, 50], easy=0.5, hard=0.9, minimum=0.01)
    np.testing.assert_allclose(probabilities, [1, 0.5, 0.25, 0.9, 0.729, 0.01])


@pytest.mark.parametrize(
    ("probability", "fraction", "expected"),
    [(0.5, 0.3, 0.4), (0.5, 0.2, 0.4), (0.5, 0.1, 0.6), (0.1, 0.9, 0.05), (0.9, 0.0, 0.95)],
)
def test_exploration_moves_against_the_share_of_zero_variance(probability, fraction, expected) -> None:
    moved = adjusted_exploration(probability, fraction=fraction, target=0.2, step=0.1, minimum=0.05, maximum=0.95)
    assert moved == pytest.approx(expected)


def test_thompson_draws_stay_near_a_rate_that_is_well_known() -> None:
    # standard deviations of the posteriors are below 0.0005, so the draws are ordered like the rates
    trials = np.full(5, 1e6)
    order = thompson_nearest(
        trials * [0.0, 0.3, 0.52, 1.0, 0.6],
        trials,
        prior_successes=1,
        prior_failures=1,
        target=0.5,
        rng=np.random.default_rng(0),
    )
    assert order[:3].tolist() == [2, 4, 1]


def test_thompson_draws_have_the_mean_and_spread_of_the_posterior() -> None:
    # two prompts, target 0: which is nearer is which draws less. Beta(2, 1) against Beta(1, 1): P(X < Y) = 1/3
    rng = np.random.default_rng(0)
    settings = {"prior_successes": 1, "prior_failures": 1, "target": 0.0, "rng": rng}
    first = [thompson_nearest([1, 0], [1, 0], **settings)[0] for _ in range(4000)]
    assert np.mean(np.array(first) == 0) == pytest.approx(1 / 3, abs=0.03)


def test_shares_of_groups() -> None:
    assert even_counts("abc", 11) == {"a": 4, "b": 4, "c": 3}
    assert [num_groups(budget, group_size=8, num_candidates=5) for budget in (7, 8, 31, 80)] == [1, 1, 3, 5]


def test_the_range_of_a_prompt_is_over_all_its_outcomes_and_scored_samples() -> None:
    outcomes = [outcome("a", [1, 1]), outcome("b", [0, NAN]), outcome("a", [NAN, 0.5]), outcome("c", [NAN])]
    assert reward_ranges(outcomes) == {"a": (0.5, 1.0), "b": (0.0, 0.0)}
