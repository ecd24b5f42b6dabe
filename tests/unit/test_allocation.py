"""Sample-size formulas against hand-made numbers, and the apportionment's promises against random ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gvm_ray.maths.allocation import apportion, gvm_weights


def test_gvm_weights_are_the_formula_of_proposition_1() -> None:
    # beta = 2: G / sqrt(p + alpha / p). 3 / sqrt(0.25 + 0.5 / 0.25) = 3 / 1.5 = 2; 1 / sqrt(1 + 0.5) = 0.81649658...
    weights = gvm_weights([0.25, 1.0], [3.0, 1.0], alpha=0.5, beta=2.0)
    np.testing.assert_allclose(weights, [2.0, 0.816496580927726], rtol=1e-12)
    # beta = 3: 1 / sqrt(0.5 + 0.125 / 0.25) = 1
    np.testing.assert_allclose(gvm_weights([0.5], [1.0], alpha=0.125, beta=3.0), [1.0], rtol=1e-12)


def test_gvm_weights_are_zero_without_signal() -> None:
    assert gvm_weights([0.0, 0.5, 1e-320], [2.0, 0.0, 1.0], alpha=1e-3, beta=2.0).tolist() == [0.0, 0.0, 0.0]
    assert gvm_weights([], [], alpha=1e-3, beta=2.0).shape == (0,)


@pytest.mark.parametrize(
    ("rates", "norms", "message"),
    [
        ([0.5, float("nan")], [1.0, 1.0], r"accept_rates\[1\] = nan"),
        ([0.5, 0.5], [1.0, -2.0], r"gradient_norms\[1\] = -2.0"),
        ([0.5, 0.5], [float("inf"), 1.0], r"gradient_norms\[0\] = inf"),
        ([0.5, 1.25], [1.0, 1.0], r"accept_rates\[1\] = 1.25"),
        ([0.5], [1.0, 1.0], r"shape"),
    ],
)
def test_gvm_weights_name_the_bad_entry(rates: list[float], norms: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gvm_weights(rates, norms, alpha=1e-3, beta=2.0)


@pytest.mark.parametrize(
    ("weights", "budget", "minimum", "maximum", "expected"),
    [
        ([1, 2, 3], 12, 0, None, [2, 4, 6]),
        ([1, 1, 1], 10, 0, None, [4, 3, 3]),  # a tie goes to the earlier prompt
        ([1, 2, 4], 8, 0, None, [1, 2, 5]),  # 8/7, 16/7, 32/7: the missing one goes to the remainder 4/7
        ([1, 100], 10, 2, None, [2, 8]),  # the minimum is a floor on the total, not an addition
        ([1, 100], 10, 2, 6, [4, 6]),
        ([0, 0, 0], 7, 0, None, [3, 2, 2]),
        ([0, 0, 0], 4, 0, [1, 1, 2], [1, 1, 2]),
        ([0, 0, 0], 6, [3, 0, 0], None, [3, 2, 1]),
        ([1, 0], 8, 0, 5, [5, 3]),  # what the weighted prompts can't take goes to the others
        ([3, 1, 0], 8, [0, 0, 2], None, [5, 1, 2]),  # 6 over weights 3 and 1: 4.5 and 1.5, tie to the earlier
        ([1e300, 1e-300], 4, 0, None, [4, 0]),
        ([1e-300, 3e-300], 4, 0, None, [1, 3]),
        ([2.0], 0, 0, None, [0]),
        ([], 0, 0, None, []),
    ],
)
def test_apportion(weights, budget, minimum, maximum, expected) -> None:
    counts = apportion(weights, budget=budget, minimum=minimum, maximum=maximum)
    assert counts.dtype == np.int64
    assert counts.tolist() == expected


@pytest.mark.parametrize(
    ("weights", "budget", "minimum", "maximum", "message"),
    [
        ([1.0, float("nan")], 4, 0, None, r"weights\[1\] = nan"),
        ([-1.0, 1.0], 4, 0, None, r"weights\[0\] = -1.0"),
        ([1, 1], 3, 2, None, "budget of 3 .* minimum sums to 4"),
        ([1, 1], 9, 0, 4, "budget of 9 .* maximum sums to 8"),
        ([1, 1], 4, 3, 1, "minimum 3 is above maximum 1"),
        ([1, 1], 4, -1, None, "minimum = -1"),
        ([1, 1], 4, 0.5, None, "minimum = 0.5"),
        ([1, 1], -1, 0, None, "-1"),
        ([1, 1], 4, [0, 0, 0], None, "minimum has shape"),
        ([], 4, 0, None, "budget of 4"),
    ],
)
def test_apportion_refuses_with_the_numbers(weights, budget, minimum, maximum, message) -> None:
    with pytest.raises(ValueError, match=message):
        apportion(weights, budget=budget, minimum=minimum, maximum=maximum)


@st.composite
def problems(draw):
    size = draw(st.integers(1, 12))
    weight = st.one_of(st.just(0.0), st.floats(1e-12, 1e12), st.floats(0, 1e300))
    weights = draw(st.lists(weight, min_size=size, max_size=size))
    minimum = np.array(draw(st.lists(st.integers(0, 6), min_size=size, max_size=size)))
    maximum = minimum + np.array(draw(st.lists(st.integers(0, 30), min_size=size, max_size=size)))
    budget = draw(st.integers(int(minimum.sum()), int(maximum.sum())))
    return weights, budget, minimum, maximum


@given(problems())
def test_apportion_spends_the_budget_within_the_bounds(problem) -> None:
    weights, budget, minimum, maximum = problem
    counts = apportion(weights, budget=budget, minimum=minimum, maximum=maximum)
    assert counts.sum() == budget
    assert (counts >= minimum).all()
    assert (counts <= maximum).all()
    assert (counts == apportion(weights, budget=budget, minimum=minimum, maximum=maximum)).all()


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20), st.integers(0, 10_000))
def test_apportion_is_within_one_of_proportional(weights: list[float], budget: int) -> None:
    counts = apportion(weights, budget=budget)
    exact = budget * np.array(weights) / np.sum(weights)
    assert (np.abs(counts - exact) < 1 + 1e-6).all()


@given(problems())
def test_apportion_moves_no_sample_that_the_bounds_allow_to_sit_better(problem) -> None:
    """Water-filling: a prompt off its floor and one off its ceiling have nearly the same samples per weight."""
    weights, budget, minimum, maximum = problem
    counts = apportion(weights, budget=budget, minimum=minimum, maximum=maximum)
    w = np.maximum(np.array(weights) / max(max(weights), 1e-300), 0)
    for giver in np.flatnonzero((counts - 1 > minimum) & (w > 1e-15)):
        for taker in np.flatnonzero((counts + 1 < maximum) & (w > 1e-15)):
            assert (counts[giver] - 1) / w[giver] <= (counts[taker] + 1) / w[taker] * (1 + 1e-9)


def slow_apportion(weights: np.ndarray, *, budget: int, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """As `apportion`: tries every level at which a prompt leaves its floor or meets its ceiling, sorts remainders."""
    if not (weights > 0).any():
        weights = np.ones(len(weights))
    weighted = weights > 0
    w = np.maximum(weights[weighted] / weights.max(), 1e-18)
    for_weighted = min(budget - low[~weighted].sum(), high[weighted].sum())
    shares = np.zeros(len(weights))
    shares[weighted] = slow_water_fill(w, low[weighted], high[weighted], for_weighted)
    even = np.ones(np.count_nonzero(~weighted))
    shares[~weighted] = slow_water_fill(even, low[~weighted], high[~weighted], budget - for_weighted)
    counts = np.floor(shares).astype(np.int64)
    remainders = np.where(counts < high, shares - counts, -1.0)
    counts[np.argsort(-remainders, kind="stable")[: budget - counts.sum()]] += 1
    return counts


def slow_water_fill(w: np.ndarray, low: np.ndarray, high: np.ndarray, total: int) -> np.ndarray:
    if total in (low.sum(), high.sum()):
        return (low if total == low.sum() else high).astype(np.float64)
    levels = np.unique(np.concatenate([low / w, high / w]))
    above = next(i for i, level in enumerate(levels) if np.clip(level * w, low, high).sum() > total)
    free = (low / w <= levels[above - 1]) & (high / w >= levels[above])
    shares = np.where(high / w <= levels[above - 1], high, low).astype(np.float64)
    shares[free] = (total - shares[~free].sum()) * (w[free] / w[free].sum())
    return np.clip(shares, low, high)


@given(problems())
def test_apportion_agrees_exactly_with_the_slow_way(problem) -> None:
    weights, budget, minimum, maximum = problem
    counts = apportion(weights, budget=budget, minimum=minimum, maximum=maximum)
    assert counts.tolist() == slow_apportion(np.array(weights), budget=budget, low=minimum, high=maximum).tolist()


WEIGHTS = {
    "normal": lambda rng, size: rng.lognormal(size=size),
    "wide": lambda rng, size: 10 ** rng.uniform(-25, 25, size=size),
    "few values": lambda rng, size: rng.integers(0, 4, size=size) / 3,
    "equal": lambda rng, size: np.full(size, 0.1),
    "vanishing": lambda rng, size: np.where(rng.random(size) < 0.5, 1e-18, 1.0),
}


@pytest.mark.parametrize("make_weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("bounds", ["none", "floor", "ceiling", "both"])
def test_apportion_agrees_exactly_with_the_slow_way_on_many_prompts(make_weights, bounds: str) -> None:
    rng = np.random.default_rng(0)
    for size in (40, 400):
        weights = make_weights(rng, size)
        low = rng.integers(0, 6, size=size) if bounds in ("floor", "both") else np.zeros(size, dtype=np.int64)
        for budget in range(5 * size, 8 * size, 37):
            high = 8 + rng.integers(0, 9, size=size) if bounds in ("ceiling", "both") else np.full(size, budget)
            counts = apportion(weights, budget=budget, minimum=low, maximum=high)
            assert counts.tolist() == slow_apportion(weights, budget=budget, low=low, high=high).tolist()


def test_apportion_handles_a_large_problem() -> None:
    weights = np.random.default_rng(0).random(200_000)
    counts = apportion(weights, budget=1_600_000, minimum=1, maximum=14)
    assert counts.sum() == 1_600_000
    assert (counts.min(), counts.max()) == (1, 14)
