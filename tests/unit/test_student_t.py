"""Student-t over seeds and settings: by hand, and that it covers."""

import math

import numpy as np
import pytest

from gvm_ray.maths.student_t import Estimate, estimate_mean, half_width, pointwise_interval, stratified_mean


def strata(*settings: list[float]) -> dict[str, dict[int, float]]:
    return {f"setting{index}": dict(enumerate(values)) for index, values in enumerate(settings)}


def test_every_setting_weighs_the_same_however_many_seeds_it_has() -> None:
    assert stratified_mean(strata([1.0, 2.0, 3.0], [10.0])) == pytest.approx(6.0)


def test_interval_of_three_seeds_by_hand() -> None:
    # Mean 1, variance 3, standard error 1; t of 2 degrees of freedom is 4.3027.
    estimate = estimate_mean(strata([0.0, 0.0, 3.0]))
    assert estimate.interval == pytest.approx((1 - 4.3027, 1 + 4.3027), abs=1e-4)


def test_two_equal_settings_have_the_degrees_of_freedom_of_both() -> None:
    # Each variance of a mean is 1, so that of their mean is 1/2; t of 4 degrees of freedom is 2.7764.
    half = float(half_width([np.array([0.0, 0.0, 3.0]), np.array([5.0, 5.0, 8.0])]))
    assert half == pytest.approx(2.7764 * math.sqrt(0.5), abs=1e-4)


def test_a_setting_without_variance_adds_no_degree_of_freedom() -> None:
    assert float(half_width([np.array([0.0, 0.0, 3.0]), np.full(9, 2.0)])) == pytest.approx(4.3027 / 2, abs=1e-4)
    assert estimate_mean(strata([0.0] * 4, [10.0] * 4)).interval == (5.0, 5.0)


def test_pairing_takes_out_what_seeds_share() -> None:
    luck = np.array([0.0, 0.4, -0.3, 0.2, -0.1])
    arm, baseline = 0.6 + luck, 0.5 + luck + np.array([0.0, 0.01, 0.0, -0.01, 0.0])
    assert estimate_mean(strata(list(arm - baseline))).excludes(0.0)
    assert not estimate_mean(strata(list(arm - np.roll(baseline, 1)))).excludes(0.0)


@pytest.mark.parametrize(("num_settings", "num_seeds"), [(1, 5), (6, 5)])
def test_the_interval_covers_the_mean_as_often_as_it_says(num_settings: int, num_seeds: int) -> None:
    draws = (
        np.random.default_rng(0).normal(size=(num_settings, 4000, num_seeds))
        * np.arange(1, num_settings + 1)[:, None, None]
    )
    centres = draws.mean(axis=(0, 2))
    assert np.mean(np.abs(centres) <= half_width(list(draws))) == pytest.approx(0.95, abs=0.012)


def test_what_has_too_few_seeds_has_no_interval() -> None:
    estimate = estimate_mean(strata([1.0, 2.0, 3.0], [4.0, 6.0]))
    assert estimate.value == pytest.approx(3.5)
    assert estimate.interval is None
    assert not estimate.excludes(100.0)
    with pytest.raises(ValueError, match="no setting"):
        estimate_mean({})
    with pytest.raises(ValueError, match="'a' has no seeds"):
        estimate_mean({"a": {}})
    with pytest.raises(ValueError, match="at least 3 seeds"):
        pointwise_interval(np.zeros((2, 5)))


def test_a_ratio_from_its_logarithm() -> None:
    ratio = Estimate(value=math.log(2), interval=(0.0, math.log(4))).exponential()
    assert ratio.value == pytest.approx(2)
    assert ratio.interval == pytest.approx((1, 4))


def test_pointwise_interval_is_of_each_point_alone() -> None:
    low, high = pointwise_interval(np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 4.0]]))
    np.testing.assert_allclose(low, [0.0, 2 - 4.3027], atol=1e-4)
    np.testing.assert_allclose(high, [0.0, 2 + 4.3027], atol=1e-4)
