"""Predicts accept rates from prompts' features by Gaussian process regression."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

_ROUNDING = 1e-6  # of features in single precision


def predict_accept_rates(
    features: ArrayLike,
    *,
    observed_features: ArrayLike,
    successes: ArrayLike,
    trials: ArrayLike,
    prior_accept_rate: float,
    prior_std: float,
    length_scale: float,
) -> NDArray[np.float64]:
    """sigmoid of the posterior mean [P] of a Gaussian process on the logit of the accept rate (after arXiv 2602.01601).

    Its covariance is an RBF kernel on the features, scaled to mean 0 and standard deviation 1 over the observations.
    What is observed is the empirical logit ln((s + 1/2) / (t - s + 1/2)), with its own noise variance
    1 / (s + 1/2) + 1 / (t - s + 1/2) (Gart & Zweifel 1967), so that 8 samples of 8 say more than 1 of 1.

    Args:
        features: [P, F] of the prompts asked for.
        observed_features: [W, F] of the observations, W >= 1; a prompt may occur several times.
        successes: s [W].
        trials: t [W], >= 1.
        prior_accept_rate: where no observation is near, in (0, 1).
        prior_std: standard deviation of the logit before any observation.
        length_scale: of the kernel, in units of the median distance between different observed prompts.
    """
    from sklearn.gaussian_process import GaussianProcessRegressor  # a second to import: only who predicts waits for it
    from sklearn.gaussian_process.kernels import ConstantKernel, PairwiseKernel
    from sklearn.metrics import euclidean_distances

    observed = np.asarray(observed_features, dtype=np.float64)
    mean, std = observed.mean(axis=0), observed.std(axis=0)
    std = np.where(std > _ROUNDING * np.abs(mean), std, 1.0)  # a constant feature says nothing
    observed = (observed - mean) / std
    distances = euclidean_distances(observed)[np.triu_indices(len(observed), k=1)]
    apart = distances[distances > _ROUNDING]
    scale = length_scale * (float(np.median(apart)) if apart.size else 1.0)
    accepted = np.asarray(successes, dtype=np.float64) + 0.5
    rejected = np.asarray(trials, dtype=np.float64) - accepted + 1
    untyped: Any = GaussianProcessRegressor  # type checkers guess its parameters' types from their defaults
    process = untyped(
        # `RBF` in all but speed: that takes distances without BLAS
        kernel=ConstantKernel(prior_std**2) * PairwiseKernel(metric="rbf", gamma=0.5 / scale**2),
        alpha=1 / accepted + 1 / rejected,
        optimizer=None,
    )
    prior = logit(prior_accept_rate)
    process.fit(observed, np.log(accepted / rejected) - prior)
    return expit(prior + process.predict((np.asarray(features, dtype=np.float64) - mean) / std))
