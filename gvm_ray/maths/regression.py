"""Small weighted regressions with uncertainty, refitted at every step from a few thousand rows.

The first column of the features is the constant 1; its coefficient is hardly penalised.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Matrix = NDArray[np.float64]
_FREE = 1e-6  # penalty of a ridge regression's constant: negligible, but keeps the normal equations solvable
_CONSTANT_PRECISION = 0.04  # without it, the constant's variance is unbounded if all samples are accepted
_MAX_NEWTON_STEPS = 30
_LEAST_KEPT = 0.05  # of a group's own precision that other rows give; with less, a Newton step is too coarse
_ENOUGH = 1e-6  # gain of a Newton step, in nats, below which the fit stops


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearFit:
    """Coefficients [F] and their posterior covariance [F, F]."""

    coefficients: Matrix
    covariance: Matrix

    def mean(self, features: Matrix) -> Matrix:
        """Predicted means [N] for features [N, F]."""
        return features @ self.coefficients

    def variance(self, features: Matrix) -> Matrix:
        """Posterior variances [N] of `mean`."""
        return np.einsum("nf,fg,ng->n", features, self.covariance, features, optimize=True)


def fit_ridge(features: Matrix, targets: Matrix, *, weights: Matrix, ridge: float) -> LinearFit:
    """Fit a weighted ridge regression: minimise sum_n w_n (y_n - x_n b)^2 + ridge |b|^2.

    The covariance is that of the Gaussian posterior, with the weighted mean square of the residuals as noise variance.

    Args:
        features: [N, F], the first column 1.
        targets: [N].
        weights: [N] >= 0, not all 0.
        ridge: penalty, > 0.
    """
    precision = _gram(features, weights) + _penalty(features.shape[1], ridge, constant=_FREE)
    inverse = _inverse(precision)
    coefficients = inverse @ (features.T @ (weights * targets))
    noise = float(weights @ (targets - features @ coefficients) ** 2 / weights.sum())
    return LinearFit(coefficients=coefficients, covariance=noise * inverse)


def fit_binomial(
    features: Matrix,
    successes: Matrix,
    trials: Matrix,
    *,
    weights: Matrix,
    ridge: float,
) -> LinearFit:
    """Fit a weighted logistic regression on counts, with a Gaussian prior of precision `ridge` on the coefficients.

    Maximises sum_n w_n (s_n ln p_n + (t_n - s_n) ln(1 - p_n)) - ridge |b|^2 / 2 with p_n = 1 / (1 + exp(-x_n b)), by
    Newton's method; a step that overshoots is halved. The constant has a weak prior, a logit of 0 +- 5. The covariance
    is that of the Laplace approximation.

    Args:
        features: [N, F], the first column 1.
        successes: s [N].
        trials: t [N] >= s.
        weights: [N] >= 0.
        ridge: precision of the prior, > 0.
    """
    penalty = _penalty(features.shape[1], ridge, constant=_CONSTANT_PRECISION)
    coefficients = np.zeros(features.shape[1])
    value = _log_posterior(features, successes, trials, weights, penalty, coefficients)
    hessian = penalty
    for _ in range(_MAX_NEWTON_STEPS):
        rates = expit(features @ coefficients)
        gradient = features.T @ (weights * (successes - trials * rates)) - penalty @ coefficients
        hessian = _gram(features, weights * trials * rates * (1 - rates)) + penalty
        direction = np.linalg.solve(hessian, gradient)
        if gradient @ direction / 2 < _ENOUGH:
            break
        while True:
            proposed = coefficients + direction
            reached = _log_posterior(features, successes, trials, weights, penalty, proposed)
            if reached >= value:
                break
            direction /= 2
        coefficients, value = proposed, reached
    return LinearFit(coefficients=coefficients, covariance=_inverse(hessian))


def leave_group_out(
    fit: LinearFit,
    features: Matrix,
    successes: Matrix,
    trials: Matrix,
    *,
    weights: Matrix,
    groups: NDArray[np.int64],
) -> tuple[Matrix, Matrix]:
    """Approximate what a logistic regression on all rows but a group's would predict for that group.

    By one Newton step away from the fit on all rows (Rad and Maleki 2020, arXiv 1801.10243). Rows of a group count as
    one, at their mean logit and variance, which is exact if they have equal features.

    Args:
        fit: what `fit_binomial` found for these rows.
        features: [N, F].
        successes: [N].
        trials: [N].
        weights: [N].
        groups: [N] number of each row's group, 0 to G - 1, each at least once.

    Returns:
        Logits [G] and their posterior variances [G].
    """
    logits = fit.mean(features)
    rates = expit(logits)
    sizes = np.bincount(groups)
    means, variances = (np.bincount(groups, values) / sizes for values in (logits, fit.variance(features)))
    residuals = np.bincount(groups, weights * (successes - trials * rates))
    curvatures = np.bincount(groups, weights * trials * rates * (1 - rates))
    kept = np.maximum(1 - variances * curvatures, _LEAST_KEPT)
    return means - variances * residuals / kept, variances / kept


def _gram(features: Matrix, weights: Matrix) -> Matrix:
    """Compute X' diag(weights) X [F, F] as a matrix times its own transpose, for which BLAS needs half the work."""
    scaled = features * np.sqrt(weights)[:, None]
    return scaled.T @ scaled


def _log_posterior(
    features: Matrix, successes: Matrix, trials: Matrix, weights: Matrix, penalty: Matrix, coefficients: Matrix
) -> float:
    logits = features @ coefficients
    likelihood = successes * logits - trials * np.logaddexp(0, logits)
    return float(weights @ likelihood - coefficients @ penalty @ coefficients / 2)


def _penalty(num_features: int, ridge: float, *, constant: float) -> Matrix:
    return np.diag([constant] + [ridge] * (num_features - 1))


def _inverse(matrix: Matrix) -> Matrix:
    return np.asarray(np.linalg.inv(matrix), dtype=np.float64)
