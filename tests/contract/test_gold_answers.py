r"""How Math-Verify does on gold answers: a few of each kind, and five whole benchmarks where their files are there.

The files aren't part of the repository: put them into ../shared/data, or name their folder in GVM_RAY_BENCHMARK_DIR.
"""

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gvm_ray.maths.final_answer import last_boxed
from gvm_ray.rewards.math_verify import MathVerifyReward, can_parse_answer
from tests.answer_cases import GOLD_ANSWERS, GRADED_RESPONSES
from tests.builders import completion, prompt

DATA = Path(os.environ.get("GVM_RAY_BENCHMARK_DIR") or Path(__file__).resolve().parents[3] / "shared" / "data")
BENCHMARKS = {"aime24": 30, "amc23": 40, "math500": 500, "minerva_math": 272, "olympiad_bench": 675}
needs_benchmarks = pytest.mark.skipif(
    not all((DATA / f"{name}.jsonl").is_file() for name in BENCHMARKS), reason=f"needs the benchmarks in {DATA}"
)


@dataclass(frozen=True, kw_only=True)
class GoldAnswers:
    """Gold answers as a data set has them: a number, LaTeX, or a solution with a box."""

    answers: tuple[str, ...]
    num_numbers: int  # of them that are plain numbers, at least
    num_wrong: int = 0  # of them that aren't graded as right, at most
    num_unread: int = 0  # that Math-Verify and our rules don't understand, at most


def rows_of(name: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == BENCHMARKS[name]
    return rows


def benchmark_answers() -> Iterator[str]:
    for name in BENCHMARKS:
        for row in rows_of(name):
            answer = row["answer"]
            yield str(answer[0] if isinstance(answer, list) else answer)


@pytest.fixture(scope="module", params=["of each kind", pytest.param("of benchmarks", marks=needs_benchmarks)])
def gold(request: pytest.FixtureRequest) -> GoldAnswers:
    if request.param == "of each kind":
        return GoldAnswers(answers=GOLD_ANSWERS, num_numbers=7)
    # Unread are two physics formulas with primes or E_1, an `np.arcsin`, prose, misprints.
    return GoldAnswers(answers=tuple(benchmark_answers()), num_numbers=500, num_wrong=1, num_unread=8)


@pytest.fixture(scope="module")
def reward() -> MathVerifyReward:
    return MathVerifyReward()


def boxed(answer: str) -> str:
    """A response whose final answer is the gold answer."""
    content = last_boxed(answer)
    return rf"Let me think. $1+1=2$. So the answer is $\boxed{{{answer if content is None else content}}}$."


def grade(reward: MathVerifyReward, answer: str, response: str) -> float:
    return reward(prompt(answer=answer), completion(response))


def test_gold_answers_are_right(reward: MathVerifyReward, gold: GoldAnswers) -> None:
    wrong = [answer for answer in gold.answers if grade(reward, answer, boxed(answer)) != 1.0]
    assert len(wrong) <= gold.num_wrong, wrong


def test_gold_answers_are_understood(gold: GoldAnswers) -> None:
    unread = [answer for answer in gold.answers if not can_parse_answer(answer)]
    assert len(unread) <= gold.num_unread, unread


def test_neighbouring_answers_are_wrong(reward: MathVerifyReward, gold: GoldAnswers) -> None:
    """Of many answers every seventh against the next one: equal ones agree to the letter."""
    pairs = list(itertools.pairwise(gold.answers))[:: 7 if len(gold.answers) > 100 else 1]
    accepted = [(answer, other) for answer, other in pairs if grade(reward, answer, boxed(other)) == 1.0]
    assert [pair for pair in accepted if last_boxed(boxed(pair[0])) != last_boxed(boxed(pair[1]))] == []


def test_other_numbers_are_wrong(reward: MathVerifyReward, gold: GoldAnswers) -> None:
    num_checked = 0
    for answer in gold.answers:
        try:
            value = float(last_boxed(boxed(answer)) or "")
        except ValueError:
            continue
        num_checked += 1
        for other in {value + 1, value * 1.1, -value} - {value}:
            assert grade(reward, answer, rf"\boxed{{{other!r}}}") == 0.0, (answer, other)
    assert num_checked >= gold.num_numbers


@pytest.mark.parametrize(("answer", "response", "expected"), GRADED_RESPONSES)
def test_responses_are_graded_as_they_deserve(
    reward: MathVerifyReward, answer: str, response: str, expected: int
) -> None:
    assert grade(reward, answer, response) == expected


@pytest.mark.skipif(not (DATA / "grading" / "cases.jsonl").is_file(), reason=f"needs grading/cases.jsonl in {DATA}")
def test_labelled_answers_are_graded_as_labelled(reward: MathVerifyReward) -> None:
    """All but a few: units are dropped, (1,234) is read as a pair, and two boxes side by side are one answer."""
    rows = [json.loads(line) for line in (DATA / "grading" / "cases.jsonl").read_text(encoding="utf-8").splitlines()]
    values = [(grade(reward, row["gold"], row["response"]), row) for row in rows]
    rewarded = [row["gold"] for value, row in values if value > row["reward"]]
    assert sorted(rewarded) == ["(1,234)", "3 \\text{ hours}", "5\\text{ cm}"]
    assert sum(value == row["reward"] for value, row in values) >= len(rows) - 6


@needs_benchmarks
def test_the_boxed_solutions_of_the_benchmarks_are_right(reward: MathVerifyReward) -> None:
    for name in ("aime24", "math500", "minerva_math"):
        pairs = [(row["answer"], row.get("solution", row["answer"])) for row in rows_of(name)]
        boxed_pairs = [(answer, solution) for answer, solution in pairs if last_boxed(solution) is not None]
        assert len(boxed_pairs) >= 0.95 * len(pairs)
        wrong = [answer for answer, text in boxed_pairs if grade(reward, answer, text) != 1.0]
        assert len(wrong) <= 0.005 * len(boxed_pairs), (name, wrong)
