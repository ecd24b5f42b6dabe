"""Brier score, reliability and rank correlation, by hand."""

import math

import numpy as np
import pytest

from gvm_ray.maths.statistics import brier_score, rank_correlation, reliability_bins


def test_brier_score_by_hand() -> None:
    assert brier_score([0.5, 0.5], [0, 1]) == pytest.approx(0.25)
    assert brier_score([0.9, 0.2], [1.0, 0.5]) == pytest.approx((0.01 + 0.09) / 2)


def test_reliability_bins_by_hand() -> None:
    predicted, outcome, counts = reliability_bins([0.1, 0.3, 0.9, 1.0], [0, 1, 1, 0.5], num_bins=2)
    np.testing.assert_allclose(predicted, [0.2, 0.95])
    np.testing.assert_allclose(outcome, [0.5, 0.75])
    assert counts.tolist() == [2, 2]


def test_rank_correlation_looks_at_the_order_only() -> None:
    assert rank_correlation([0.1, 0.2, 0.3], [1.0, 10.0, 1e6]) == pytest.approx(1)
    assert rank_correlation([0.1, 0.2, 0.3], [3.0, 2.0, 1.0]) == pytest.approx(-1)
    # Ranks 1, 2, 3, 4 against 1, 2.5, 2.5, 4: covariance 4.5 over sqrt(5 * 4.5).
    assert rank_correlation([1, 2, 3, 4], [1, 2, 2, 4]) == pytest.approx(4.5 / math.sqrt(22.5))


def test_rank_correlation_with_a_constant_is_undefined() -> None:
    assert math.isnan(rank_correlation([0.5, 0.5], [0.1, 0.9]))


@pytest.mark.parametrize(
    ("predicted", "outcomes", "message"),
    [
        ([0.5], [1, 0], "one of each"),
        ([], [], "at least one"),
        ([1.5], [1], r"predicted\[0\] = 1.5"),
        ([0.5], [math.nan], r"outcomes\[0\] = nan"),
    ],
)
def test_refuses_what_is_no_prediction(predicted: list[float], outcomes: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        brier_score(predicted, outcomes)


@pytest.mark.parametrize(("x", "y", "message"), [([1.0], [1.0], "N >= 2"), ([1.0, math.inf], [1.0, 2.0], "finite")])
def test_refuses_what_has_no_ranks(x: list[float], y: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank_correlation(x, y)
