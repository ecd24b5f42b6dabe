"""A reward for the shape of a response, whatever its content."""

import re

from gvm_ray.types import Completion, Prompt


class FormatReward:
    """1 if `pattern` is found anywhere in the response, else 0."""

    def __init__(self, pattern: str) -> None:
        self._pattern = re.compile(pattern, re.DOTALL)

    def __call__(self, prompt: Prompt, completion: Completion) -> float:
        return float(self._pattern.search(completion.text) is not None)
