"""DPS: hidden Markov models of prompts, worked out by hand, and whom they choose."""

import json
from fractions import Fraction

import numpy as np
import pytest

from gvm_ray.allocators import AllocationDriver
from gvm_ray.allocators.base import RunShape
from gvm_ray.allocators.rivals.dps import DPSAllocatorConfig
from gvm_ray.maths.hidden_markov import carried_forward, counted_transitions, next_beliefs
from tests.allocator_cases import all_equal, run_step

# A prompt that is known at the start of step 2: all rejected at step 0, mixed at step 1; decay 1/2, prior 1.
# Step 0: all beliefs are 1/3, so x_i1 = 1/3 each, and c = [[4/3, 1, 1]] * 3.
AFTER_0 = [[4 / 3, 1, 1]] * 3
# Step 1: from rejected to mixed, x_12 = 1. c / 2 + 1/2 = [[7/6, 1, 1]] * 3, and then c_12 = 2.
AFTER_1 = [[7 / 6, 2, 1], [7 / 6, 1, 1], [7 / 6, 1, 1]]


def dps(**settings):
    config = DPSAllocatorConfig(**{"group_size": 4, **settings})
    return AllocationDriver.of(config, accept_threshold=0.5, seed=1)


def shape(**settings) -> RunShape:
    defaults = {"prompts_per_step": 32, "samples_per_prompt": 8, "max_staleness": 0, "checkpoint_every_steps": 1}
    return RunShape(**{**defaults, **settings})


def test_transitions_are_counted_as_by_hand() -> None:
    even, rejected, mixed = np.full((1, 3), 1 / 3), np.eye(3)[[0]], np.eye(3)[[1]]
    first = counted_transitions(np.ones((1, 3, 3)), before=even, after=rejected, decay=0.5, prior=1.0)
    np.testing.assert_allclose(first[0], AFTER_0, rtol=1e-15)
    second = counted_transitions(first, before=rejected, after=mixed, decay=0.5, prior=1.0)
    np.testing.assert_allclose(second[0], AFTER_1, rtol=1e-15)
    # From mixed, row 2: [7/6, 1, 1] / (19/6).
    np.testing.assert_allclose(next_beliefs(mixed, second)[0], [7 / 19, 6 / 19, 6 / 19], rtol=1e-15)
    # An uncertain start: x_ij ~ before_i P_ij after_j; before = [1/2, 1/2, 0], after = mixed, P of AFTER_1:
    # x_12 ~ 1/2 * 2/(25/6) = 6/25, x_22 ~ 1/2 * 1/(19/6) = 3/19; with their sum 189/475, x_12 = 114/189, x_22 = 75/189.
    third = counted_transitions(second, before=np.array([[0.5, 0.5, 0]]), after=mixed, decay=1.0, prior=1.0)
    np.testing.assert_allclose(third[0] - second[0], [[0, 114 / 189, 0], [0, 75 / 189, 0], [0, 0, 0]], atol=1e-15)


def test_beliefs_move_on_where_nothing_is_seen() -> None:
    mixed = np.eye(3)[[1, 1]]
    known = np.array([AFTER_1, AFTER_1])
    beliefs, counts = carried_forward(mixed, known, num_steps=[0, 2], decay=0.5, prior=1.0)
    assert beliefs[0].tolist() == [0, 1, 0]
    assert counts[0].tolist() == known[0].tolist()
    # One step: [7/19, 6/19, 6/19], and c = [[13/12, 3/2, 1], [13/12, 1, 1], [13/12, 1, 1]].
    # Then row 1 is [13, 18, 12] / 43, rows 2 and 3 are [13, 12, 12] / 37, each with 7/19 and 12/19 together.
    share = Fraction(7, 19), Fraction(12, 19)
    expected = [
        share[0] * Fraction(13, 43) + share[1] * Fraction(13, 37),
        share[0] * Fraction(18, 43) + share[1] * Fraction(12, 37),
        share[0] * Fraction(12, 43) + share[1] * Fraction(12, 37),
    ]
    assert sum(expected) == 1
    np.testing.assert_allclose(beliefs[1], [float(p) for p in expected], rtol=1e-15)
    np.testing.assert_allclose(counts[1], [[25 / 24, 5 / 4, 1], [25 / 24, 1, 1], [25 / 24, 1, 1]], rtol=1e-15)


def test_the_likeliest_to_be_mixed_get_equal_groups() -> None:
    strategy = dps()
    run_step(strategy, "abc", budget=12, rewards=all_equal(solved="a", failed="b"))
    # P(mixed) at step 1 is 1 / (10/3) = 0.3 after a solved or failed group, (4/3) / (10/3) = 0.4 after a mixed one.
    rounds, report = run_step(strategy, "abdce", budget=13, rewards=all_equal(solved="a"), step=1)
    assert [dict(allocation.counts) for allocation in rounds] == [{"c": 5, "d": 4, "e": 4}]
    assert report.histograms["mixed_probability"] == pytest.approx([0.3, 0.3, 1 / 3, 0.4, 1 / 3], rel=1e-12)
    assert report.metrics["allocation/mixed_probability"] == pytest.approx((0.4 + 2 / 3) / 3)
    assert report.estimator.accept_rates == {}
    # At step 2: a, not seen at step 1, has beliefs [0.3, 0.3, 0.4] and all rows [1, 1, 7/6] / (19/6): 6/19.
    # c, mixed again: c_22 = 1/2 * 4/3 + 1/2 + 1 = 13/6 beside 1 and 1: 13/25.
    _, report = run_step(strategy, "ac", budget=4, rewards=all_equal(), step=2)
    assert report.histograms["mixed_probability"] == pytest.approx([6 / 19, 13 / 25], rel=1e-12)


def test_unscored_samples_show_no_state() -> None:
    strategy = dps()
    run_step(strategy, "ab", budget=8, rewards=lambda id_, n: [float("nan")] * n if id_ == "a" else [1.0, *[0.0] * 3])
    assert set(strategy.state_dict()["strategy"]["visits"]) == {"b"}


def test_a_resumed_run_expects_the_same_to_the_last_bit() -> None:
    strategy = dps(decay=0.3)
    for step in range(3):
        run_step(strategy, "abcdef", budget=12, rewards=all_equal(solved="ad", failed="b"), step=step)
    resumed = dps(decay=0.3)
    resumed.load_state_dict(json.loads(json.dumps(strategy.state_dict())))
    for step in (3, 7):
        steps = [
            run_step(each, "fedcba", budget=8, rewards=all_equal(failed="c"), step=step) for each in (strategy, resumed)
        ]
        (first_rounds, first), (second_rounds, second) = steps
        assert dict(first_rounds[0].counts) == dict(second_rounds[0].counts)
        assert first.histograms["mixed_probability"].tolist() == second.histograms["mixed_probability"].tolist()


def test_a_later_step_that_was_observed_first_stays_known() -> None:
    strategy = dps()
    run_step(strategy, "a", budget=4, rewards=all_equal(), step=5)
    known = strategy.state_dict()["strategy"]
    run_step(strategy, "a", budget=4, rewards=all_equal(solved="a"), step=4)
    assert strategy.state_dict()["strategy"] == known


def test_candidates_and_what_is_refused() -> None:
    assert DPSAllocatorConfig().needs(shape()).candidates == 8 * 32
    assert DPSAllocatorConfig(group_size=4).needs(shape()).candidates == 8 * 64
    assert DPSAllocatorConfig(candidates_per_step=50).needs(shape()).candidates == 50
    with pytest.raises(ValueError, match="write candidates_per_step=128"):
        DPSAllocatorConfig(candidates_per_step=32).check_fits(shape())
    with pytest.raises(ValueError, match="prior_transitions"):
        DPSAllocatorConfig(prior_transitions=0)
    with pytest.raises(ValueError, match="decay"):
        DPSAllocatorConfig(decay=1.5)
