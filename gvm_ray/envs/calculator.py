"""A calculator that the policy calls by writing `<calculator>2 * (3 + 4)</calculator>`."""

import ast
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

from gvm_ray.types import Prompt

Number = int | float

_CALL = re.compile(r"<calculator>(.*?)</calculator>", re.DOTALL)
_MAX_CHARACTERS = 200  # of an expression: no sum that anybody writes is longer, and the parser's depth stays bounded
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
    """The value of the last call in the last turn, or "error: ..."; None where there is no call."""
    calls = _CALL.findall(turns[-1])
    if not calls:
        return None
    try:
        value = evaluate(calls[-1])
    except (ValueError, ArithmeticError, SyntaxError, RecursionError, MemoryError) as error:
        return f"error: {error}"
    return str(value)


def evaluate(expression: str) -> Number:
    """The value of + - * / // % ** and brackets over numbers.

    Raises:
        ValueError, SyntaxError: it is something else, or too long or large.
        ArithmeticError: it has no value.
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
        raise ValueError("the value is not a real number, or above 1e100")
    return value
