"""The time stretch: known factors are found, exchange is symmetric, and the jackknife is Tukey's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gvm_ray.maths.curves import MAX_STRETCH, jackknife_log_stretch, log_stretch, on_grid

TIMES = np.linspace(0, 1, 101)


def curve(stretch: float = 1.0) -> np.ndarray:
    return 0.5 + 0.3 * (1 - np.exp(-3 * stretch * TIMES))


@pytest.mark.parametrize("stretch", [0.25, 0.6, 1.0, 1.03, 2.0, 5.0])
def test_a_known_stretch_is_found(stretch: float) -> None:
    assert np.exp(log_stretch(curve(stretch)[None], curve()[None]))[0] == pytest.approx(stretch, rel=0.01)


def test_it_stays_within_its_bounds() -> None:
    step = np.where(TIMES > 0, 0.9, 0.1)[None]  # at the end at once
    assert np.exp(log_stretch(step, curve(0.1)[None]))[0] == pytest.approx(MAX_STRETCH)
    assert np.exp(log_stretch(curve(0.1)[None], step))[0] == pytest.approx(1 / MAX_STRETCH)


@given(st.integers(0, 2**31), st.floats(0.5, 2))
def test_exchanging_arm_and_baseline_exchanges_the_sign(seed: int, stretch: float) -> None:
    noise = np.random.default_rng(seed).normal(scale=0.02, size=(2, 101))
    arm, baseline = curve(stretch) + noise[0], curve() + noise[1]
    assert log_stretch(arm[None], baseline[None])[0] == pytest.approx(-log_stretch(baseline[None], arm[None])[0])


def test_curves_of_different_evaluations_meet_on_a_common_grid() -> None:
    grid = on_grid([[0, 10, 40], [0, 20]], [[0.0, 0.1, 0.4], [0.0, 1.0]], up_to=20, num_points=3)
    np.testing.assert_allclose(grid, [[0.0, 0.1, 0.2], [0.0, 0.5, 1.0]])


def test_pseudo_values_by_hand() -> None:
    noise = np.random.default_rng(0).normal(scale=0.02, size=(2, 4, 101))
    arms, baselines = curve(2) + noise[0], curve() + noise[1]
    full, *pseudo = jackknife_log_stretch(arms, baselines)
    assert full == pytest.approx(log_stretch(arms.mean(0)[None], baselines.mean(0)[None])[0])
    without = [
        log_stretch(np.delete(arms, seed, 0).mean(0)[None], np.delete(baselines, seed, 0).mean(0)[None])[0]
        for seed in range(4)
    ]
    np.testing.assert_allclose(pseudo, 4 * full - 3 * np.array(without))
    assert jackknife_log_stretch(arms[:1], baselines[:1]).shape == (1,)


def test_many_comparisons_at_once_are_each_its_own() -> None:
    noise = np.random.default_rng(0).normal(scale=0.02, size=(2, 3, 4, 101))
    arms, baselines = curve(2) + noise[0], curve() + noise[1]
    together = jackknife_log_stretch(arms, baselines)
    for index in range(3):
        np.testing.assert_allclose(together[index], jackknife_log_stretch(arms[index], baselines[index]))
