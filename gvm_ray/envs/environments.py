"""Who answers the policy between its turns: one function over the closed union of environments."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from gvm_ray.config.environment import (
    CalculatorConfig,
    EnvironmentSettings,
    FunctionEnvironmentConfig,
    SingleTurnConfig,
)
from gvm_ray.envs.calculator import calculator
from gvm_ray.exceptions import ConfigError
from gvm_ray.functional.import_path import import_object
from gvm_ray.types import Prompt

# The environment's answer to the policy's turns so far, of which there is one at least; None ends the response. It
# remembers nothing, so that an episode can go on in another process than the one it began in.
Respond = Callable[[Prompt, Sequence[str]], str | None]


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Answers as the policy is to read them, and how often it is its turn."""

    respond: Respond
    max_turns: int
    template: str = "{observation}"
    max_characters: int = 4096  # of an answer, before the template is put around it

    def __call__(self, prompt: Prompt, turns: Sequence[str]) -> str | None:
        """The observation before the next turn; None where the last turn was the last one.

        Raises:
            TypeError: the answer is no text.
        """
        if len(turns) >= self.max_turns:
            return None
        answer = self.respond(prompt, turns)
        if answer is None:
            return None
        if not isinstance(answer, str):
            raise TypeError(f"the environment answered {type(answer).__name__}; return a string, or None to end")
        return self.template.replace("{observation}", answer[: self.max_characters])


def create_environment(config: EnvironmentSettings) -> Environment | None:
    """The configured environment; None where every response has one turn.

    Raises:
        ConfigError: a function can't be imported, or isn't callable.
    """
    match config:
        case SingleTurnConfig():
            return None
        case CalculatorConfig():
            respond: Respond = calculator
        case FunctionEnvironmentConfig(path=path):
            respond = _import_function(path)
    return Environment(
        respond=respond,
        max_turns=config.max_turns,
        template=config.observation_template,
        max_characters=config.max_observation_characters,
    )


def _import_function(path: str) -> Respond:
    try:
        found = import_object(path)
        function = found() if isinstance(found, type) else found
    except ImportError as error:
        raise ConfigError(f"environment.path: {error}") from error
    if not callable(function):
        raise ConfigError(f"environment.path: {path!r} is a {type(function).__name__}; write the path of a function")
    return cast(Respond, function)
