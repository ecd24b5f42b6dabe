"""Verification that Math-Verify can parse gold answers, in processes that are killed if an answer takes too long.

Each distinct answer is checked once. The processes are the reward's sandboxes, because a worker of `concurrent.futures`
that hangs in a C call can't be stopped alone.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from gvm_ray.config.rewards import RewardsConfig
from gvm_ray.rewards.math_verify import can_parse_answer
from gvm_ray.rewards.sandbox import Sandbox
from gvm_ray.rewards.sandbox_messages import Observed, Result, Scored
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
