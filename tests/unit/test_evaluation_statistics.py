"""avg@k, pass@k, maj@k and their intervals, against numbers worked out by hand."""

import json
import time
from itertools import combinations

import numpy as np
import pytest

from gvm_ray.evaluation import (
    EvaluationResult,
    average_at_k,
    bootstrap_interval,
    final_answer,
    majority_at_k,
    pass_at_k,
)
from gvm_ray.exceptions import SystemFailure
from gvm_ray.maths.final_answer import final_boxed, last_boxed
from gvm_ray.rewards.votes import EqualityEnv, merged_votes
from gvm_ray.types import Completion
from tests.builders import group


def test_average_at_k_of_ragged_prompts():
    np.testing.assert_allclose(average_at_k([[1, 0, 0, 1], [True], [0, 0, 1]]), [0.5, 1.0, 1 / 3])


def test_pass_at_k_by_hand():
    # n = 4, c = 1, k = 2: of the 6 pairs 3 hold no correct sample.
    np.testing.assert_allclose(pass_at_k([4, 4, 4, 4], [0, 1, 3, 4], 2), [0.0, 0.5, 1.0, 1.0])
    np.testing.assert_allclose(pass_at_k([8, 2], [2, 1], 1), [0.25, 0.5])


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 3), (6, 1, 4), (7, 5, 2), (5, 0, 5)])
def test_pass_at_k_is_the_mean_over_all_subsets(n: int, c: int, k: int):
    samples = [1] * c + [0] * (n - c)
    expected = np.mean([max(subset) for subset in combinations(samples, k)])
    np.testing.assert_allclose(pass_at_k(n, c, k), expected)


def test_pass_at_k_does_not_overflow():
    # 1 - (1 - 1/10000) ... : with one correct sample of n it is k / n exactly.
    np.testing.assert_allclose(pass_at_k(10_000, 1, 5_000), 0.5, rtol=1e-9)


@pytest.mark.parametrize(("n", "c", "k"), [(3, 1, 4), (3, 1, 0), (3, 4, 2), (3, -1, 2)])
def test_pass_at_k_refuses_impossible_counts(n: int, c: int, k: int):
    with pytest.raises(ValueError, match=r"pass@|num_correct"):
        pass_at_k(n, c, k)


def test_majority_at_k():
    answers = [
        ["7", "7", "3", None],  # 7 wins, and is correct
        ["7", "3", "3", "5"],  # 3 wins, and is wrong
        ["7", "3", None, None],  # a tie of a right and a wrong answer
        [None, None, None, None],  # no votes
    ]
    correct = [[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(majority_at_k(answers, correct), [1.0, 0.0, 0.5, 0.0])


def test_majority_does_not_depend_on_the_order_of_samples():
    answers, correct = ["a", "b", "c", "b", "a"], [1, 0, 0, 0, 1]
    value = majority_at_k([answers], [correct])
    np.testing.assert_allclose(majority_at_k([answers[::-1]], [correct[::-1]]), value)


def test_bootstrap_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        low, high = bootstrap_interval(generator.random(60), confidence=0.9, num_resamples=300, seed=trial)
        covered += low <= 0.5 <= high
    assert 0.83 <= covered / 200 <= 0.96


def test_bootstrap_interval_is_seeded_and_shrinks_to_a_point():
    values = np.random.default_rng(0).random(50)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    assert bootstrap_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)


@pytest.mark.parametrize(("values", "confidence"), [([], 0.95), ([1.0], 1.0), ([1.0], 0.0)])
def test_bootstrap_interval_refuses(values: list[float], confidence: float):
    with pytest.raises(ValueError, match=r"bootstrap|confidence"):
        bootstrap_interval(values, confidence=confidence)


def test_evaluation_result():
    groups = [
        group("a", [r"\boxed{4}", r"\boxed{ 4 }", r"\boxed{5}", "none"], rewards=[1.0, 1.0, 0.0, 0.0]),
        group("b", [r"\boxed{1}"], rewards=[1.0]),  # the rest of its samples came from another generator
        group("b", [r"\boxed{2}", r"\boxed{2}", r"\boxed{3}"], rewards=[0.2, 0.2, 0.0]),
    ]
    result = EvaluationResult.of(groups)
    means = {name: estimate.mean for name, estimate in result.metrics.items()}
    # pass@2: 1 - 1/6 for two of four, 1 - 3/6 for one of four.
    assert means == pytest.approx(
        {"avg@4": 0.375, "pass@1": 0.375, "pass@2": (5 / 6 + 1 / 2) / 2, "pass@4": 1.0, "maj@4": 0.5}
    )
    assert result.accuracy == pytest.approx(0.375)
    assert all(e.low <= e.mean <= e.high for e in result.metrics.values())
    assert json.loads(json.dumps(result.as_dict()))["metrics"]["avg@4"]["mean"] == pytest.approx(0.375)
    assert "| avg@4 | 37.50 | 25.00 to 50.00 |" in result.table().splitlines()


def test_unscored_samples_count_neither_way():
    rewards = [[1.0, np.nan], [0.0, 1.0], [np.nan, np.nan]]
    result = EvaluationResult.of_rewards(rewards, answers=[["a", "b"], ["b", "a"], ["a", "a"]])
    means = {name: estimate.mean for name, estimate in result.metrics.items()}
    # pass@2 only knows the second prompt; the third is in nothing.
    assert means == pytest.approx({"avg@2": 0.75, "pass@1": 0.75, "pass@2": 1.0, "maj@2": 0.75})
    assert (result.num_prompts, result.num_samples, result.num_unscored) == (3, 2, 3)
    assert "| unscored samples | 50.00 | |" in result.table().splitlines()


def test_evaluation_refuses_what_it_cannot_average():
    with pytest.raises(ValueError, match="same number"):
        EvaluationResult.of_rewards([[1.0], [1.0, 0.0]])
    with pytest.raises(ValueError, match="same number"):
        EvaluationResult.of_rewards([])
    with pytest.raises(SystemFailure, match="none of the 2"):
        EvaluationResult.of_rewards([[np.nan], [np.nan]])


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1}, no: \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\left\{1,2\right\}}", r"\left\{1,2\right\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),  # escaped braces don't pair
        (r"\boxed {5}", "5"),
        (r"\fbox{6}", "6"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{8} and then \boxed{9", "8"),  # cut off
        (r"\boxed{}", ""),
        ("no box", None),
        (r"\boxed{", None),
        ("", None),
    ],
)
def test_last_boxed(text: str, content: str | None):
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"$\boxed{1}$ and $\boxed{2}$", "1, 2"),
        (r"$\boxed{1}$, $\boxed{2}$, or $\boxed{3}$.", "1, 2, 3"),
        (r"\boxed{1}. Wait, it is \boxed{2}", "2"),
        (r"\boxed{1} \boxed{2}", "1, 2"),
    ],
)
def test_final_boxed_joins_what_belongs_together(text: str, content: str):
    assert final_boxed(text) == content


def test_boxes_are_found_in_one_pass():
    assert last_boxed(r"\boxed{" * 20_000) is None
    assert last_boxed(r"\boxed{" * 20_000 + "1}") == "1"


def test_unboxed_answers_vote_unless_they_were_cut():
    assert final_answer(r"\boxed{ 1 + 2 }", truncated=False) == "1 + 2"
    assert final_answer("The answer is 7.", truncated=False) == "7"
    assert final_answer(r"\boxed{7} is", truncated=True) == "7"
    assert final_answer("The answer is 7", truncated=True) is None
    assert final_answer(r"\boxed{ }", truncated=False) is None


def test_votes_are_merged_by_mathematical_equality():
    answers = [[r"\frac12", "1/2", "0.5", "3", None], ["3", "03", "4"], [r"\text{Yes}", "yes", "no"], ["x+1", "1+x"]]
    merged = merged_votes(answers)
    assert merged == [[r"\frac12"] * 3 + ["3", None], ["3", "3", "4"], [r"\text{Yes}"] * 2 + ["no"], ["x+1", "x+1"]]
    correct = [[1, 1, 1, 0, 0], [0, 0, 1], [1, 1, 0], [1, 1]]
    np.testing.assert_allclose(majority_at_k(merged, correct), [1.0, 0.0, 1.0, 1.0])


def test_a_vote_that_hangs_is_counted_by_its_spelling():
    merged = merged_votes([["hang", "1/2", "0.5", "hang"]], timeout_s=1.0, make_env=HangingEnv)
    assert merged == [["hang", "1/2", "1/2", "hang"]]


class HangingEnv(EqualityEnv):
    """Never comes back from an answer that says so."""

    def step(self, completion: Completion) -> tuple[str, float, bool, bool, dict[str, object]]:
        if "hang" in completion.text:
            time.sleep(3600)
        return super().step(completion)


def test_an_evaluation_merges_equal_answers():
    groups = [
        group(
            "a",
            [r"\boxed{\frac12}", "The answer is 1/2.", r"\boxed{0.5}", r"\boxed{3}", r"\boxed{3}"],
            rewards=[1.0, 1.0, 1.0, 0.0, 0.0],
        )
    ]
    assert EvaluationResult.of(groups).metrics["maj@5"].mean == 0.0
    assert EvaluationResult.of(groups, merge_votes=merged_votes).metrics["maj@5"].mean == 1.0
