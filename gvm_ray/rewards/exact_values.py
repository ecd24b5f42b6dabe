"""Exact comparison, beside Math-Verify's.

The library subtracts in floating point and takes what lies below 1e-15 for zero. Here rational numbers are compared as
fractions, other numbers to a thousand digits, and formulas at a few points. A number of more than 2**17 bits, which
might never be finished, isn't worked out. Decimals keep the library's convention of six places against each other and
against irrational numbers, which they can only approach; a fraction they must equal.
"""

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from sympy import (
    Add,
    Basic,
    Expr,
    FiniteSet,
    Float,
    Interval,
    MatrixBase,
    Mul,
    Pow,
    Rational,
    Tuple,
    UnevaluatedExpr,
    factorial,
)
from sympy.core.relational import Relational

_MAX_BITS = 2**17
_MAX_FACTORIAL = 10_000  # of 118,458 bits
_DIGITS = 1000
_RELATIVE_TOLERANCE = 1e-3  # what rounding to six decimals can hide in a number of size 1e-3


class TooLarge(Exception):
    """A number is too large to be worked out."""


def rational(value: Any) -> Fraction | None:
    """The value of a number that is made of integers by + - * / ^ and !; None for any other.

    Raises:
        TooLarge: it, or a part of it, has more than 2**17 bits.
    """
    if isinstance(value, Rational):
        return _bounded(Fraction(int(value.p), int(value.q)))
    if not isinstance(value, Basic):
        return None
    parts = [rational(part) for part in value.args]
    if any(part is None for part in parts):
        return None
    known = [part for part in parts if part is not None]
    match value:
        case Add():
            return _bounded(sum(known, Fraction(0)))
        case Mul():
            return _product(known)
        case Pow():
            return _power(*known)
        case factorial():
            return _factorial(known[0])
        case UnevaluatedExpr():
            return known[0]
        case _:
            return None


def check_sizes(value: Any) -> None:
    """Pass where no part of the value is too large.

    Raises:
        TooLarge: one is.
    """
    rational(value)
    if isinstance(value, MatrixBase):
        for part in value.flat():
            rational(part)


def contradicted(gold: Any, answer: Any) -> bool:
    """Whether two values differ for certain, whatever the library finds."""
    if isinstance(gold, Interval) and isinstance(answer, Interval):
        return _differ(gold.start, answer.start) or _differ(gold.end, answer.end)
    if isinstance(gold, MatrixBase) and isinstance(answer, MatrixBase):
        return _some_differ(gold.flat(), answer.flat())
    if isinstance(gold, FiniteSet) and isinstance(answer, FiniteSet):
        return not (_covered(gold.args, answer.args) and _covered(answer.args, gold.args))
    if isinstance(gold, Relational) and isinstance(answer, Relational):
        if type(gold) is not type(answer) or gold.lhs != answer.lhs:
            return False
        return _differ(gold.rhs, answer.rhs)
    if isinstance(gold, Tuple | Interval) and isinstance(answer, Tuple | Interval):
        return _some_differ(_items(gold), _items(answer))
    return _differ(gold, answer)


def _items(value: Any) -> Iterable[Any]:
    """The coordinates of a point; the library reads (1, 2) as an interval."""
    return value.args[:2] if isinstance(value, Interval) else value.args


def _some_differ(gold: Iterable[Any], answer: Iterable[Any]) -> bool:
    return any(contradicted(g, a) for g, a in zip(gold, answer, strict=False))


def _covered(elements: Iterable[Any], others: Iterable[Any]) -> bool:
    others = tuple(others)
    return all(any(not contradicted(element, other) for other in others) for element in elements)


def _differ(gold: Any, answer: Any) -> bool:
    """Whether two numbers or formulas differ; False where that can't be known."""
    gold, answer = _right_side(gold), _right_side(answer)
    if gold == answer or not isinstance(gold, Expr) or not isinstance(answer, Expr):
        return False
    if gold.free_symbols != answer.free_symbols:
        return False
    points = _points(gold.free_symbols)
    return any(_numbers_differ(gold.xreplace(point), answer.xreplace(point)) for point in points)


def _right_side(value: Any) -> Any:
    return value.rhs if isinstance(value, Relational) else value


def _points(symbols: set[Basic]) -> list[dict[Basic, Basic]]:
    ordered = sorted(symbols, key=str)
    offsets = (3, 8) if ordered else (0,)
    return [{symbol: Rational(2 * i + offset, 7) for i, symbol in enumerate(ordered)} for offset in offsets]


def _numbers_differ(gold: Any, answer: Any) -> bool:
    """Whether two numbers differ: as fractions, to a thousand digits, or by more than rounding a decimal hides."""
    if gold.has(UnevaluatedExpr) or answer.has(UnevaluatedExpr):  # percentages, which may be meant either way
        return False
    decimals = gold.has(Float), answer.has(Float)
    if not all(decimals):
        exact = rational(_as_written(gold)), rational(_as_written(answer))
        if None not in exact:
            return exact[0] != exact[1]
    digits, tolerance = (20, _RELATIVE_TOLERANCE) if any(decimals) else (_DIGITS, Pow(10, 10 - _DIGITS).evalf(5))
    try:
        values = [value.evalf(digits, maxn=2 * _DIGITS) for value in (gold, answer)]
        size = max(abs(value) for value in values)
        return bool(abs(values[0] - values[1]) > tolerance * size) and not all(map(_is_noise, values))
    except (TypeError, ValueError, OverflowError, AttributeError, ArithmeticError):
        return False


def _is_noise(value: Any) -> bool:
    """Whether nothing is left of a number but the error of its evaluation: it is 0."""
    return value == 0 or (value.is_Float and value._prec < 10)


def _as_written(value: Any) -> Any:
    """The value with its decimals as the fractions that they spell."""
    return value.xreplace({decimal: Rational(str(decimal)) for decimal in value.atoms(Float)})


def _bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() + value.denominator.bit_length() > _MAX_BITS:
        raise TooLarge
    return value


def _product(factors: Iterable[Fraction]) -> Fraction:
    product = Fraction(1)
    for factor in factors:
        product = _bounded(product * factor)
    return product


def _power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        return None
    if base == 0 and exponent < 0:
        return None
    if base in (0, 1):
        return base if exponent else Fraction(1)
    if base == -1:
        return Fraction(1 if exponent % 2 == 0 else -1)
    bits = base.numerator.bit_length() + base.denominator.bit_length() - 2
    if bits * abs(exponent) > _MAX_BITS:
        raise TooLarge
    return base**exponent.numerator


def _factorial(number: Fraction) -> Fraction | None:
    if number.denominator != 1 or number < 0:
        return None
    if number > _MAX_FACTORIAL:
        raise TooLarge
    return Fraction(math.factorial(number.numerator))
