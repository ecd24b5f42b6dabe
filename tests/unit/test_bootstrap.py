"""Stratified, paired bootstrap: what is resampled, that it covers, and that bounds stay bounds."""

import numpy as np
import pytest

from gvm_ray.maths.bootstrap import (
    estimate_mean,
    estimate_ratio,
    pointwise_interval,
    stratified_interval,
    stratified_mean,
)
from gvm_ray.maths.curves import TokenRatio


def strata(*settings: list[float]) -> dict[str, dict[int, float]]:
    return {f"setting{index}": dict(enumerate(values)) for index, values in enumerate(settings)}


def test_every_setting_weighs_the_same_however_many_seeds_it_has() -> None:
    assert stratified_mean(strata([1.0, 2.0, 3.0], [10.0])) == pytest.approx(6.0)


def test_seeds_are_resampled_within_their_setting_only() -> None:
    # Resampling over the pool would mix the zeros with the tens and give a wide interval.
    assert stratified_interval(strata([0.0] * 4, [10.0] * 4)) == (5.0, 5.0)


def test_interval_of_three_seeds_by_hand() -> None:
    # All 27 resamples of (0, 0, 3) have a mean of 0, 1, 2 or 3; 0 (8 of 27) and 3 (1 of 27) are no rare ones.
    assert stratified_interval(strata([0.0, 0.0, 3.0])) == (0.0, 3.0)


def test_equal_seeds_give_equal_intervals() -> None:
    values = strata([0.1, 0.5, 0.2, 0.9])
    assert stratified_interval(values) == stratified_interval(values)
    assert stratified_interval(values) != stratified_interval(values, confidence=0.5)


def test_pairing_takes_out_what_seeds_share() -> None:
    luck = np.array([0.0, 0.4, -0.3, 0.2, -0.1])
    arm, baseline = 0.6 + luck, 0.5 + luck + np.array([0.0, 0.01, 0.0, -0.01, 0.0])
    low, high = stratified_interval(strata(list(arm - baseline)))
    unpaired_low, _ = stratified_interval(strata(list(arm - np.roll(baseline, 1))))
    assert 0.08 < low < high < 0.12
    assert unpaired_low < 0


def test_the_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        values = strata(*(list(draws) for draws in generator.normal(size=(4, 12))))
        low, high = stratified_interval(values, seed=trial)
        covered += low <= 0 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_an_interval_needs_three_seeds_in_every_setting() -> None:
    with pytest.raises(ValueError, match=r"setting 'lists/base1' has 2 seed\(s\) \[3, 7\]; 3 are needed"):
        stratified_interval({"lists/base0": {1: 0.0, 2: 0.0, 3: 0.0}, "lists/base1": {7: 0.0, 3: 1.0}})
    with pytest.raises(ValueError, match="no setting"):
        stratified_interval({})
    with pytest.raises(ValueError, match="at least 3 seeds"):
        pointwise_interval(np.zeros((2, 5)))


def test_an_estimate_of_too_few_seeds_has_no_interval() -> None:
    estimate = estimate_mean(strata([1.0, 2.0, 3.0], [4.0, 6.0]))
    assert estimate.value == pytest.approx(3.5)
    assert estimate.interval is None


def test_ratio_is_the_geometric_mean_and_counts_who_reached_the_target() -> None:
    ratios = [TokenRatio(value=4.0, censored=False), TokenRatio(value=1.0, censored=False)]
    estimate = estimate_ratio({"a": dict(enumerate([*ratios, TokenRatio(value=0.25, censored=True)]))})
    assert estimate.value == pytest.approx(1.0)
    assert (estimate.num_reached, estimate.num_pairs) == (2, 3)
    assert estimate.censored
    assert estimate.interval == pytest.approx((0.25, 4.0))


def test_ratio_without_censored_runs_is_no_bound() -> None:
    estimate = estimate_ratio(
        {"a": {0: TokenRatio(value=2.0, censored=False), 1: TokenRatio(value=2.0, censored=False)}}
    )
    assert estimate.value == pytest.approx(2.0)
    assert not estimate.censored


def test_pointwise_interval_resamples_whole_curves() -> None:
    curves = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 4.0]])
    low, high = pointwise_interval(curves)
    np.testing.assert_allclose(low, [0.0, 1.0])
    np.testing.assert_allclose(high, [0.0, 4.0])
