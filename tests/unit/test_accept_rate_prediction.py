"""The Gaussian process against the posterior written out, and what it says near and far from observations."""

import numpy as np
import pytest

from gvm_ray.allocators.rivals.vip import predict_accept_rates

SETTINGS = {"prior_accept_rate": 0.5, "prior_std": 2.0, "length_scale": 0.5}


def test_it_is_the_posterior_mean_of_the_empirical_logits() -> None:
    observed = np.array([[0.0, 1.0], [2.0, 1.0], [6.0, 1.0]])  # the second feature says nothing
    successes, trials = np.array([3, 0, 7]), np.array([4, 4, 8])
    new = np.array([[1.0, 1.0], [5.0, 1.0]])
    x, x_new = (observed[:, 0] - 8 / 3) / observed[:, 0].std(), (new[:, 0] - 8 / 3) / observed[:, 0].std()
    scale = 0.25 * 4 / observed[:, 0].std()  # a quarter of the median of the distances 2, 4, 6

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return 9.0 * np.exp(-0.5 * ((a[:, None] - b[None]) / scale) ** 2)

    accepted, rejected = successes + 0.5, trials - successes + 0.5
    noise = np.diag(1 / accepted + 1 / rejected)
    prior = np.log(0.2 / 0.8)
    weights = np.linalg.solve(kernel(x, x) + noise, np.log(accepted / rejected) - prior)
    expected = 1 / (1 + np.exp(-(prior + kernel(x_new, x) @ weights)))
    predicted = predict_accept_rates(
        new,
        observed_features=observed,
        successes=successes,
        trials=trials,
        prior_accept_rate=0.2,
        prior_std=3.0,
        length_scale=0.25,
    )
    np.testing.assert_allclose(predicted, expected, rtol=1e-6)


def test_one_observation_by_hand() -> None:
    # logit ln(4.5 / 0.5) = ln 9 with noise variance 2 + 2/9 under prior variance 4: mean 4 / (4 + 20/9) ln 9
    predicted = predict_accept_rates(
        [[1.0, 2.0]], observed_features=[[1.0, 2.0]], successes=[4], trials=[4], **SETTINGS
    )
    np.testing.assert_allclose(predicted, [1 / (1 + 9 ** -(4 / (4 + 20 / 9)))])


def test_far_from_observations_is_the_prior_and_more_samples_say_more() -> None:
    rng = np.random.default_rng(0)
    observed = rng.normal(size=(6, 16))
    settings = {**SETTINGS, "prior_accept_rate": 0.3}
    far = predict_accept_rates(
        observed + 100, observed_features=observed, successes=[4] * 6, trials=[4] * 6, **settings
    )
    np.testing.assert_allclose(far, 0.3)
    few = predict_accept_rates(observed, observed_features=observed, successes=[1] * 6, trials=[1] * 6, **SETTINGS)
    many = predict_accept_rates(observed, observed_features=observed, successes=[9] * 6, trials=[9] * 6, **SETTINGS)
    assert (many > few).all()
    assert (few > 0.5).all()


@pytest.mark.parametrize("value", [1.0, 0.1, 1e4 / 3])
def test_a_prompt_observed_again_and_again_counts_each_time(value: float) -> None:
    same = np.full((50, 8), value, dtype=np.float32)
    once, often = (
        predict_accept_rates(same[:1], observed_features=same[:n], successes=[1] * n, trials=[8] * n, **SETTINGS)[0]
        for n in (1, 50)
    )
    assert 1.5 / 9 < often < once < 0.5
    assert often == pytest.approx(1.5 / 9, abs=0.01)


def test_the_scale_is_that_of_different_prompts_where_one_is_most_of_the_window() -> None:
    observed = np.array([[0.0]] * 9 + [[1.0]])
    settings = {**SETTINGS, "observed_features": observed, "successes": [0] * 9 + [8], "trials": [8] * 10}
    near, far = predict_accept_rates([[0.0], [1.0]], **settings)
    assert near < 0.2
    assert far > 0.7


def test_rates_that_vary_smoothly_are_learned_from_few_prompts() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(160, 4))
    rates = 1 / (1 + np.exp(-2 * features[:, 0]))
    successes = rng.binomial(8, rates)
    predicted = predict_accept_rates(
        features[120:], observed_features=features[:120], successes=successes[:120], trials=[8] * 120, **SETTINGS
    )
    error, error_of_mean = np.abs(predicted - rates[120:]).mean(), np.abs(rates[120:] - rates[:120].mean()).mean()
    assert error < error_of_mean / 2
