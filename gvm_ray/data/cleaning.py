"""Rows that a preparation drops: duplicates, those in a benchmark, and gold answers that Math-Verify can't parse.

Each distinct answer is asked about once, in a process that is killed when it takes too long. The reward's sandbox does
the killing: a worker of `concurrent.futures` that hangs in a C call can't be stopped alone.
"""

import os
import re
import string
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gvm_ray.config.rewards import RewardsConfig
from gvm_ray.data.rejections import Rejection
from gvm_ray.rewards.math_verify import can_parse_answer
from gvm_ray.rewards.sandbox import Sandbox
from gvm_ray.rewards.sandbox_messages import Observed, Result, Scored
from gvm_ray.tasks.rows import Task, normalised
from gvm_ray.types import Completion, Prompt

_CHUNK = 256  # answers given to a process at once
_PATIENCE = 4  # factor on the time limit when an answer is checked again
_NONE = np.empty(0, dtype=np.int32)
_NO_RESPONSE = Completion(
    token_ids=_NONE, logprobs=np.empty(0, np.float32), policy_versions=_NONE, finish_reason="stop", text=""
)


class AnswerEnv:
    """The sandbox's environment: the reward is 1 if the prompt's gold answer can be parsed."""

    def __init__(self) -> None:
        self._answer = ""
        can_parse_answer("1")  # the first call compiles the library's expressions; keep that out of an answer's time

    def reset(self, *, options: dict[str, Prompt]) -> tuple[str, dict[str, Any]]:
        """Take the prompt's answer."""
        self._answer = options["prompt"].answer
        return "", {}

    def step(self, _: Completion) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Return Gymnasium's five values; the second is the reward."""
        return "", float(can_parse_answer(self._answer)), True, False, {}


def unverified(
    answers: Iterable[str],
    *,
    timeout_s: float,
    num_processes: int | None = None,
    make_env: Callable[[], Any] = AnswerEnv,
    on_progress: Callable[[int], Any] = lambda num: None,
) -> dict[str, str]:
    """The answers that can't be used: answer -> reason.

    Args:
        answers: Gold answers; duplicates are checked once.
        timeout_s: Wall clock for one answer; several times as long if it is checked again, alone.
        num_processes: Parallel processes; default: one for each core that this process may use.
        make_env: Makes the environment of a process; for tests.
        on_progress: Called with the number of answers just done, from any thread.

    Raises:
        SystemFailure: a process couldn't be started.
    """
    failed = _failures(
        list(dict.fromkeys(answers)),
        timeout_s=timeout_s,
        num_processes=num_processes or len(os.sched_getaffinity(0)),
        make_env=make_env,
        on_progress=on_progress,
    )
    # The machine's load must not decide which answers are kept, so those that took too long are checked again, alone.
    late = [answer for answer, why in failed.items() if why.startswith("timeout")]
    again = _failures(
        late, timeout_s=_PATIENCE * timeout_s, num_processes=1, make_env=make_env, on_progress=lambda num: None
    )
    return {answer: why for answer, why in failed.items() if answer not in late} | again


def _failures(
    pending: Sequence[str],
    *,
    timeout_s: float,
    num_processes: int,
    make_env: Callable[[], Any],
    on_progress: Callable[[int], Any],
) -> dict[str, str]:
    """The answers that fail (answer -> reason), checked by `num_processes` parallel processes."""
    chunks = deque(pending[start : start + _CHUNK] for start in range(0, len(pending), _CHUNK))
    failed: dict[str, str] = {}

    def work() -> None:
        # The same memory that the parser has in training.
        sandbox = Sandbox(make_env, timeout_s=timeout_s, memory_mb=RewardsConfig().memory_mb)
        try:
            while True:
                try:
                    chunk = chunks.popleft()
                except IndexError:
                    return
                results = sandbox.score([(_prompt(answer), _NO_RESPONSE) for answer in chunk])
                failed.update({a: why for a, result in zip(chunk, results, strict=True) if (why := _complaint(result))})
                on_progress(len(chunk))
        finally:
            sandbox.close()

    num = min(num_processes, len(chunks))
    with ThreadPoolExecutor(max(num, 1)) as threads:
        workers = [threads.submit(work) for _ in range(num)]
        try:
            for worker in workers:
                worker.result()
        finally:
            chunks.clear()  # after an interrupt or a failure, the other threads stop before their next chunk
    return failed


def _prompt(answer: str) -> Prompt:
    return Prompt(prompt_id="", text="", token_ids=_NONE, answer=answer)


def _complaint(result: Result) -> str:
    assert not isinstance(result, Observed), "the environment has one turn"
    if isinstance(result, Scored):
        return "" if result.reward else "can't be parsed"
    return f"{result.reason}: {result.detail}".rstrip(": ")


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
