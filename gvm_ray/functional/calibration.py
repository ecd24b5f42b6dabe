"""How good predicted probabilities are: their error, whether they mean what they say, and whether they rank."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gvm_ray.functional.statistics import binned_mean


def brier_score(predicted: ArrayLike, outcomes: ArrayLike) -> float:
    """Mean squared error of predicted probabilities (Brier, 1950); 0 is perfect, predicting 1/2 for coins gives 1/4.

    Args:
        predicted: [N] probabilities.
        outcomes: [N] what came of them, 0 or 1, or the share of several trials.

    Raises:
        ValueError: the shapes differ, nothing is given, or a number isn't in [0, 1].
    """
    p, y = _pairs(predicted, outcomes)
    return float(np.mean((p - y) ** 2))


def reliability_bins(
    predicted: ArrayLike, outcomes: ArrayLike, *, num_bins: int = 10
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Mean prediction, mean outcome and number of predictions in each of equal bins that isn't empty: [B], [B], [B].

    Calibrated predictions have the first two equal. Arguments and errors as for :func:`brier_score`.
    """
    p, y = _pairs(predicted, outcomes)
    return binned_mean(p, y, num_bins=num_bins)


def rank_correlation(predicted: ArrayLike, outcomes: ArrayLike) -> float:
    """Spearman's rank correlation [-1, 1] of two arrays [N], ties by mean rank; NaN where either is constant.

    Raises:
        ValueError: the shapes differ, there are fewer than two pairs, or a number isn't finite.
    """
    x, y = np.asarray(predicted, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or x.size < 2:
        raise ValueError(f"shapes {x.shape} and {y.shape}: a rank correlation needs two arrays [N] with N >= 2")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("a rank correlation needs finite numbers; leave out pairs with NaN or infinity")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    from scipy.stats import rankdata  # late: settings import this module

    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])


def _pairs(predicted: ArrayLike, outcomes: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    p, y = np.asarray(predicted, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    if p.shape != y.shape or p.ndim != 1 or p.size == 0:
        raise ValueError(
            f"predicted has shape {p.shape}, outcomes {y.shape}; give one of each per prompt, at least one"
        )
    for name, values in (("predicted", p), ("outcomes", y)):
        bad = ~((values >= 0) & (values <= 1))
        if bad.any():
            index = int(np.argmax(bad))
            raise ValueError(f"{name}[{index}] = {values[index]} is not in [0, 1]")
    return p, y
