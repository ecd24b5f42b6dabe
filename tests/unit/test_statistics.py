"""Posterior and binned means against hand-computed numbers."""

import numpy as np
import pytest
from scipy.stats import betabinom

from gvm_ray.maths.statistics import beta_posterior_mean, beta_prior_strength, binned_mean


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


def drawn_counts(strength: float, *, trials: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rates [P] that were predicted, and successes and trials [P] of prompts whose rates are Beta draws around them."""
    rng = np.random.default_rng(seed)
    rates = rng.uniform(0.1, 0.9, size=800)
    own = rng.beta(strength * rates, strength * (1 - rates))
    return rates, rng.binomial(trials, own).astype(np.float64), np.full(800, float(trials))


@pytest.mark.parametrize("strength", [1.0, 4.0, 20.0])
def test_the_worth_of_a_prediction_is_found_in_counts(strength: float) -> None:
    rates, successes, trials = drawn_counts(strength, trials=8)
    found = beta_prior_strength(rates, successes, trials, typical=4.0, spread=1.0)
    assert found == pytest.approx(strength, rel=0.25)
    grid = np.geomspace(0.2, 100, 4000)
    posterior = [
        betabinom.logpmf(successes, trials, m * rates, m * (1 - rates)).sum() - np.log(m / 4.0) ** 2 / 2 for m in grid
    ]
    assert found == pytest.approx(grid[np.argmax(posterior)], rel=5e-3)


def test_single_samples_say_nothing_of_the_worth_of_a_prediction() -> None:
    rates, successes, trials = drawn_counts(20.0, trials=1)
    assert beta_prior_strength(rates, successes, trials, typical=4.0, spread=1.0) == pytest.approx(4.0, rel=1e-3)


def test_the_worth_of_a_prediction_is_bounded_if_counts_agree_or_disagree_entirely() -> None:
    rates, trials = np.full(300, 0.5), np.full(300, 8.0)
    agreeing = beta_prior_strength(rates, np.full(300, 4.0), trials, typical=4.0, spread=1.0)
    opposite = beta_prior_strength(rates, np.tile([0.0, 8.0], 150), trials, typical=4.0, spread=1.0)
    assert 0.02 < opposite < 0.2 < 20 < agreeing < 600
