"""What a prompt is worth by its predicted statistics, by hand and by simulation."""

from typing import Any

import numpy as np
import pytest

from gvm_ray.allocators.predictive import PoolScore, beta_draws, score
from gvm_ray.allocators.predictor import PromptEstimates
from gvm_ray.maths.allocation import gradient_deviation, gvm_weights, neyman_weights


def estimates(**fields: Any) -> PromptEstimates:
    ones = np.ones(3)
    values = {
        "deviations": ones,
        "accepted_norms": ones,
        "rejected_norms": ones,
        "history_trials": 8.0,
        "learned": True,
    }
    rates = dict.fromkeys(("accept_rates", "feature_rates", "history_rates"), ones / 2)
    return PromptEstimates(**{**values, **rates, **fields})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("neyman", [0.4, 0.5, 0.3]),  # p = 0.2, 0.5, 0.9
        ("log_neyman", [2.0, 1.0, 1 / 3]),
        ("pcl", [0.2, 0.5, 0.1]),  # 1/2 - |p - 1/2|
        ("norm_neyman", [0.4 * 2, 0.5 * 3, 0.3 * 4]),
        ("gvm", [2 / np.sqrt(0.2 + 1e-3 / 0.2), 3 / np.sqrt(0.5 + 1e-3 / 0.5), 4 / np.sqrt(0.9 + 1e-3 / 0.9)]),
        (
            "gradient_deviation",
            [
                np.sqrt(0.16 * (0.8 * 4 + 0.2 * 25)),
                np.sqrt(0.25 * (0.5 * 9 + 0.5 * 36)),
                np.sqrt(0.09 * (0.1 * 16 + 0.9 * 49)),
            ],
        ),
    ],
)
def test_scores_by_hand(name: PoolScore, expected: list[float]) -> None:
    known = estimates(accepted_norms=np.array([2.0, 3.0, 4.0]), rejected_norms=np.array([5.0, 6.0, 7.0]))
    np.testing.assert_allclose(score(name, np.array([0.2, 0.5, 0.9]), known), expected, rtol=1e-12)


def test_weights_are_0_without_variance_and_refuse_what_is_no_probability() -> None:
    assert neyman_weights([0.0, 1.0]).tolist() == neyman_weights([0.0, 1.0], objective="log").tolist() == [0.0, 0.0]
    assert gradient_deviation([0.0, 1.0], [2.0, 2.0], [2.0, 2.0]).tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match=r"accept_rates\[0\] = 1.5"):
        neyman_weights([1.5])
    with pytest.raises(ValueError, match=r"rejected_norms\[1\] = nan"):
        gradient_deviation([0.5, 0.5], [1.0, 1.0], [1.0, float("nan")])


def test_gradient_deviation_is_the_spread_of_a_samples_term() -> None:
    rng = np.random.default_rng(0)
    p, accepted_norm, rejected_norm = 0.8, 2.0, 5.0
    rewards = rng.random(200_000) < p
    terms = (rewards - p) * np.where(rewards, accepted_norm, rejected_norm)
    expected = gradient_deviation([p], [accepted_norm], [rejected_norm])[0]
    assert np.sqrt((terms**2).mean()) == pytest.approx(expected, rel=0.01)


def test_thompson_draws_have_the_beliefs_mean_and_deviation() -> None:
    means, strengths = np.array([0.1, 0.5, 0.97]), np.array([8.0, 20.0, 200.0])
    deviations = np.sqrt(means * (1 - means) / (strengths + 1))
    rng = np.random.default_rng(0)
    drawn = np.array([beta_draws(means, deviations, rng) for _ in range(20_000)])
    np.testing.assert_allclose(drawn.mean(axis=0), means, atol=0.01)
    np.testing.assert_allclose(drawn.std(axis=0), deviations, rtol=0.05)
    surest = beta_draws(np.array([1e-8, 1 - 1e-8]), np.sqrt(np.array([1e-8, 1e-8]) / 1000), rng)
    np.testing.assert_allclose(surest, [1e-3, 1 - 1e-3], rtol=1e-6)


def test_scores_agree_with_gvms_formula() -> None:
    known = estimates(accepted_norms=np.array([1.0, 2.0, 3.0]))
    rates = np.array([0.0, 0.3, 1.0])
    np.testing.assert_array_equal(
        score("gvm", rates, known), gvm_weights(rates, known.accepted_norms, alpha=1e-3, beta=2.0)
    )
