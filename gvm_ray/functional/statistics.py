"""Estimates from counts: what a handful of successes says about an accept rate, and means over bins of a rate."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def beta_posterior_mean(
    successes: ArrayLike, trials: ArrayLike, *, prior_successes: float, prior_failures: float
) -> NDArray[np.float64]:
    """Posterior mean of a success probability under a Beta prior, elementwise: (s + a) / (t + a + b).

    Without a prior (a = b = 0) it is the raw rate s / t, and 0 where there were no trials.

    Raises:
        ValueError: not 0 <= successes <= trials, or a negative or non-finite number.
    """
    s, t = np.broadcast_arrays(np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64))
    bad = ~(np.isfinite(t) & (s >= 0) & (s <= t))
    if bad.any():
        index = int(np.argmax(bad))
        raise ValueError(f"{s.flat[index]} successes of {t.flat[index]} trials (entry {index}) is not a count")
    if not (0 <= prior_successes < np.inf and 0 <= prior_failures < np.inf):
        raise ValueError(f"prior_successes={prior_successes} and prior_failures={prior_failures} must be >= 0")
    total = t + prior_successes + prior_failures
    return np.divide(s + prior_successes, total, out=np.zeros_like(total), where=total > 0)


def divisible_rates(rates: ArrayLike, trials: ArrayLike) -> NDArray[np.float64]:
    """Success rates that can be divided by: 0 becomes half a success, (1/2) / (t + 1), as under Jeffreys' prior.

    Args:
        rates: in [0, 1].
        trials: t behind each, >= 0.
    """
    values = np.asarray(rates, dtype=np.float64)
    return np.where(values > 0, values, 0.5 / (np.asarray(trials, dtype=np.float64) + 1))


def binned_mean(
    x: NDArray[np.float64], y: NDArray[np.float64], *, num_bins: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Mean of x, mean of y and number of points in equal bins of x over [0, 1]; shapes [B], empty bins are left out."""
    bins = np.clip((x * num_bins).astype(int), 0, num_bins - 1)
    totals = np.bincount(bins, minlength=num_bins)
    filled = totals > 0
    mean_x = np.bincount(bins, weights=x, minlength=num_bins)[filled] / totals[filled]
    mean_y = np.bincount(bins, weights=y, minlength=num_bins)[filled] / totals[filled]
    return mean_x, mean_y, totals[filled]
