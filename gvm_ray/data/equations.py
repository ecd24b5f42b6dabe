r"""Word problems whose solution is an equation, as SVAMP and MAWPS publish them, with rationales to learn from.

SVAMP (arXiv 2103.07191) has a problem in two fields and an equation in brackets, `( 8.0 - 5.0 )`. In its repository
MAWPS and ASDiv-A (arXiv 2106.15772) have `number0` and so on in place of the numbers, and an equation in prefix
notation, `- number0 number1`. Both become `\boxed{8 - 5}`: to answer with an equation, which is then worked out, is how
these data are used, and leaves the arithmetic to the grader.
"""

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

from gvm_ray.exceptions import DataError

SVAMP_FIELDS = frozenset({"Body", "Question", "Equation", "Answer"})
MAWPS_FIELDS = frozenset({"Question", "Numbers", "Equation", "Answer"})

_OPERATORS = ("+", "-", "*", "/")
_PLACEHOLDER = re.compile(r"\bnumber(\d+)\b")
_BEFORE_MARK = re.compile(r" +(?=[.,?!;:]|'s\b|n't\b)")
_NEAR = 1e-4  # relative; answers are rounded

Tree = str | tuple[str, "Tree", "Tree"]  # a number, or an operator between two trees


def svamp_row(row: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """The row with `problem`, `answer`, `rationale` and `num_operations`.

    Raises:
        DataError: a field holds no text, or the equation can't be read.
    """
    body, question = (_text(row, name, where=where) for name in ("Body", "Question"))
    problem = f"{body}{'' if body.endswith(('.', '?', '!', ',')) else '.'} {question}"
    tokens = re.findall(r"[()]|[^\s()]+", _text(row, "Equation", where=where))
    return _solved(row, problem=problem, tree=_read(tokens, _infix, where=where))


def mawps_row(row: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """The row with `problem`, `answer`, `rationale` and `num_operations`.

    Raises:
        DataError: a field holds no text, a number is missing, or the equation can't be read.
    """
    numbers = [_spelled(number) for number in _text(row, "Numbers", where=where).split()]

    def filled(text: str) -> str:
        try:
            return _PLACEHOLDER.sub(lambda found: numbers[int(found[1])], text)
        except IndexError:
            raise DataError(f"{where}: Numbers has {len(numbers)} numbers, too few for {text[:60]!r}") from None

    problem = _BEFORE_MARK.sub("", filled(_text(row, "Question", where=where)))
    tokens = filled(_text(row, "Equation", where=where)).split()
    return _solved(row, problem=problem, tree=_read(tokens, _prefix, where=where))


def _text(row: Mapping[str, Any], name: str, *, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: field {name!r} is {value!r}; it must be text")
    return value.strip()


def _solved(row: Mapping[str, Any], *, problem: str, tree: Tree) -> dict[str, Any]:
    """The row with the problem, its answer, and the equation as a rationale if it gives that answer."""
    answer = _spelled(str(row.get("Answer")))
    return {
        **row,
        "problem": problem,
        "answer": answer,
        "rationale": f"\\boxed{{{_infix_text(tree)}}}" if _gives(tree, answer) else None,
        "num_operations": _num_operations(tree),
    }


def _read(tokens: list[str], parse: Any, *, where: str) -> Tree:
    rest = iter(tokens)
    try:
        tree = parse(rest)
    except (StopIteration, ValueError):
        tree = None
    if tree is None or next(rest, None) is not None:
        raise DataError(f"{where}: the equation {' '.join(tokens)!r} can't be read")
    return tree


def _prefix(tokens: Iterator[str]) -> Tree:
    token = next(tokens)
    return (token, _prefix(tokens), _prefix(tokens)) if token in _OPERATORS else _number(token)


def _infix(tokens: Iterator[str]) -> Tree:
    token = next(tokens)
    if token != "(":
        return _number(token)
    left, operator, right = _infix(tokens), next(tokens), _infix(tokens)
    if operator not in _OPERATORS or next(tokens) != ")":
        raise ValueError(operator)
    return operator, left, right


def _number(token: str) -> str:
    try:
        Decimal(token)
    except InvalidOperation:
        raise ValueError(token) from None
    return _spelled(token)


def _spelled(number: str) -> str:
    """A number as a person writes it: 8.0 is 8. Any other text stays."""
    return re.sub(r"(\.\d*?)0+$", r"\1", number).removesuffix(".") if re.fullmatch(r"-?\d+\.\d+", number) else number


def _infix_text(tree: Tree, *, outer: bool = True) -> str:
    if isinstance(tree, str):
        return tree
    operator, left, right = tree
    text = f"{_infix_text(left, outer=False)} {operator} {_infix_text(right, outer=False)}"
    return text if outer else f"({text})"


def _num_operations(tree: Tree) -> int:
    return 0 if isinstance(tree, str) else 1 + _num_operations(tree[1]) + _num_operations(tree[2])


def _gives(tree: Tree, answer: str) -> bool:
    try:
        value, wanted = _value(tree), Fraction(answer)
    except (ValueError, ZeroDivisionError):
        return False
    return abs(value - wanted) <= _NEAR * max(abs(wanted), 1)


def _value(tree: Tree) -> Fraction:
    if isinstance(tree, str):
        return Fraction(tree)
    operator, left, right = tree[0], _value(tree[1]), _value(tree[2])
    match operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case _:
            return left / right
