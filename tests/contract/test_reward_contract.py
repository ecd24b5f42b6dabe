"""What every reward must satisfy, and how Math-Verify does on the gold answers of five benchmarks."""

import itertools
import json
import math
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from gvm_ray.config.rewards import (
    ExactRewardConfig,
    FormatRewardConfig,
    FunctionRewardConfig,
    MathVerifyRewardConfig,
    ReasoningGymRewardConfig,
    RewardsConfig,
    RewardTerm,
)
from gvm_ray.maths.boxed import last_boxed
from gvm_ray.protocols import RewardFunction
from gvm_ray.rewards import create_reward
from gvm_ray.rewards.math_verify import MathVerifyReward, can_parse_answer
from gvm_ray.types import Prompt
from tests import builders
from tests.builders import completion

TERMS = [
    MathVerifyRewardConfig(),
    ExactRewardConfig(),
    ReasoningGymRewardConfig(),
    FormatRewardConfig(),
    FunctionRewardConfig(path="tests.faulty_rewards:faulty"),
    FunctionRewardConfig(path="examples.custom_reward:brevity"),
]
GYM_ENTRY = {"task": "chain_sum", "question": "2 + 2 =", "answer": "4", "metadata": {"source_dataset": "chain_sum"}}
MODEL_TEXTS = [
    "",
    " \n",
    "4",
    r"\boxed{4}",
    r"\boxed{",
    r"\boxed{}",
    r"\boxed{\frac{}{}}",
    r"\boxed{\frac{1}{0}}",
    r"\boxed{{{}",
    "}}}{{{$$$$",
    "$" * 1001,
    "\\" * 999,
    "<answer></answer>",
    "<answer>" * 50,
    "\x00\ud800 é 数学 🙂",
    "9" * 5000,
    r"\boxed{" + "9" * 5000 + "}",
    r"\boxed{" + "(" * 300 + "}",
    r"\boxed{\text{no solution}}",
    "The answer is " * 200,
]


def prompt(answer: str = "4") -> Prompt:
    return builders.prompt(text="2+2", answer=answer, features={"reasoning_gym": GYM_ENTRY})


def test_every_kind_of_reward_is_under_contract():
    kinds = get_args(get_args(RewardTerm)[0])
    assert {type(term) for term in TERMS} == set(kinds)


@pytest.fixture(scope="module", params=TERMS, ids=lambda term: term.type)
def reward(request: pytest.FixtureRequest) -> RewardFunction:
    return create_reward(RewardsConfig(terms=(request.param,)))


def test_satisfies_the_protocol(reward: RewardFunction):
    assert isinstance(reward, RewardFunction)


def test_never_raises_and_is_finite_and_deterministic(reward: RewardFunction):
    for text in MODEL_TEXTS:
        value = reward(prompt(), completion(text))
        assert isinstance(value, float)
        assert math.isfinite(value)
        assert reward(prompt(), completion(text)) == value


def test_scores_the_same_after_a_trip_to_another_process(reward: RewardFunction):
    copy = pickle.loads(pickle.dumps(reward))
    for text in (r"so \boxed{4}", r"\boxed{5}", "4"):
        assert copy(prompt(), completion(text)) == reward(prompt(), completion(text))


# --- the benchmarks ---------------------------------------------------------------------------------------------------
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
BENCHMARKS = {"aime24": 30, "amc23": 40, "math500": 500, "minerva_math": 272, "olympiad_bench": 675}
needs_data = pytest.mark.skipif(
    not all((DATA / f"{name}.jsonl").is_file() for name in BENCHMARKS), reason=f"needs the benchmarks in {DATA}"
)


def gold_answers() -> Iterator[str]:
    """Every gold answer as its file has it: a number, a list of one, LaTeX, or a solution with a box."""
    for name, num_rows in BENCHMARKS.items():
        rows = (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(rows) == num_rows
        for row in rows:
            answer: Any = json.loads(row)["answer"]
            yield str(answer[0] if isinstance(answer, list) else answer)


def boxed(answer: str) -> str:
    """A response whose final answer is the gold answer."""
    content = last_boxed(answer)
    return rf"Let me think. $1+1=2$. So the answer is $\boxed{{{answer if content is None else content}}}$."


@pytest.mark.skipif(not (DATA / "grading" / "cases.jsonl").is_file(), reason=f"needs grading/cases.jsonl in {DATA}")
def test_labelled_answers_are_graded_as_labelled():
    """All but a few: units are dropped, (1,234) is read as a pair, and two boxes side by side are one answer."""
    rows = [json.loads(line) for line in (DATA / "grading" / "cases.jsonl").read_text(encoding="utf-8").splitlines()]
    reward = MathVerifyReward()
    values = [(reward(prompt(row["gold"]), completion(row["response"])), row) for row in rows]
    rewarded = [row["gold"] for value, row in values if value > row["reward"]]
    assert sorted(rewarded) == ["(1,234)", "3 \\text{ hours}", "5\\text{ cm}"]
    assert sum(value == row["reward"] for value, row in values) >= len(rows) - 6


@needs_data
def test_gold_answers_are_right():
    reward = MathVerifyReward()
    wrong = [answer for answer in gold_answers() if reward(prompt(answer), completion(boxed(answer))) != 1.0]
    assert len(wrong) <= 1, wrong


@needs_data
def test_the_boxed_solutions_of_the_benchmarks_are_right():
    reward = MathVerifyReward()
    for name in ("aime24", "math500", "minerva_math"):
        rows = [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        pairs = [(row["answer"], row.get("solution", row["answer"])) for row in rows]
        boxed_pairs = [(answer, solution) for answer, solution in pairs if last_boxed(solution) is not None]
        assert len(boxed_pairs) >= 0.95 * len(rows)
        wrong = [answer for answer, text in boxed_pairs if reward(prompt(answer), completion(text)) != 1.0]
        assert len(wrong) <= 0.005 * len(boxed_pairs), (name, wrong)


@needs_data
def test_gold_answers_are_understood():
    """All but eight parse: two physics formulas with primes or E_1, an `np.arcsin`, prose, misprints."""
    assert sum(not can_parse_answer(answer) for answer in gold_answers()) <= 8


@needs_data
def test_neighbouring_answers_are_wrong():
    """Every seventh answer against the next row's: equal ones agree to the letter, or are "x=5" and "5"."""
    reward = MathVerifyReward()
    answers = list(gold_answers())
    accepted = [
        (gold, other)
        for gold, other in list(itertools.pairwise(answers))[::7]
        if reward(prompt(gold), completion(boxed(other))) == 1.0
    ]
    assert [(gold, other) for gold, other in accepted if last_boxed(boxed(gold)) != last_boxed(boxed(other))] == []


@needs_data
def test_other_numbers_are_wrong():
    reward = MathVerifyReward()
    num_checked = 0
    for answer in gold_answers():
        try:
            value = float(last_boxed(boxed(answer)) or "")
        except ValueError:
            continue
        num_checked += 1
        for other in {value + 1, value * 1.1, -value} - {value}:
            assert reward(prompt(answer), completion(rf"\boxed{{{other!r}}}")) == 0.0, (answer, other)
    assert num_checked > 500
