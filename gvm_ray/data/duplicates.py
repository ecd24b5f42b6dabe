"""Duplicate problems, and problems that evaluation sets contain."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gvm_ray.data.report import Rejection
from gvm_ray.tasks.rows import Task, normalised

_LAYOUT = re.compile(r"\\(?:left|right|displaystyle|quad|qquad|[!,;:> ])(?![a-zA-Z])|\$|\\[()\[\]]|~")
_FRACTION = re.compile(r"\\[dt]frac(?![a-zA-Z])")
_SPACE_AT_NO_WORD = re.compile(r"(?<!\w) | (?!\w)")


def spelling(problem: str) -> str:
    r"""The problem without layout, dollar signs, case and needless spaces, so that copies of a problem are equal.

    Signs stay, so that x + 1 and x - 1 differ. Compatible characters (NFKC) become equal, as do \dfrac and \frac.
    """
    text = _FRACTION.sub(r"\\frac", unicodedata.normalize("NFKC", problem).casefold())
    return _SPACE_AT_NO_WORD.sub("", normalised(_LAYOUT.sub(" ", text)))


def duplicates(tasks: Sequence[Task]) -> dict[int, Rejection]:
    """Index -> rejection of every task with the problem of an earlier one; the detail has answers that differ."""
    by_problem: dict[str, Task] = {}
    by_spelling: dict[str, Task] = {}
    rejected: dict[int, Rejection] = {}
    for index, task in enumerate(tasks):
        exact = by_problem.setdefault(task.problem, task)
        near = by_spelling.setdefault(spelling(task.problem), task)
        if near is task:
            continue
        other_answer = "" if task.answer == near.answer else f", with the answer {near.answer!r}, not {task.answer!r}"
        rejected[index] = Rejection(
            reason="near_duplicate" if exact is task else "duplicate", detail=f"as {near.prompt_id}{other_answer}"
        )
    return rejected


_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SHOWN_WORDS = 80  # characters of an n-gram in a report


@dataclass(frozen=True, kw_only=True)
class EvaluationProblems:
    """Problems of evaluation sets, to compare training problems with."""

    ngram: int  # words
    spellings: dict[str, str] = field(default_factory=dict)  # spelling of a problem -> its file and line
    ngrams: dict[str, str] = field(default_factory=dict)  # n-gram -> file and line of the first problem with it

    def add(self, problem: str, *, where: str) -> None:
        """Add a problem of this file and line."""
        self.spellings.setdefault(spelling(problem), where)
        for words in ngrams(problem, self.ngram):
            self.ngrams.setdefault(words, where)


def contaminated(
    tasks: Sequence[Task],
    *,
    evaluation: EvaluationProblems,
    common: int,
    on_progress: Callable[[], Any] = lambda: None,
) -> tuple[dict[int, Rejection], int]:
    """Index -> rejection of every task in the evaluation sets, and the number of shared n-grams too common to count."""
    rejected: dict[int, Rejection] = {}
    shared: dict[int, Sequence[str]] = {}
    for index, task in enumerate(tasks):
        if where := evaluation.spellings.get(spelling(task.problem)):
            rejected[index] = Rejection(reason="contaminated", detail=f"the problem of {where}")
        else:
            once = dict.fromkeys(ngrams(task.problem, evaluation.ngram))  # a problem counts once for each n-gram
            shared[index] = [words for words in once if words in evaluation.ngrams]
        on_progress()
    num_problems = Counter(words for found in shared.values() for words in found)
    for index, found in shared.items():
        if telling := next((words for words in found if num_problems[words] <= common), None):
            words = telling if len(telling) <= _SHOWN_WORDS else telling[: _SHOWN_WORDS - 3] + "..."
            detail = f"{evaluation.ngram} words of {evaluation.ngrams[telling]}: {words}"
            rejected[index] = Rejection(reason="contaminated", detail=detail)
    return rejected, sum(count > common for count in num_problems.values())


def ngrams(text: str, n: int) -> Iterator[str]:
    """All sequences of n consecutive words, joined by spaces."""
    words = [word for word in text.lower().translate(_PUNCTUATION).split() if word]
    return (" ".join(words[start : start + n]) for start in range(len(words) - n + 1))
