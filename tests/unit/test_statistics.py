"""Posterior and binned means against hand-computed numbers."""

import numpy as np
import pytest

from gvm_ray.maths.statistics import beta_posterior_mean, binned_mean


def test_posterior_mean() -> None:
    # (s + a) / (t + a + b) with a = 0.5, b = 1.5
    rates = beta_posterior_mean([0, 2, 4], [0, 4, 4], prior_successes=0.5, prior_failures=1.5)
    np.testing.assert_allclose(rates, [0.25, 2.5 / 6, 0.75], rtol=1e-15)


def test_without_a_prior_it_is_the_raw_rate_and_zero_without_trials() -> None:
    rates = beta_posterior_mean([0, 0, 3, 4], [0, 4, 4, 4], prior_successes=0, prior_failures=0)
    assert rates.tolist() == [0.0, 0.0, 0.75, 1.0]


@pytest.mark.parametrize(
    ("successes", "trials", "message"),
    [([1, 5], [4, 4], "5.0 successes of 4.0 trials"), ([-1], [4], "-1.0 successes"), ([float("nan")], [4], "nan")],
)
def test_refuses_what_is_no_count(successes, trials, message) -> None:
    with pytest.raises(ValueError, match=message):
        beta_posterior_mean(successes, trials, prior_successes=0.5, prior_failures=0.5)


def test_refuses_a_negative_prior() -> None:
    with pytest.raises(ValueError, match="prior_successes=-1"):
        beta_posterior_mean([1], [2], prior_successes=-1, prior_failures=0.5)


def test_binned_mean_by_hand() -> None:
    x = np.array([0.0, 0.05, 0.95, 1.0, 0.31])
    mean_x, mean_y, counts = binned_mean(x, np.array([1.0, 3.0, 4.0, 8.0, 5.0]), num_bins=10)
    np.testing.assert_allclose(mean_x, [0.025, 0.31, 0.975])
    np.testing.assert_allclose(mean_y, [2.0, 5.0, 6.0])
    assert counts.tolist() == [2, 1, 2]
