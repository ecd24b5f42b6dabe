"""A reward for the shape of a response, whatever its content."""

import re

from gvm_ray.maths.final_answer import final_boxed, without_thinking
from gvm_ray.types import Completion, Prompt


class FormatReward:
    r"""1 if the response boxes something or, with a pattern, if that is found anywhere in it; else 0.

    Boxes may hold braces of any depth, which no regular expression matches; a blank one doesn't count, nor does one in
    <think> tags or the like. A pattern is looked for in these, too.
    """

    def __init__(self, pattern: str | None = None) -> None:
        self._pattern = None if pattern is None else re.compile(pattern, re.DOTALL)

    def __call__(self, prompt: Prompt, completion: Completion) -> float:
        if self._pattern is None:
            return float(final_boxed(without_thinking(completion.text)) is not None)
        return float(self._pattern.search(completion.text) is not None)
