"""Variance, squared bias and mean squared error from repeats, against numbers by hand and known distributions."""

import numpy as np
import pytest

from gvm_ray.lab.estimator.moments import measured_error, ratio_interval


def test_two_estimates_by_hand() -> None:
    error = measured_error(np.array([[1.0, 0.0], [3.0, 0.0]]), np.array([1.0, 1.0]))
    assert error.variance == pytest.approx(2)  # ((1 - 2)^2 + (3 - 2)^2) / (2 - 1)
    assert error.bias_squared == pytest.approx(2 - 2 / 2)  # |(2, 0) - (1, 1)|^2 - variance / 2
    assert error.mean_squared_error == pytest.approx((1 + 5) / 2)
    assert error.cosine == pytest.approx(2 / np.sqrt((4 - 1) * 2))


def test_known_noise_and_offset_are_found_within_their_standard_errors() -> None:
    rng = np.random.default_rng(1)
    target, offset = np.full(20, 1.0), np.full(20, 0.1)  # |offset|^2 = 0.2
    error = measured_error(target + offset + rng.normal(size=(500, 20)) * 0.5, target)  # variance 20 * 0.25 = 5
    of_variance, of_bias, of_error = error.deviations
    assert abs(error.variance - 5) < 4 * of_variance < 0.5
    assert abs(error.bias_squared - 0.2) < 4 * of_bias < 0.2
    assert abs(error.mean_squared_error - 5.2) < 4 * of_error < 0.5
    assert error.mean_squared_error == pytest.approx(error.variance + error.bias_squared)
    assert error.cosine == pytest.approx(1, abs=0.01)


def test_the_squared_bias_of_unbiased_estimates_is_zero_on_average() -> None:
    rng = np.random.default_rng(2)
    target = np.ones(10)
    found = np.array([measured_error(target + rng.normal(size=(4, 10)), target).bias_squared for _ in range(400)])
    assert abs(found.mean()) < 4 * found.std() / np.sqrt(len(found))
    assert found.min() < 0


def test_the_interval_of_a_ratio_covers_it_and_narrows_with_repeats() -> None:
    rng = np.random.default_rng(3)
    widths = []
    for repeats in (50, 800):
        target = np.ones(5)
        once, twice = (measured_error(target + s * rng.normal(size=(repeats, 5)), target) for s in (1, np.sqrt(2)))
        low, high = ratio_interval(twice, once)
        assert low < 2 < high
        widths.append(high - low)
    assert widths[1] < 0.5 * widths[0]


def test_a_single_repeat_is_refused() -> None:
    with pytest.raises(ValueError, match="got 1; write num_repeats=2 or more"):
        measured_error(np.zeros((1, 3)), np.ones(3))
