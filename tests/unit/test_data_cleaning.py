"""Each thing that a row is dropped for, on texts made by hand."""

import os
import time
from typing import Any

import pytest

from gvm_ray.data.cleaning import (
    AnswerEnv,
    EvaluationProblems,
    contaminated,
    duplicates,
    ngrams,
    spelling,
    unverified,
)
from gvm_ray.data.preparation import too_long
from gvm_ray.learner.scratch_model import build_character_tokenizer
from gvm_ray.tasks.rows import Task, content_id


def tasks(*problems: str, answer: str = "1") -> list[Task]:
    return [Task(prompt_id=content_id(problem, answer), problem=problem, answer=answer) for problem in problems]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Find  x\nnow.", "find x now. "),
        ("Compute $x + y$", "Compute x+y"),
        ("\\left( \\dfrac12 \\right)", "(\\frac12)"),
        ("the value of \\[x\\]", "The value of $x$"),
        ("\uff58 = \uff12", "x=2"),
        ("1,\\!000 men", "1,000 men"),
    ],
)
def test_copies_that_are_typeset_otherwise_have_one_spelling(one: str, other: str) -> None:
    assert spelling(one) == spelling(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x + 1", "x - 1"),
        ("the digits 1 2 3", "the digits 123"),
        ("2 < 3", "2 > 3"),
        ("\\leftarrow", "arrow"),
        ("", "0"),
    ],
)
def test_other_problems_have_another_spelling(one: str, other: str) -> None:
    assert spelling(one) != spelling(other)


def test_later_copies_are_duplicates_of_the_first() -> None:
    pile = [*tasks("Find $x$.", "Find y."), *tasks("Find $x$."), *tasks("find x."), *tasks("Find $x$.", answer="2")]
    rejected = duplicates(pile)
    assert {index: rejection.reason for index, rejection in rejected.items()} == {
        2: "duplicate",
        3: "near_duplicate",
        4: "duplicate",
    }
    assert rejected[3].detail == f"as {pile[0].prompt_id}"
    assert rejected[4].detail == f"as {pile[0].prompt_id}, with the answer '1', not '2'"


def words(start: int, stop: int) -> str:
    return " ".join(f"w{i}" for i in range(start, stop))


def evaluation_of(*problems: str, ngram: int = 13) -> EvaluationProblems:
    evaluation = EvaluationProblems(ngram=ngram)
    for number, problem in enumerate(problems, start=1):
        evaluation.add(problem, where=f"eval, line {number}")
    return evaluation


def test_ngrams_are_words_in_lower_case_without_punctuation() -> None:
    assert list(ngrams("Let $a$, -- B: c!", 2)) == ["let a", "a b", "b c"]
    assert list(ngrams("one two", 3)) == []


def test_thirteen_shared_words_in_a_row_contaminate_and_twelve_do_not() -> None:
    evaluation = evaluation_of("something else", words(0, 30))
    pile = tasks(
        f"before {words(10, 23).upper()}, after",
        f"before {words(10, 22)} after",
        f"before {words(0, 7)} {words(8, 15)} after",
    )
    rejected, num_common = contaminated(pile, evaluation=evaluation, common=10)
    assert rejected.keys() == {0}
    assert rejected[0].reason == "contaminated"
    assert rejected[0].detail == f"13 words of eval, line 2: {words(10, 23)}"
    assert num_common == 0
    assert contaminated(pile, evaluation=evaluation_of(words(0, 30), ngram=12), common=10)[0].keys() == {0, 1}


def test_a_problem_too_short_for_ngrams_contaminates_as_a_whole() -> None:
    evaluation = evaluation_of("Find $2 + 2$.")
    rejected, _ = contaminated(tasks("find 2+2.", "find 2-2.", "Now: Find $2 + 2$."), evaluation=evaluation, common=10)
    assert {index: rejection.detail for index, rejection in rejected.items()} == {0: "the problem of eval, line 1"}


def test_a_phrase_of_many_problems_proves_nothing_but_the_whole_problem_does() -> None:
    phrase, evaluation = words(0, 13), evaluation_of(f"question {words(0, 13)}")
    few = tasks(*(f"a{i} {phrase}" for i in range(3)))
    assert contaminated(few, evaluation=evaluation, common=3)[0].keys() == {0, 1, 2}
    rejected, num_common = contaminated(few, evaluation=evaluation, common=2)
    assert (rejected, num_common) == ({}, 1)
    rejected, _ = contaminated([*few, *tasks(f"Question {phrase}")], evaluation=evaluation, common=2)
    assert rejected.keys() == {3}
    twice = tasks(f"{phrase} {phrase}")
    assert contaminated(twice, evaluation=evaluation, common=1)[0].keys() == {0}


def test_a_training_set_compared_with_itself_is_dropped_whole() -> None:
    phrase = words(0, 20)
    pile = tasks(*(f"a{i} {phrase}" for i in range(30)), "short", "$x$")
    evaluation = evaluation_of(*(task.problem for task in pile))
    assert len(contaminated(pile, evaluation=evaluation, common=1)[0]) == len(pile)


def test_problems_of_more_tokens_are_too_long() -> None:
    pile = tasks("1+1=", "1+1+1=", "1" * 10_000)
    seen: list[int] = []
    rejected = too_long(pile, tokenizer=build_character_tokenizer(), max_tokens=4, on_progress=seen.append)
    assert {index: (r.reason, r.detail) for index, r in rejected.items()} == {
        1: ("too_long", "6 tokens"),
        2: ("too_long", "10000 characters"),
    }
    assert seen == [3]


class HangingEnv(AnswerEnv):
    """Hangs, dies or fails on the answers of these names."""

    def step(self, _: Any) -> Any:
        match self._answer:
            case "7":
                time.sleep(3)
            case "hang":
                time.sleep(1000)
            case "die":
                os._exit(3)
            case "fail":
                raise ValueError("no such thing")
        return super().step(_)


def test_answers_that_cant_be_parsed_or_not_in_time_are_unverified() -> None:
    done: list[int] = []
    answers = ["42", "hang", "\\frac{1}{2}", "die", "np.arcsin(10/13)", "fail", "42", "\\boxed{x+1}"]
    failed = unverified(answers, timeout_s=2.0, num_processes=1, make_env=HangingEnv, on_progress=done.append)
    assert failed.keys() == {"hang", "die", "np.arcsin(10/13)", "fail"}
    assert failed["hang"] == "timeout: took longer than 8 s"  # it was asked twice
    assert failed["die"].startswith("crash: ")
    assert failed["np.arcsin(10/13)"] == "can't be parsed"
    assert "no such thing" in failed["fail"]
    assert sum(done) == 7


def test_an_answer_that_came_late_on_a_busy_machine_is_asked_again() -> None:
    assert unverified(["7", "np.arcsin(1/2)"], timeout_s=2.0, make_env=HangingEnv).keys() == {"np.arcsin(1/2)"}


def test_many_answers_are_shared_out_among_processes() -> None:
    good = [str(number) for number in range(600)]
    assert unverified([*good, "np.arcsin(1/2)"], timeout_s=60, num_processes=2).keys() == {"np.arcsin(1/2)"}
    assert unverified([], timeout_s=1) == {}
