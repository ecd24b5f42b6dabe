"""Environments that answer the policy's turns: a calculator, or a function of yours."""

import ast
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from gvm_ray.config.environments import (
    CalculatorConfig,
    EnvironmentSettings,
    FunctionEnvironmentConfig,
    GymnasiumEnvironmentConfig,
    SingleTurnConfig,
    VerifiersEnvironmentConfig,
)
from gvm_ray.exceptions import ConfigError
from gvm_ray.settings import import_object
from gvm_ray.tasks.hosted import hosted_environment
from gvm_ray.types import Prompt

Number = int | float

_CALL = re.compile(r"<calculator>(.*?)</calculator>", re.DOTALL)
_MAX_CHARACTERS = 200  # of an expression: enough for any sensible one, and it bounds the parser's depth
_MAX_EXPONENT = 64
_MAX_NUMBER = 10**100
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


def calculator(prompt: Prompt, turns: Sequence[str]) -> str | None:
    """The value of the last call in the last turn, or "error: ..."; None if the turn has no call."""
    calls = _CALL.findall(turns[-1])
    if not calls:
        return None
    try:
        value = evaluate(calls[-1])
    except (ValueError, ArithmeticError, SyntaxError, RecursionError, MemoryError) as error:
        return f"error: {error}"
    return str(value)


def evaluate(expression: str) -> Number:
    """The value of an expression of numbers, brackets and + - * / // % **.

    Raises:
        ValueError, SyntaxError: the expression has something else, or is too long, or its value is too large.
        ArithmeticError: the expression has no value.
    """
    if len(expression) > _MAX_CHARACTERS:
        raise ValueError(f"the expression has {len(expression)} characters, more than {_MAX_CHARACTERS}")
    return _value(ast.parse(expression.strip(), mode="eval").body)


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return _bounded(value)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            first, second = _value(left), _value(right)
            if isinstance(op, ast.Pow) and abs(second) > _MAX_EXPONENT:
                raise ValueError(f"the exponent {second} is above {_MAX_EXPONENT}")
            return _bounded(_OPERATORS[type(op)](first, second))
    raise ValueError("only numbers, brackets and + - * / // % ** are understood")


def _bounded(value: Number | complex) -> Number:
    if isinstance(value, complex) or abs(value) > _MAX_NUMBER:
        raise ValueError("the value is not a real number, or is above 1e100")
    return value


# Returns the environment's answer to the policy's turns so far (at least one), or None to end the response. It keeps no
# state, so that an episode can continue in another process.
Respond = Callable[[Prompt, Sequence[str]], str | None]


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Gives answers in the form that the policy reads, and limits the number of turns."""

    respond: Respond
    max_turns: int
    template: str = "{observation}"
    max_characters: int = 4096  # of an answer, without the template

    def __call__(self, prompt: Prompt, turns: Sequence[str]) -> str | None:
        """The observation before the next turn; None if there is no next turn.

        Raises:
            TypeError: the answer isn't text.
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
    """The configured environment; None if every response has one turn.

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
        case VerifiersEnvironmentConfig(max_turns=1) | GymnasiumEnvironmentConfig(max_turns=1):
            return None
        case VerifiersEnvironmentConfig() | GymnasiumEnvironmentConfig():
            respond = _HostedTurns(config)
    return Environment(
        respond=respond,
        max_turns=config.max_turns,
        template=config.observation_template,
        max_characters=config.max_observation_characters,
    )


class _HostedTurns:
    """The observations of an environment of another library. It is made at its first use, in the reward process."""

    def __init__(self, config: VerifiersEnvironmentConfig | GymnasiumEnvironmentConfig) -> None:
        self._config = config

    def __call__(self, prompt: Prompt, turns: Sequence[str]) -> str | None:
        return hosted_environment(self._config).respond(prompt, turns)


def _import_function(path: str) -> Respond:
    try:
        found = import_object(path)
        function = found() if isinstance(found, type) else found
    except ImportError as error:
        raise ConfigError(f"environment.path: {error}") from error
    if not callable(function):
        raise ConfigError(f"environment.path: {path!r} is a {type(function).__name__}; write the path of a function")
    return cast(Respond, function)
