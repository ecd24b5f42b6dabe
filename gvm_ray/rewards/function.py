"""A reward that the user names by `module:function`."""

import math
from collections.abc import Callable
from typing import Any

from gvm_ray.exceptions import ConfigError
from gvm_ray.settings import import_object
from gvm_ray.types import Completion, Prompt


class FunctionReward:
    """Whatever the function at `path` returns for (prompt, completion).

    The function is imported at once.

    Raises:
        ConfigError: `path` can't be imported, or isn't callable.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._function = _import_function(path)

    def __call__(self, prompt: Prompt, completion: Completion) -> float:
        """The function's value.

        Raises:
            TypeError, ValueError: the value isn't a finite number (the sample is then unscored).
        """
        value = self._function(prompt, completion)
        if not math.isfinite(value):  # a TypeError where it is no number; float() would take a string for one
            raise ValueError(f"reward function {self._path} returned {value}; return a finite number")
        return float(value)


def _import_function(path: str) -> Callable[[Prompt, Completion], Any]:
    try:
        function = import_object(path)
    except ImportError as error:
        raise ConfigError(f"rewards.terms: path {error}") from error
    if not callable(function):
        raise ConfigError(f"rewards.terms: {path!r} is a {type(function).__name__}; write the path of a function")
    return function
