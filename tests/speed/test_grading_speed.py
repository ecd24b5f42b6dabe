"""What grading costs on the benchmarks: their gold answers as responses, spelt as they are and of the next problem."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from gvm_ray.maths.final_answer import final_boxed
from gvm_ray.rewards.math_verify import equal_answers

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
FILES = ("aime24", "amc23", "math500", "minerva_math", "olympiad_bench")
pytestmark = pytest.mark.skipif(
    not all((DATA / f"{name}.jsonl").is_file() for name in FILES), reason=f"needs the benchmarks in {DATA}"
)


@pytest.fixture(scope="module")
def gold_answers() -> list[str]:
    """The 1,517 gold answers; of a solution, what it boxes."""
    rows = [json.loads(row) for name in FILES for row in (DATA / f"{name}.jsonl").read_text("utf-8").splitlines()]
    answers = [str(row["answer"][0] if isinstance(row["answer"], list) else row["answer"]) for row in rows]
    return [final_boxed(answer) or answer for answer in answers]


def test_right_answers(benchmark: Any, gold_answers: list[str]) -> None:
    right = benchmark(lambda: sum(equal_answers(gold, gold) for gold in gold_answers))
    assert right == len(gold_answers) == 1517


def test_answers_of_the_next_problem(benchmark: Any, gold_answers: list[str]) -> None:
    pairs = list(itertools.pairwise(gold_answers))[::5]
    right = benchmark.pedantic(lambda: sum(equal_answers(*pair) for pair in pairs), rounds=1, iterations=1)
    assert right <= 0.02 * len(pairs)
