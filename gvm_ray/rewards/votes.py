"""Equal answers among a prompt's samples, for majority votes, with the reward's mathematical equality.

Answers are untrusted text, and comparing them can hang. So they are compared in the rewards' sandbox, and the process
that counts the votes never parses one. An answer that can't be compared in time votes by its spelling.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gvm_ray.config.rewards import RewardsConfig
from gvm_ray.rewards.sandbox import Result, Sandbox, Scored
from gvm_ray.types import Completion, Prompt

_NONE = np.empty(0, dtype=np.int32)
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_TIMEOUT_S = 5.0  # for one comparison


class EqualityEnv:
    """The sandbox's environment: the reward is 1 if the completion equals the prompt's answer."""

    def __init__(self) -> None:
        from gvm_ray.rewards.math_verify import equal_answers

        self._equal = equal_answers
        self._equal("1", r"\frac{1}{1}")  # the first call compiles the library's expressions
        self._answer = ""

    def reset(self, *, options: dict[str, Prompt]) -> tuple[str, dict[str, Any]]:
        """Take the prompt's answer."""
        self._answer = options["prompt"].answer
        return "", {}

    def step(self, completion: Completion) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Return Gymnasium's five values; the second is the reward."""
        return "", float(self._equal(self._answer, completion.text)), True, False, {}


def merged_votes(
    answers: Sequence[Sequence[str | None]],
    *,
    timeout_s: float = _TIMEOUT_S,
    make_env: Callable[[], Any] = EqualityEnv,
) -> list[list[str | None]]:
    """The answers [P][k], each replaced by the first answer of its prompt that is equal to it.

    Args:
        answers: [P][k], None for a sample without an answer.
        timeout_s: Wall clock for one comparison.
        make_env: Makes the sandbox's environment; for tests.

    Raises:
        SystemFailure: the sandbox couldn't be started.
    """
    votes = [[None if a is None else " ".join(a.split()) for a in of_prompt] for of_prompt in answers]
    distinct = [list(dict.fromkeys(a for a in of_prompt if a is not None)) for of_prompt in votes]
    names = [{answer: answer for answer in of_prompt} for of_prompt in distinct]
    sandbox = Sandbox(make_env, timeout_s=timeout_s, memory_mb=RewardsConfig().memory_mb)
    try:
        several = [of_prompt if len(of_prompt) > 1 else [] for of_prompt in distinct]
        # An answer that hangs would hang every comparison, so each is first compared once, with a number.
        alone = list(dict.fromkeys(itertools.chain.from_iterable(several)))
        finished = [isinstance(result, Scored) for result in _compared(sandbox, [("1", answer) for answer in alone])]
        comparable = set(itertools.compress(alone, finished))
        waiting = [[answer for answer in of_prompt if answer in comparable] for of_prompt in several]
        while pairs := [(index, left[0], other) for index, left in enumerate(waiting) for other in left[1:]]:
            results = _compared(sandbox, [(first, other) for _, first, other in pairs])
            waiting = [[] for _ in waiting]
            for (index, first, other), result in zip(pairs, results, strict=True):
                if isinstance(result, Scored) and result.reward == 1.0:
                    names[index][other] = first
                else:
                    waiting[index].append(other)
    finally:
        sandbox.close()
    return [[None if a is None else names[index][a] for a in of_prompt] for index, of_prompt in enumerate(votes)]


def _compared(sandbox: Sandbox, pairs: Sequence[tuple[str, str]]) -> list[Result]:
    """A result for each pair, with reward 1 if the two are equal. Integers are compared without the sandbox."""
    asked = [pair for pair in pairs if not all(map(_INTEGER.fullmatch, pair))]
    results = dict(zip(asked, sandbox.score([_item(*pair) for pair in asked]), strict=True))
    return [results.get(pair) or Scored(reward=float(int(pair[0]) == int(pair[1]))) for pair in pairs]


def _item(one: str, other: str) -> tuple[Prompt, Completion]:
    completion = Completion(
        token_ids=_NONE, logprobs=np.empty(0, np.float32), policy_versions=_NONE, finish_reason="stop", text=other
    )
    return Prompt(prompt_id="", text="", token_ids=_NONE, answer=one), completion
