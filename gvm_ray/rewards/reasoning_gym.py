"""Reward for reasoning-gym prompts: the score of the task's own scorer."""

import logging
import math
from collections.abc import Callable

import reasoning_gym
from reasoning_gym.utils import extract_answer

from gvm_ray.maths.final_answer import last_boxed
from gvm_ray.types import Completion, Prompt

logger = logging.getLogger(__name__)


class ReasoningGymReward:
    r"""The score in [0, 1] of the reasoning-gym task that made the prompt.

    The answer is the text in the last <answer> tags, else in the last \boxed{}, else the whole response. The scorer's
    entry is the prompt's feature "reasoning_gym" (task, question, answer, metadata).

    Some scorers raise on a text that isn't an answer of the expected form. Such an answer is malformed and gets 0.
    """

    def __init__(self) -> None:
        self._scorers: dict[str, Callable[..., float]] = {}
        # Cached, because the reward and its terms are requested one after the other: each response is scored once.
        self._last: tuple[Prompt, Completion, float, bool] | None = None

    def __call__(self, prompt: Prompt, completion: Completion) -> float:
        """The task's score.

        Raises:
            ValueError: the prompt has no reasoning-gym entry; the sample is then unscored.
            Exception: the task's scorer fails on its own gold answer too; the sample is then unscored.
        """
        return self._scored(prompt, completion)[0]

    def terms(self, prompt: Prompt, completion: Completion) -> dict[str, float]:
        """`malformed`: 1 if the scorer couldn't read the answer, else 0."""
        return {"malformed": float(self._scored(prompt, completion)[1])}

    def _scored(self, prompt: Prompt, completion: Completion) -> tuple[float, bool]:
        """The score, and True if the answer is malformed."""
        if self._last is None or self._last[0] is not prompt or self._last[1] is not completion:
            self._last = (prompt, completion, *self._score(prompt, completion))
        return self._last[2:]

    def _score(self, prompt: Prompt, completion: Completion) -> tuple[float, bool]:
        entry = prompt.features.get("reasoning_gym")
        if entry is None:
            raise ValueError(f"prompt {prompt.prompt_id!r} has no feature 'reasoning_gym'; use prompts of that source")
        task = entry["task"]
        if task not in self._scorers:
            self._scorers[task] = reasoning_gym.get_score_answer_fn(task)
        answer = extract_answer(completion.text)
        if answer is None:
            answer = last_boxed(completion.text)
        score = self._scorers[task]
        try:
            value = float(score(completion.text.strip() if answer is None else answer, entry))
        except MemoryError:
            raise
        except Exception:  # scorers aren't made for every text
            if isinstance(entry["answer"], str):
                score(entry["answer"], entry)  # raises if the scorer is broken, not the answer
            logger.debug("malformed answer to reasoning-gym task %r", task, exc_info=True)
            return 0.0, True
        return (value, False) if math.isfinite(value) else (0.0, True)
