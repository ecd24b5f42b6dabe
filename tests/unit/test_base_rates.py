"""Accept rates that a run starts from: on which prompts they are measured, and what is said of them."""

import numpy as np
import pytest

from gvm_ray.evaluation.evaluator import AcceptRates, spread
from tests.builders import outcome, prompts


def lines(*rewards: list[float]) -> list[str]:
    outcomes = [outcome(index, values) for index, values in enumerate(rewards)]
    return AcceptRates.of(outcomes, accept_threshold=0.5).lines()


def test_rates_between_none_and_all_need_no_warning() -> None:
    unscored = [np.nan, np.nan, np.nan, np.nan]
    assert lines(
        [0, 0, 0, 0.4], [0, 0, 0, 1], [1, 0, 1, 0], [1, 1, 0.6, 0], [1, 1, 1, 1], [np.nan, 1, 0, 1], unscored
    ) == [
        "base accept rates of 6 training prompts, 23 samples: mean 0.528  |  "
        "0: 1  below .25: 0  below .5: 1  below .75: 2  below 1: 1  1: 1"
    ]


@pytest.mark.parametrize(("reward", "said"), [(0.0, "solves none of these"), (1.0, "solves all of these")])
def test_a_base_that_solves_nothing_or_everything_is_told_with_the_histogram(reward: float, said: str) -> None:
    histogram, warning = lines([reward] * 4, [reward] * 4)
    assert "base accept rates of 2 training prompts, 8 samples" in histogram
    assert warning.startswith("warning: ")
    assert said in warning


def test_without_a_scored_sample_nothing_is_said() -> None:
    assert lines() == lines([np.nan, np.nan]) == []


def test_prompts_are_taken_from_the_whole_set() -> None:
    many = prompts(10)
    assert [prompt.prompt_id for prompt in spread(many, 4)] == ["0", "2", "5", "7"]
    assert list(spread(many, 20)) == list(many)
    assert not spread(many, 0)
