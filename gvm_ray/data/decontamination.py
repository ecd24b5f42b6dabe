"""Problems that an evaluation set has, whole or in part, as arXiv 2005.14165, appendix C finds them.

A word is lower-case, ends at whitespace and has no punctuation. A problem is contaminated if it shares n words in a row
with a problem of an evaluation set, or is one of its problems but for layout, which is all that shows in problems of
fewer words. An n-gram in more than `common` of the problems proves nothing: it is a turn of phrase, such as how AMC
problems ask for their answers.
"""

import string
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gvm_ray.data.duplicates import spelling
from gvm_ray.data.rejection import Rejection
from gvm_ray.envs.task import Task

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SHOWN_WORDS = 80  # characters of an n-gram in a report


@dataclass(frozen=True, kw_only=True)
class EvaluationProblems:
    """What training problems are compared with."""

    ngram: int  # words
    spellings: dict[str, str] = field(default_factory=dict)  # of problems -> file and line
    ngrams: dict[str, str] = field(default_factory=dict)  # -> file and line of the first problem that has it

    def add(self, problem: str, *, where: str) -> None:
        """One more problem, of this file and line."""
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
    """By index, every task that the evaluation sets share; and how many shared n-grams were too common to count."""
    rejected: dict[int, Rejection] = {}
    shared: dict[int, Sequence[str]] = {}
    for index, task in enumerate(tasks):
        if where := evaluation.spellings.get(spelling(task.problem)):
            rejected[index] = Rejection(reason="contaminated", detail=f"the problem of {where}")
        else:
            once = dict.fromkeys(ngrams(task.problem, evaluation.ngram))  # a problem counts once for each
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
    """Every n words in a row, joined by spaces."""
    words = [word for word in text.lower().translate(_PUNCTUATION).split() if word]
    return (" ".join(words[start : start + n]) for start in range(len(words) - n + 1))
