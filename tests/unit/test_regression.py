"""The predictor's regressions against scikit-learn, finite differences, and data without any contrast."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression, Ridge

from gvm_ray.maths.regression import fit_binomial, fit_ridge, leave_group_out

RIDGE = 3.0
CONSTANT_PRECISION = 0.04


def problem(num_rows: int = 60, num_features: int = 4, seed: int = 0):
    """features [N, 1 + F], successes, trials and weights [N] of a logistic model."""
    rng = np.random.default_rng(seed)
    features = np.concatenate([np.ones((num_rows, 1)), rng.normal(size=(num_rows, num_features))], axis=1)
    trials = rng.integers(0, 9, size=num_rows).astype(np.float64)
    successes = rng.binomial(trials.astype(int), expit(features @ rng.normal(size=num_features + 1))).astype(np.float64)
    return features, successes, trials, rng.uniform(0, 1, size=num_rows)


def test_ridge_is_scikit_learns_with_an_unpenalised_constant() -> None:
    features, targets, _, weights = problem()
    fit = fit_ridge(features, targets, weights=weights, ridge=RIDGE)
    reference = Ridge(alpha=RIDGE).fit(features[:, 1:], targets, sample_weight=weights)
    np.testing.assert_allclose(fit.coefficients, [reference.intercept_, *reference.coef_], rtol=1e-6)
    np.testing.assert_allclose(fit.mean(features), reference.predict(features[:, 1:]), rtol=1e-6)


def test_ridge_covariance_is_the_textbooks_where_the_penalty_vanishes() -> None:
    features, targets, _, weights = problem(num_rows=400)
    fit = fit_ridge(features, targets, weights=weights, ridge=1e-9)
    noise = np.average((targets - fit.mean(features)) ** 2, weights=weights)
    expected = noise * np.linalg.inv(features.T @ np.diag(weights) @ features)
    np.testing.assert_allclose(fit.covariance, expected, rtol=1e-4, atol=1e-9)


def test_binomial_is_scikit_learns_on_one_row_for_each_sample() -> None:
    features, successes, trials, weights = problem()
    # A penalty of its own for the constant: its column is scaled, and scikit-learn's own constant left out.
    scale = np.sqrt(RIDGE / CONSTANT_PRECISION)
    scaled = features * [scale, 1, 1, 1, 1]
    reference = LogisticRegression(C=1 / RIDGE, fit_intercept=False, tol=1e-10, max_iter=10_000)
    reference.fit(
        np.concatenate([scaled, scaled]),
        np.repeat([1, 0], len(features)),
        sample_weight=np.concatenate([weights * successes, weights * (trials - successes)]),
    )
    fit = fit_binomial(features, successes, trials, weights=weights, ridge=RIDGE)
    np.testing.assert_allclose(fit.coefficients, reference.coef_[0] * [scale, 1, 1, 1, 1], rtol=1e-4)


def test_binomial_covariance_is_the_inverse_curvature_at_the_maximum() -> None:
    features, successes, trials, weights = problem()
    fit = fit_binomial(features, successes, trials, weights=weights, ridge=RIDGE)
    precisions = np.array([CONSTANT_PRECISION, RIDGE, RIDGE, RIDGE, RIDGE])

    def log_posterior(coefficients: np.ndarray) -> float:
        p = expit(features @ coefficients)
        likelihood = weights @ (successes * np.log(p) + (trials - successes) * np.log(1 - p))
        return float(likelihood - precisions @ coefficients**2 / 2)

    steps = 1e-3 * np.eye(5)
    best = log_posterior(fit.coefficients)
    assert max(log_posterior(fit.coefficients + sign * step) for step in 20 * steps for sign in (1, -1)) < best
    curvature = np.array(
        [
            [
                sum(a * b * log_posterior(fit.coefficients + a * u + b * v) for a in (1, -1) for b in (1, -1)) / 4e-6
                for v in steps
            ]
            for u in steps
        ]
    )
    np.testing.assert_allclose(fit.covariance, np.linalg.inv(-curvature), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("accepted", [0.0, 1.0])
def test_samples_that_all_came_out_alike_predict_more_of_it_with_bounded_doubt(accepted: float) -> None:
    features, _, _, _ = problem(num_rows=64)
    trials, weights = np.full(64, 8.0), np.ones(64)
    fit = fit_binomial(features, accepted * trials, trials, weights=weights, ridge=RIDGE)
    assert (np.abs(expit(fit.mean(features)) - accepted) < 0.01).all()
    assert (fit.variance(features) < 8).all()  # logits of about 7


def test_many_features_and_extreme_counts_converge_to_a_maximum() -> None:
    features, _, _, weights = problem(num_rows=100, num_features=150)
    trials = np.full(100, 1000.0)
    successes = np.where(features[:, 1] > 0, trials, 0.0)  # separable
    fit = fit_binomial(features, successes, trials, weights=weights, ridge=1e-3)
    rates = expit(fit.mean(features))
    gradient = features.T @ (weights * (successes - trials * rates)) - 1e-3 * fit.coefficients
    gradient[0] -= (CONSTANT_PRECISION - 1e-3) * fit.coefficients[0]
    assert gradient @ fit.covariance @ gradient < 1e-5
    assert ((rates > 0.5) == (features[:, 1] > 0)).all()


def test_rows_of_weight_zero_and_without_trials_do_not_matter() -> None:
    features, successes, trials, weights = problem()
    some = np.arange(60) % 3 == 0
    weights[some] = 0
    fit = fit_binomial(features, successes, trials, weights=weights, ridge=RIDGE)
    fewer = fit_binomial(features[~some], successes[~some], trials[~some], weights=weights[~some], ridge=RIDGE)
    np.testing.assert_allclose(fit.coefficients, fewer.coefficients, rtol=1e-9)
    without = fit_binomial(features, 0 * trials, 0 * trials, weights=weights, ridge=RIDGE)
    assert (without.coefficients == 0).all()
    np.testing.assert_allclose(np.diag(without.covariance), 1 / np.array([CONSTANT_PRECISION, *[RIDGE] * 4]))


@pytest.mark.parametrize("rows_of_a_group", [1, 4])
def test_leaving_a_group_out_is_nearly_a_fit_without_it(rows_of_a_group: int) -> None:
    features, successes, trials, weights = problem(num_rows=200)
    groups = np.arange(200) // rows_of_a_group
    features = features[groups * rows_of_a_group]  # equal features within a group
    fit = fit_binomial(features, successes, trials, weights=weights, ridge=RIDGE)
    logits, variances = leave_group_out(fit, features, successes, trials, weights=weights, groups=groups)
    refitted, certain = [], []
    for group in range(groups.max() + 1):
        others, own = groups != group, features[groups == group][:1]
        without = fit_binomial(
            features[others], successes[others], trials[others], weights=weights[others], ridge=RIDGE
        )
        refitted.append(without.mean(own)[0])
        certain.append(without.variance(own)[0])
    with_own = fit.mean(features[groups.searchsorted(np.arange(groups.max() + 1))])
    np.testing.assert_allclose(logits, refitted, atol=0.05)
    np.testing.assert_allclose(variances, certain, rtol=0.15)
    assert np.abs(logits - refitted).mean() < 0.1 * np.abs(with_own - refitted).mean()


def test_a_group_that_alone_tells_a_coefficient_stays_finite_when_left_out() -> None:
    features = np.ones((40, 2))
    features[:, 1] = 0
    features[0, 1] = 50.0  # the only row with the second feature
    successes, trials = np.zeros(40), np.full(40, 8.0)
    successes[0] = 8.0
    weights = np.ones(40)
    fit = fit_binomial(features, successes, trials, weights=weights, ridge=1e-4)
    logits, variances = leave_group_out(fit, features, successes, trials, weights=weights, groups=np.arange(40))
    assert np.isfinite(logits).all()
    assert (variances > 0).all()
