"""The task's own scorer for prompts that reasoning-gym made."""

from collections.abc import Callable

import reasoning_gym
from reasoning_gym.utils import extract_answer

from gvm_ray.functional.boxed import last_boxed
from gvm_ray.types import Completion, Prompt


class ReasoningGymReward:
    r"""The score in [0, 1] of the reasoning-gym task that made the prompt.

    The answer is what stands in the last <answer> tags, else in the last \boxed{}, else the whole response. The entry
    that the scorer needs is the prompt's feature "reasoning_gym" (task, question, answer, metadata).
    """

    def __init__(self) -> None:
        self._scorers: dict[str, Callable[..., float]] = {}

    def __call__(self, prompt: Prompt, completion: Completion) -> float:
        """The task's score.

        Raises:
            ValueError: the prompt carries no reasoning-gym entry (the sample is then unscored).
        """
        entry = prompt.features.get("reasoning_gym")
        if entry is None:
            raise ValueError(f"prompt {prompt.prompt_id!r} has no feature 'reasoning_gym'; take prompts of that source")
        task = entry["task"]
        if task not in self._scorers:
            self._scorers[task] = reasoning_gym.get_score_answer_fn(task)
        answer = extract_answer(completion.text)
        if answer is None:
            answer = last_boxed(completion.text)
        return float(self._scorers[task](completion.text.strip() if answer is None else answer, entry))
