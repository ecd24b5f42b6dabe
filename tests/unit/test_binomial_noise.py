"""Ceilings of correlation, absolute error and Brier score on simulated binomials whose true probabilities are known."""

import numpy as np
import pytest

from gvm_ray.maths.binomial_noise import noise_ceiling, prediction_scores

N = 200_000


def simulated(p: np.ndarray, *, trials: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.binomial(trials, p).astype(np.float64), np.full(len(p), float(trials))


@pytest.mark.parametrize("trials", [2, 4, 8, 40])
@pytest.mark.parametrize("shape", [(0.3, 1.5), (2.0, 2.0), (0.2, 0.2)])
def test_the_ceiling_is_what_the_true_probabilities_score(trials: int, shape: tuple[float, float]) -> None:
    p = np.random.default_rng(0).beta(*shape, size=N)
    successes, counts = simulated(p, trials=trials)
    ceiling, perfect = noise_ceiling(successes, counts), prediction_scores(p, successes, counts)
    assert ceiling.correlation == pytest.approx(perfect.correlation, abs=0.015)
    assert ceiling.brier == pytest.approx(perfect.brier, rel=0.03)
    assert ceiling.absolute_error == pytest.approx(perfect.absolute_error, rel=0.03)
    assert perfect.true_correlation == pytest.approx(1, abs=0.015)


@pytest.mark.parametrize("trials", [2, 4, 8])
def test_a_poor_prediction_is_corrected_to_its_correlation_with_the_truth(trials: int) -> None:
    rng = np.random.default_rng(0)
    p = rng.beta(0.4, 1.6, size=N)
    predicted = np.clip(p + rng.normal(scale=0.3, size=N), 0, 1)
    scores = prediction_scores(predicted, *simulated(p, trials=trials))
    true = np.corrcoef(predicted, p)[0, 1]
    assert scores.correlation < true - 0.05
    assert scores.true_correlation == pytest.approx(true, abs=0.02)
    ceiling = noise_ceiling(*simulated(p, trials=trials))
    assert scores.brier - ceiling.brier == pytest.approx(np.mean((predicted - p) ** 2), rel=0.03)


def test_numbers_of_trials_may_differ() -> None:
    rng = np.random.default_rng(0)
    p, trials = rng.beta(0.5, 1, size=N), rng.integers(2, 9, size=N).astype(np.float64)
    successes = rng.binomial(trials.astype(int), p).astype(np.float64)
    ceiling, perfect = noise_ceiling(successes, trials), prediction_scores(p, successes, trials)
    assert ceiling.correlation == pytest.approx(perfect.correlation, abs=0.015)
    assert ceiling.absolute_error == pytest.approx(perfect.absolute_error, rel=0.03)
    assert ceiling.brier == pytest.approx(perfect.brier, rel=0.03)


def test_probabilities_that_are_all_equal_leave_nothing_to_correlate_with() -> None:
    successes, trials = np.array([1.0, 1.0, 1.0]), np.full(3, 2.0)
    assert np.isnan(noise_ceiling(successes, trials).correlation)
    assert noise_ceiling(np.zeros(3), trials).brier == 0
    assert noise_ceiling(np.array([0.0, 2.0, 2.0]), trials).correlation == 1
    assert noise_ceiling(np.array([0.0, 2.0, 2.0]), trials).absolute_error == 0
    assert np.isnan(prediction_scores(np.full(3, 0.5), np.array([0.0, 2.0, 2.0]), trials).correlation)


@pytest.mark.parametrize(
    ("successes", "trials", "message"),
    [
        ([1.0], [2.0], "N >= 2"),
        ([1.0, 1.0], [2.0, 1.0], "1 trials can't tell noise from spread"),
        ([1.0, 3.0], [2.0, 2.0], "between 0 and the number of trials"),
    ],
)
def test_what_is_no_count_is_refused(successes: list[float], trials: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        noise_ceiling(np.array(successes), np.array(trials))
