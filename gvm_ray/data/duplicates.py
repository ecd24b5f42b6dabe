r"""Problems that are in the data twice: to the letter, or but for how they are typeset."""

import re
import unicodedata
from collections.abc import Sequence

from gvm_ray.data.rejection import Rejection
from gvm_ray.envs.task import Task, normalised

_LAYOUT = re.compile(r"\\(?:left|right|displaystyle|quad|qquad|[!,;:> ])(?![a-zA-Z])|\$|\\[()\[\]]|~")
_FRACTION = re.compile(r"\\[dt]frac(?![a-zA-Z])")
_SPACE_AT_NO_WORD = re.compile(r"(?<!\w) | (?!\w)")


def spelling(problem: str) -> str:
    r"""What copies of a problem have in common: without layout, dollar signs, case and needless spaces.

    Signs stay, so that x + 1 and x - 1 differ; compatible characters (NFKC) and \dfrac and \frac are one.
    """
    text = _FRACTION.sub(r"\\frac", unicodedata.normalize("NFKC", problem).casefold())
    return _SPACE_AT_NO_WORD.sub("", normalised(_LAYOUT.sub(" ", text)))


def duplicates(tasks: Sequence[Task]) -> dict[int, Rejection]:
    """By index, every task whose problem an earlier one has; the detail says where the two answers differ."""
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
