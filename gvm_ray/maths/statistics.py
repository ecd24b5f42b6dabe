"""Statistics of accept rates, of the calibration of predictions, and of features."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

_NO_VARIANCE = 1e-10  # of the largest variance: rounding of rows in single precision


def beta_posterior_mean(
    successes: ArrayLike, trials: ArrayLike, *, prior_successes: float, prior_failures: float
) -> NDArray[np.float64]:
    """Compute the posterior mean of a success probability under a Beta prior, elementwise: (s + a) / (t + a + b).

    Without a prior (a = b = 0) it is the raw rate s / t, and 0 without trials.

    Raises:
        ValueError: not 0 <= successes <= trials, or a number is negative or not finite.
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


def beta_prior_strength(
    rates: NDArray[np.float64],
    successes: NDArray[np.float64],
    trials: NDArray[np.float64],
    *,
    typical: float,
    spread: float,
) -> float:
    """Estimate how many samples a predicted rate is worth: the strength m of the prior Beta(m q, m (1 - q)).

    The posterior mode of ln m: counts are beta-binomial (fractional counts by the same formula), and ln m is a priori
    normal. Only counts above one tell anything: a single sample has the same chance q under any m.

    Args:
        rates: q [P] in (0, 1), predicted without the counts.
        successes: [P] >= 0.
        trials: [P] >= successes.
        typical: m without counts.
        spread: a priori standard deviation of ln m.
    """
    from scipy.optimize import minimize_scalar  # imported here, as in `rank_correlation`
    from scipy.special import betaln

    failures = trials - successes

    def cost(log_strength: float) -> float:
        a, b = np.exp(log_strength) * rates, np.exp(log_strength) * (1 - rates)
        likelihood = betaln(a + successes, b + failures) - betaln(a, b)
        return ((log_strength - np.log(typical)) / spread) ** 2 / 2 - float(likelihood.sum())

    reach = 5 * spread
    found = minimize_scalar(cost, bounds=(np.log(typical) - reach, np.log(typical) + reach), method="bounded")
    return float(np.exp(found.x))


def divisible_rates(rates: ArrayLike, trials: ArrayLike) -> NDArray[np.float64]:
    """Make success rates safe to divide by: 0 becomes half a success, (1/2) / (t + 1), as under Jeffreys' prior.

    Args:
        rates: in [0, 1].
        trials: number of trials t behind each rate, >= 0.
    """
    values = np.asarray(rates, dtype=np.float64)
    return np.where(values > 0, values, 0.5 / (np.asarray(trials, dtype=np.float64) + 1))


def binned_mean(
    x: NDArray[np.float64], y: NDArray[np.float64], *, num_bins: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Compute mean x, mean y and number of points in equal bins of x over [0, 1]: [B] each, without empty bins."""
    bins = np.clip((x * num_bins).astype(int), 0, num_bins - 1)
    totals = np.bincount(bins, minlength=num_bins)
    filled = totals > 0
    mean_x = np.bincount(bins, weights=x, minlength=num_bins)[filled] / totals[filled]
    mean_y = np.bincount(bins, weights=y, minlength=num_bins)[filled] / totals[filled]
    return mean_x, mean_y, totals[filled]


def brier_score(predicted: ArrayLike, outcomes: ArrayLike) -> float:
    """Compute the mean squared error of predicted probabilities (Brier, 1950); 0 is perfect, 1/2 for coins gives 1/4.

    Args:
        predicted: [N] probabilities.
        outcomes: [N] outcomes, 0 or 1, or shares of several trials.

    Raises:
        ValueError: the shapes differ, the arrays are empty, or a number isn't in [0, 1].
    """
    p, y = _pairs(predicted, outcomes)
    return float(np.mean((p - y) ** 2))


def reliability_bins(
    predicted: ArrayLike, outcomes: ArrayLike, *, num_bins: int = 10
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Compute mean prediction, mean outcome and number of predictions in each non-empty bin: [B] each.

    Bins have equal widths. For calibrated predictions the first two are equal. Arguments and errors as for
    :func:`brier_score`.
    """
    p, y = _pairs(predicted, outcomes)
    return binned_mean(p, y, num_bins=num_bins)


def calibration_error(predicted: ArrayLike, outcomes: ArrayLike, *, num_bins: int = 10) -> float:
    """Compute the expected calibration error: the mean of |mean outcome - mean prediction| over bins of the prediction,
    weighted by their sizes (Naeini et al., 2015). 0 is calibrated; chance alone makes that of few predictions larger.

    Bins have equal widths. Arguments and errors as for :func:`brier_score`.
    """
    expected, seen, counts = reliability_bins(predicted, outcomes, num_bins=num_bins)
    return float(np.average(np.abs(seen - expected), weights=counts))


def rank_correlation(predicted: ArrayLike, outcomes: ArrayLike) -> float:
    """Compute Spearman's rank correlation [-1, 1] of two arrays [N], ties by mean rank; NaN if either is constant.

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
    from scipy.stats import rankdata  # imported here, because settings import this module and scipy is slow to load

    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])


def principal_components(
    rows: NDArray[np.float64], *, most: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Compute the centre [E] of N >= 1 rows [N, E], K >= 1 principal directions [E, K], and the variances [K] along
    them.

    Directions are of length 1, those with the largest variance first, and the entry of each that is largest in
    magnitude is positive. K is `most`, or less if the rows vary in fewer directions.
    """
    from scipy.linalg import eigh  # imported here, as in `rank_correlation`

    centre = rows.mean(axis=0)
    centred = rows - centre
    by_row = len(centred) < centred.shape[1]  # the smaller of two matrices with the same positive eigenvalues
    gram = centred @ centred.T if by_row else centred.T @ centred
    first = max(len(gram) - most, 0)
    values, vectors = eigh(gram, subset_by_index=(first, len(gram) - 1))
    values, vectors = values[::-1].clip(min=0.0), vectors[:, ::-1]
    num_kept = max(int(np.count_nonzero(values > _NO_VARIANCE * values[0])), 1)
    values, vectors = values[:num_kept], vectors[:, :num_kept]
    directions = centred.T @ vectors if by_row else vectors
    lengths = np.linalg.norm(directions, axis=0)
    directions = directions / np.where(lengths > 0, lengths, 1.0)
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=0)[None], axis=0)
    return centre, np.where(largest < 0, -directions, directions), values / len(rows)


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
