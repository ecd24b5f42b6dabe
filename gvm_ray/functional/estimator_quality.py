"""How far a random estimate is from its target: variance, squared bias and mean squared error, from repeats."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 2000

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ErrorSplit:
    """mean_squared_error = variance + bias_squared, in the units of the squared target."""

    variance: float  # E |x - E x|^2
    bias_squared: float  # |E x - target|^2; measured without bias, so it may come out below 0
    mean_squared_error: float  # E |x - target|^2
    cosine: float  # of E x with the target; NaN where E x is 0, or lost in noise


@dataclass(frozen=True, kw_only=True, eq=False)
class MeasuredError(ErrorSplit):
    """An error split estimated from repeats, and the same of bootstrap resamples of the repeats.

    The mean of a resample is off the target by the noise of the resampling too, so the resamples' squared bias lies
    above the estimate's: their deviation is its error, their percentiles are no interval of it.
    """

    resampled: NDArray[np.float64]  # [NUM_RESAMPLES, 3] variance, bias_squared, mean_squared_error

    @property
    def deviations(self) -> tuple[float, float, float]:
        """Standard errors of variance, bias_squared and mean_squared_error."""
        variance, bias_squared, error = self.resampled.std(axis=0)
        return float(variance), float(bias_squared), float(error)


def measured_error(estimates: Array, target: Array, *, seed: int = 0) -> MeasuredError:
    """Variance, squared bias and mean squared error of R independent estimates.

    The squared bias is |mean - target|^2 less variance / R, what the mean of R estimates is off by chance; so neither
    it nor the variance is biased, and their sum is the mean of the squared errors.

    Args:
        estimates: [R, D], R >= 2.
        target: [D].
        seed: of the bootstrap over repeats.

    Raises:
        ValueError: fewer than two estimates.
    """
    num_repeats = len(estimates)
    if num_repeats < 2:
        raise ValueError(f"a variance needs at least 2 repeats, got {num_repeats}; write num_repeats=2 or more")
    errors = (estimates - target).astype(np.float64)
    products = errors @ errors.T
    point = _split(np.ones((1, num_repeats)), products)[0]
    draws = np.random.default_rng(seed).multinomial(num_repeats, np.full(num_repeats, 1 / num_repeats), NUM_RESAMPLES)
    mean = estimates.mean(axis=0, dtype=np.float64)
    square = float(mean @ mean) - point[0] / num_repeats
    return MeasuredError(
        variance=float(point[0]),
        bias_squared=float(point[1]),
        mean_squared_error=float(point[2]),
        cosine=float(mean @ target / np.sqrt(square * (target @ target))) if square > 0 else float("nan"),
        resampled=_split(draws.astype(np.float64), products),
    )


def ratio_interval(error: MeasuredError, baseline: MeasuredError, *, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the ratio of two mean squared errors, whose repeats are independent of each other."""
    ratios = error.resampled[:, 2] / baseline.resampled[::-1, 2]  # resamples with equal seeds are no pairs
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _split(counts: Array, products: Array) -> Array:
    """[B, 3] of B resamples: how often each repeat is in it [B, R], of errors with inner products [R, R]."""
    num_repeats = counts.shape[1]
    error = counts @ np.diag(products) / num_repeats
    of_mean = np.einsum("br,br->b", counts @ products, counts) / num_repeats**2
    variance = (error - of_mean) * num_repeats / (num_repeats - 1)
    return np.stack([variance, of_mean - variance / num_repeats, error], axis=1)
