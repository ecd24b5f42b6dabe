"""Scores of predicted success probabilities against few trials each, and what a perfect prediction could score.

Successes s_i of t_i trials are binomial with probability p_i, and the observed rate is y_i = s_i / t_i. A prediction
q_i knows nothing of these trials, so that the noise y_i - p_i is uncorrelated with it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_QUANTILES = 200  # of the Beta distribution over which an expectation is taken
_LEAST_TRIALS = 2  # that tell noise from spread


@dataclass(frozen=True, kw_only=True)
class NoiseCeiling:
    """The best scores that the observed rates allow: those of a prediction that knows every p_i.

    The correlation is NaN if the rates spread no more than noise does.
    """

    correlation: float  # of p and y: sqrt(Var p / Var y)
    absolute_error: float  # mean of |p - y|
    brier: float  # mean of (p - y)^2


@dataclass(frozen=True, kw_only=True)
class PredictionScores:
    """Scores of predictions, as observed, and the correlation corrected for the noise of the rates."""

    correlation: float  # Pearson's, of q and y; NaN if either is constant
    true_correlation: float  # of q and p: the correlation over its ceiling (Spearman 1904)
    absolute_error: float
    brier: float


def noise_ceiling(successes: Array, trials: Array) -> NoiseCeiling:
    """Estimate the ceiling from the counts [N] alone.

    p (1 - p) / t is estimated without bias by y (1 - y) / (t - 1). This gives the Brier score of p itself, and, taken
    from the variance of y, the variance of p. The mean absolute error has no such estimate; it is that of the Beta
    distribution of p with the same mean and variance.

    Args:
        successes: s [N].
        trials: t [N].

    Raises:
        ValueError: there are fewer than two counts, or fewer than two trials behind one.
    """
    _check(successes, trials)
    rates = successes / trials
    noise = _noise(rates, trials)
    return NoiseCeiling(
        correlation=_correlation_ceiling(rates, trials),
        absolute_error=_absolute_noise(float(rates.mean()), max(float(rates.var(ddof=1)) - noise, 0.0), trials),
        brier=noise,
    )


def prediction_scores(predicted: Array, successes: Array, trials: Array) -> PredictionScores:
    """Compare predicted probabilities q [N] with counts [N]. Arguments and errors as for :func:`noise_ceiling`."""
    _check(successes, trials)
    rates = successes / trials
    varies = np.ptp(predicted) > 0 and np.ptp(rates) > 0
    correlation = float(np.corrcoef(predicted, rates)[0, 1]) if varies else float("nan")
    return PredictionScores(
        correlation=correlation,
        true_correlation=correlation / _correlation_ceiling(rates, trials),
        absolute_error=float(np.mean(np.abs(predicted - rates))),
        brier=float(np.mean((predicted - rates) ** 2)),
    )


def _noise(rates: Array, trials: Array) -> float:
    """The mean of p (1 - p) / t, the variance of the observed rates about the true ones."""
    return float(np.mean(rates * (1 - rates) / (trials - 1)))


def _correlation_ceiling(rates: Array, trials: Array) -> float:
    variance = float(rates.var(ddof=1))
    spread = variance - _noise(rates, trials)
    return float(np.sqrt(spread / variance)) if spread > 0 else float("nan")


def _absolute_noise(mean: float, variance: float, trials: Array) -> float:
    """The mean over prompts of E|p - s/t|, where p has a Beta distribution with this mean and variance.

    With v = floor(t p) + 1 it is 2 v (1 - p) b(v; t, p) / t, where b is the binomial probability (de Moivre 1730).
    """
    from scipy.stats import beta, binom  # imported here: settings import this package's floor, and scipy loads slowly

    limit = mean * (1 - mean)
    if limit == 0:
        return 0.0
    if variance >= limit:  # all p are 0 or 1
        return 0.0
    levels = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    if variance > 0:
        strength = limit / variance - 1
        p = beta.ppf(levels, mean * strength, (1 - mean) * strength).clip(0.0, 1.0)
    else:
        p = np.full(1, mean)
    sizes, numbers = np.unique(trials, return_counts=True)
    errors = []
    for size in sizes:
        v = np.floor(size * p) + 1
        errors.append(float(np.mean(2 * v * (1 - p) * binom.pmf(v, size, p) / size)))
    return float(np.average(errors, weights=numbers))


def _check(successes: Array, trials: Array) -> None:
    if successes.shape != trials.shape or successes.ndim != 1 or successes.size < 2:
        raise ValueError(f"successes {successes.shape} and trials {trials.shape}: give two arrays [N] with N >= 2")
    if (trials < _LEAST_TRIALS).any():
        raise ValueError(f"{trials.min():g} trials can't tell noise from spread; give at least {_LEAST_TRIALS}")
    if ((successes < 0) | (successes > trials)).any():
        raise ValueError("successes must lie between 0 and the number of trials")
