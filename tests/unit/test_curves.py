"""Learning curves in one number, by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gvm_ray.maths.curves import area_under_curve, final_accuracy, token_ratio, tokens_to_reach

ACCURACIES = st.lists(st.integers(0, 64).map(lambda correct: correct / 64), min_size=1, max_size=12)


def test_final_accuracy_is_the_mean_of_the_last_three_or_of_all_there_are() -> None:
    assert final_accuracy([0.0, 0.5, 0.6, 1.0]) == pytest.approx(0.7)
    assert final_accuracy([0.2, 0.4]) == pytest.approx(0.3)


def test_tokens_to_reach_is_linear_between_evaluations() -> None:
    tokens, accuracy = [0, 100, 300], [0.2, 0.4, 0.8]
    assert tokens_to_reach(tokens, accuracy, 0.1) == 0
    assert tokens_to_reach(tokens, accuracy, 0.3) == pytest.approx(50)
    assert tokens_to_reach(tokens, accuracy, 0.5) == pytest.approx(150)
    assert tokens_to_reach(tokens, accuracy, 0.8) == pytest.approx(300)
    assert tokens_to_reach(tokens, accuracy, 0.81) is None


def test_a_lucky_evaluation_is_averaged_with_what_follows_and_a_lost_accuracy_earns_nothing() -> None:
    # The fit of .2 .8 .4 .6 is .2 .6 .6 .6, so that .6 is reached at the second evaluation and .7 never.
    assert tokens_to_reach([0, 1, 2, 3], [0.2, 0.8, 0.4, 0.6], 0.6) == pytest.approx(1)
    assert tokens_to_reach([0, 1, 2, 3], [0.2, 0.8, 0.4, 0.6], 0.7) is None
    assert tokens_to_reach([0, 1, 2], [0.5, 0.9, 0.1], 0.6) is None


@given(ACCURACIES)
def test_a_curve_reaches_its_own_final_accuracy_within_its_tokens(accuracy: list[float]) -> None:
    needed = tokens_to_reach(np.arange(len(accuracy)), accuracy, final_accuracy(accuracy))
    assert needed is not None
    assert 0 <= needed <= len(accuracy) - 1


@given(ACCURACIES, st.floats(0, 1), st.floats(0, 1))
def test_a_higher_target_is_never_cheaper(accuracy: list[float], one: float, other: float) -> None:
    costs = [tokens_to_reach(np.arange(len(accuracy)), accuracy, target) for target in sorted((one, other))]
    low, high = (math.inf if cost is None else cost for cost in costs)
    assert low <= high


def test_token_ratio_by_hand() -> None:
    # The target is .7; uniform gets there at 200 and the run, which gains .2 in 100 tokens, at 100.
    uniform = {"baseline_tokens": [0, 100, 200, 300, 400], "baseline_accuracy": [0.5, 0.6, 0.7, 0.7, 0.7]}
    ratio = token_ratio([0, 100, 200, 300, 400], [0.5, 0.7, 0.8, 0.8, 0.8], **uniform)
    assert ratio is not None
    assert ratio.value == pytest.approx(2)
    assert not ratio.censored


def test_token_ratio_of_a_run_that_never_gets_there_is_a_bound_from_all_its_tokens() -> None:
    uniform = {"baseline_tokens": [0, 100, 200, 300, 400], "baseline_accuracy": [0.5, 0.6, 0.7, 0.7, 0.7]}
    ratio = token_ratio([0, 400], [0.5, 0.6], **uniform)
    assert ratio is not None
    assert ratio.value == pytest.approx(200 / 400)
    assert ratio.censored


def test_there_is_no_token_ratio_where_the_baseline_gained_nothing() -> None:
    assert token_ratio([0, 1], [0.5, 0.9], baseline_tokens=[0, 1, 2, 3], baseline_accuracy=[0.5, 0.4, 0.5, 0.6]) is None


def test_area_is_the_mean_accuracy_up_to_the_common_end() -> None:
    assert area_under_curve([0, 100, 200], [0.0, 1.0, 1.0], up_to=200) == pytest.approx(0.75)
    assert area_under_curve([0, 100, 200], [0.0, 1.0, 1.0], up_to=50) == pytest.approx(0.25)
    assert area_under_curve([50, 150], [0.2, 0.4], up_to=150) == pytest.approx(0.3)


@pytest.mark.parametrize("up_to", [0, 201])
def test_area_is_not_extrapolated(up_to: float) -> None:
    with pytest.raises(ValueError, match=f"up_to={up_to} must lie past the first evaluation"):
        area_under_curve([0, 200], [0.0, 1.0], up_to=up_to)


@pytest.mark.parametrize(
    ("tokens", "accuracy", "message"),
    [
        ([0, 1], [0.5], "give one of each"),
        ([], [], "at least one"),
        ([0, 1], [0.5, 1.5], r"accuracy\[1\] = 1.5"),
        ([0, 1], [0.5, math.nan], r"accuracy\[1\] = nan"),
        ([1, 0], [0.5, 0.5], "non-decreasing, as they are cumulative"),
    ],
)
def test_refuses_what_is_no_curve(tokens: list[float], accuracy: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokens_to_reach(tokens, accuracy, 0.5)


def test_refuses_a_ratio_over_a_cost_that_nobody_paid() -> None:
    with pytest.raises(ValueError, match="both must be > 0"):
        token_ratio([0, 0], [0.5, 0.6], baseline_tokens=[0, 0], baseline_accuracy=[0.5, 0.6])
