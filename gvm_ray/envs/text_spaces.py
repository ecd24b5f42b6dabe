"""Gymnasium spaces of text: real prompts and responses hold any character, so membership can't be a short alphabet."""

import string
from typing import Any

from gymnasium.spaces import Text

from gvm_ray.types import Completion

SAMPLED_CHARACTERS = string.ascii_letters + string.digits + string.punctuation + " \n"


class AnyText(Text):
    """Any string, of any characters and length. Samples are short and of ASCII characters.

    A fixed-size shared buffer can't hold it: Gymnasium's AsyncVectorEnv needs shared_memory=False.
    """

    def __init__(self, *, max_sample_length: int = 32) -> None:
        """A space whose samples have at most `max_sample_length` characters."""
        super().__init__(max_sample_length, min_length=0, charset=SAMPLED_CHARACTERS)

    def contains(self, x: Any) -> bool:
        """True for every string."""
        return isinstance(x, str)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class ResponseSpace(AnyText):
    """A response: any string, or a `Completion` of an engine. Samples are strings."""

    def contains(self, x: Any) -> bool:
        """True for every string and every completion."""
        return isinstance(x, (str, Completion))
