"""What a sample more is worth, against brute force and numbers worked out by hand."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gvm_ray.maths.rival_rules import (
    allocate_by_gain,
    draw_by_learning_potential,
    half_of_each_class,
    knapsack_gains,
    log_objective_weights,
    policy_gradient_std,
    variance_gains,
)


def best_value(values: np.ndarray, *, minimum: int, budget: int) -> float:
    """The largest sum of values[i, n_i - minimum] over all integers that sum to the budget."""
    num_prompts, num_choices = values.shape
    splits = product(range(num_choices), repeat=num_prompts)
    return max(
        values[range(num_prompts), split].sum() for split in splits if sum(split) == budget - minimum * num_prompts
    )


def knapsack_values(rates: list[float], n: np.ndarray) -> np.ndarray:
    p = np.array(rates)[:, None]
    return (1 - p**n - (1 - p) ** n) * p * (1 - p) ** 2


def test_the_largest_gains_are_taken_and_ties_spread_evenly() -> None:
    assert allocate_by_gain([[5, 1, 0], [4, 3, 2]], minimum=1, budget=5).tolist() == [2, 3]
    assert allocate_by_gain(np.ones((3, 4)), minimum=2, budget=11).tolist() == [4, 4, 3]
    assert allocate_by_gain([[0, 0], [0, 0], [1, 0]], minimum=0, budget=2).tolist() == [1, 0, 1]
    assert allocate_by_gain(np.zeros((2, 0)), minimum=3, budget=6).tolist() == [3, 3]


@pytest.mark.parametrize(
    ("gains", "budget", "message"),
    [
        ([[1, 2]], 2, "gains rise along a row"),
        ([[1, np.nan]], 2, "without NaN"),
        ([1, 2], 2, r"gains of shape \(2,\)"),
        ([[2, 1]], 0, "a budget of 0 can't be split over 1 prompts with 1 to 3 samples each"),
        ([[2, 1]], 4, "a budget of 4 can't be split"),
    ],
)
def test_gains_and_budgets_that_make_no_sense_are_refused(gains, budget: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        allocate_by_gain(gains, minimum=1, budget=budget)


@pytest.mark.parametrize("budget", [6, 9, 13, 18])
def test_knapsack_counts_have_the_largest_value_of_all(budget: int) -> None:
    n = np.arange(2, 7)
    for rates in ([0.1, 0.5, 0.8], [0.0, 0.05, 0.3], [1.0, 0.99, 0.33]):
        values = knapsack_values(rates, n)
        counts = allocate_by_gain(knapsack_gains(rates, minimum=2, maximum=6), minimum=2, budget=budget)
        assert counts.sum() == budget
        chosen = values[range(3), counts - 2].sum()
        assert chosen == pytest.approx(best_value(values, minimum=2, budget=budget), abs=1e-14)


def test_knapsack_counts_are_those_of_dynamic_programming() -> None:
    rng = np.random.default_rng(0)
    rates, budget = rng.random(12).tolist(), 96
    values = knapsack_values(rates, np.arange(2, 33))
    best = np.full(budget + 1, -np.inf)  # by budget spent
    best[0] = 0
    for row in values:
        best = np.array(
            [
                max([best[b - n] + row[n - 2] for n in range(2, min(32, b) + 1)], default=-np.inf)
                for b in range(budget + 1)
            ]
        )
    counts = allocate_by_gain(knapsack_gains(rates, minimum=2, maximum=32), minimum=2, budget=budget)
    assert values[range(12), counts - 2].sum() == pytest.approx(best[budget], abs=1e-14)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(1, 5))
def test_knapsack_gains_are_differences_of_a_concave_value(rates: list[float], minimum: int) -> None:
    gains = knapsack_gains(rates, minimum=minimum, maximum=minimum + 40)
    values = knapsack_values(rates, np.arange(minimum, minimum + 41))
    np.testing.assert_allclose(gains, np.diff(values, axis=1), atol=1e-14)
    assert (np.diff(gains, axis=1) <= 1e-16).all()


@pytest.mark.parametrize(("baseline", "minimum"), [("grpo", 3), ("rloo", 2)])
@pytest.mark.parametrize("budget", [12, 17, 21])
def test_vip_counts_have_the_smallest_variance_of_all(baseline, minimum: int, budget: int) -> None:
    n = np.arange(minimum, minimum + 6)
    per_unit = (n - 1) / n**2 if baseline == "grpo" else 1 / (n - 1)
    for rates in ([0.5, 0.1, 0.9], [0.0, 0.02, 0.4], [0.3, 1.0, 0.7]):
        p = np.array(rates)
        variances = np.outer(4 * p * (1 - p), per_unit)
        gains = variance_gains(rates, minimum=minimum, maximum=minimum + 5, baseline=baseline)
        counts = allocate_by_gain(gains, minimum=minimum, budget=budget)
        assert counts.sum() == budget
        chosen = variances[range(3), counts - minimum].sum()
        assert chosen == pytest.approx(-best_value(-variances, minimum=minimum, budget=budget), abs=1e-14)


def test_variance_gains_by_hand() -> None:
    # 4 p (1 - p) = 1 at 1/2: 2/9 - 3/16 = 5/144, 3/16 - 4/25 = 11/400; 1 - 1/2, 1/2 - 1/3
    np.testing.assert_allclose(variance_gains([0.5], minimum=3, maximum=5, baseline="grpo"), [[5 / 144, 11 / 400]])
    np.testing.assert_allclose(
        variance_gains([0.5, 0], minimum=2, maximum=4, baseline="rloo"), [[1 / 2, 1 / 6], [0, 0]]
    )
    with pytest.raises(ValueError, match="minimum = 2 is too small for 'grpo'; write 3 or more"):
        variance_gains([0.5], minimum=2, maximum=4, baseline="grpo")


def test_log_objective_weights_are_inverse_roots() -> None:
    np.testing.assert_allclose(log_objective_weights([0.0, 0.24, 0.99], epsilon=0.01), [10, 2, 1])


def test_prompts_are_drawn_in_proportion_to_their_learning_potential() -> None:
    # sqrt(p (1 - p)): 0, 0.4, 0.5
    rates, weights = [1.0, 0.2, 0.5], np.exp([0, 0.4, 0.5])
    rng, num_draws = np.random.default_rng(0), 20_000
    first, left_out = np.zeros(3), np.zeros(3)
    for _ in range(num_draws):
        first[draw_by_learning_potential(rates, num_drawn=1, temperature=1.0, rng=rng)] += 1
        drawn = draw_by_learning_potential(rates, num_drawn=2, temperature=1.0, rng=rng)
        assert drawn[0] < drawn[1]
        left_out[3 - drawn.sum()] += 1
    shares = weights / weights.sum()
    np.testing.assert_allclose(first / num_draws, shares, atol=0.015)  # four standard errors
    last = [sum(shares[j] * shares[3 - i - j] / (1 - shares[j]) for j in range(3) if j != i) for i in range(3)]
    np.testing.assert_allclose(left_out / num_draws, last, atol=0.015)


def test_a_low_temperature_draws_the_nearest_to_one_half() -> None:
    rng = np.random.default_rng(0)
    drawn = draw_by_learning_potential([1.0, 0.2, 0.5, 0.0], num_drawn=2, temperature=1e-9, rng=rng)
    assert drawn.tolist() == [1, 2]
    assert draw_by_learning_potential([1.0, 0.0], num_drawn=2, temperature=1e-9, rng=rng).tolist() == [0, 1]


def test_policy_gradient_std_is_that_of_scalar_gradients() -> None:
    """Norms stand for gradients in one dimension: x of a correct sample, y of a wrong one."""
    for p, x, y in ((0.25, [1.0, 3.0], [2.0]), (0.9, [0.5], [1.0, 2.0, 6.0]), (0.5, [2.0], [2.0])):
        samples = [((1 - p) * g, p / len(x)) for g in x] + [(-p * g, (1 - p) / len(y)) for g in y]
        mean = sum(value * share for value, share in samples)
        variance = sum(value**2 * share for value, share in samples) - mean**2
        sigma = policy_gradient_std([p], [[np.mean(x), np.mean(y)]], [[np.var(x), np.var(y)]])
        np.testing.assert_allclose(sigma, [np.sqrt(variance)])


def test_policy_gradient_std_vanishes_without_two_classes() -> None:
    assert policy_gradient_std([0.0, 1.0], [[1, 2], [3, 4]], [[1, 1], [1, 1]]).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("accepted", "num_kept", "kept"),
    [
        ([1, 1, 1, 0, 0, 0], 4, [0, 1, 3, 4]),
        ([0, 1, 0, 0, 1, 1], 4, [0, 1, 2, 4]),
        ([1, 1, 1, 0, 0, 0], 3, [0, 3, 4]),
        ([1, 1, 1, 1, 1, 0], 4, [0, 1, 2, 5]),
        ([0, 0, 0, 0, 0, 1], 4, [0, 1, 2, 5]),
        ([0, 0, 0], 2, [0, 1]),
        ([1, 0], 4, [0, 1]),
        ([], 4, []),
        ([1, 0], 0, []),
    ],
)
def test_half_of_each_class(accepted, num_kept: int, kept) -> None:
    assert half_of_each_class(accepted, num_kept=num_kept).tolist() == kept
