"""Exact comparison of values, in addition to Math-Verify's.

The library subtracts in floating point and takes differences below 1e-15 for zero. Here rational numbers are compared
as fractions, other numbers to a thousand digits, and formulas at a few points. A computation that might never finish
isn't begun: first its size is bounded from the expression. Decimals follow the library's convention of six places when
compared with each other and with irrational numbers, which they can only approximate; a fraction they must equal.
"""

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from sympy import (
    Abs,
    Add,
    Basic,
    Derivative,
    Expr,
    FiniteSet,
    Float,
    Function,
    Integral,
    Interval,
    Limit,
    MatrixBase,
    Max,
    Min,
    Mul,
    Number,
    NumberSymbol,
    Pow,
    Product,
    Rational,
    Sum,
    Tuple,
    UnevaluatedExpr,
    ceiling,
    conjugate,
    exp,
    factorial,
    floor,
    im,
    log,
    re,
    sign,
)
from sympy.core.relational import Relational
from sympy.functions.elementary.trigonometric import InverseTrigonometricFunction, TrigonometricFunction

_MAX_BITS = 2**17
_MAX_FACTORIAL = 10_000  # its factorial has 118,458 bits
_MAX_TERMS = 100  # of a sum written out, and of a formula with its products expanded
_NEVER_FINISHED = (Integral, Derivative, Limit)
_SLOWLY_GROWING = (TrigonometricFunction, InverseTrigonometricFunction, log, Abs, floor, ceiling, re, im, conjugate)
_SLOWLY_GROWING += (sign, Max, Min)
_FEW_DIGITS = 20  # enough to distinguish most unequal numbers
_DIGITS = 1000
_RELATIVE_TOLERANCE = 1e-3  # the error of rounding to six decimals, for a number of size 1e-3


class TooLarge(Exception):
    """A value is too large to be computed."""


def rational(value: Any) -> Fraction | None:
    """The value of an expression of integers with + - * / ^ and !; None for any other.

    Raises:
        TooLarge: the value, or a part of it, has more than 2**17 bits.
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
    """Check from a value's structure that it can be computed and expanded quickly.

    Raises:
        TooLarge: a part has more than 2**17 bits or would have more than 100 terms; or is an integral, a derivative or
            a limit; or is a sum or product that isn't over at most 100 whole numbers.
    """
    for part in value.flat() if isinstance(value, MatrixBase) else (value,):
        if isinstance(part, Basic):
            rational(part)
            _bits(part)
            _num_terms(part)


def written_out(value: Any) -> Any:
    """The value with its sums and products written out term by term; call `check_sizes` first."""
    if not isinstance(value, Basic) or not value.has(Sum, Product):
        return value
    if isinstance(value, Sum | Product):
        (index, low, high), inner = value.limits[0], written_out(value.function)
        terms = [inner.xreplace({index: Rational(number)}) for number in range(int(low), int(high) + 1)]
        return Add(*terms) if isinstance(value, Sum) else Mul(*terms)
    return value.func(*map(written_out, value.args))


def _bits(value: Any) -> float:
    """An upper bound of |log2 |value|| if each symbol is at most 2 and nothing cancels."""
    match value:
        case Rational():
            bits = float(int(value.p).bit_length() + int(value.q).bit_length())
        case Number() | NumberSymbol():
            bits = abs(float(log(abs(value), 2).evalf(5))) if value.is_finite and value else 1.0
        case Pow() | exp():
            base, exponent = value.as_base_exp()
            bits = max(1.0, _bits(base)) * max(1.0, _absolute(exponent))
        case Add() | Mul():
            parts = [_bits(part) for part in value.args]
            bits = sum(parts) if isinstance(value, Mul) else max(parts) + math.log2(len(parts))
        case _:
            bits = max((_bits(part) for part in value.args), default=1.0)
            if isinstance(value, Function) and not isinstance(value, _SLOWLY_GROWING):
                bits *= 2 ** min(bits, 64.0)  # as a factorial does
    if bits > _MAX_BITS:
        raise TooLarge
    return bits


def _absolute(exponent: Any) -> float:
    """An upper bound of |exponent|."""
    return abs(float(exponent)) if isinstance(exponent, Rational) else 2 ** min(_bits(exponent), 64.0)


def _num_terms(value: Any) -> int:
    """An upper bound of the number of terms after all products, powers and sums are written out."""
    parts = [_num_terms(part) for part in value.args]
    if isinstance(value, _NEVER_FINISHED):
        raise TooLarge
    if isinstance(value, Sum | Product):
        num_terms = _span(value) * parts[0] if isinstance(value, Sum) else parts[0] ** _span(value)
    elif isinstance(value, Pow) and isinstance(value.exp, Rational) and parts[0] > 1 and rational(value) is None:
        num_terms = _num_products(parts[0], math.ceil(abs(value.exp)))
    elif isinstance(value, Add):
        num_terms = sum(parts) if rational(value) is None else 1
    else:
        num_terms = math.prod(parts) if isinstance(value, Mul) else max(parts, default=1)
    if num_terms > _MAX_TERMS:
        raise TooLarge
    return num_terms


def _span(value: Sum | Product) -> int:
    """The number of terms of a sum or product over whole numbers."""
    if len(value.limits) != 1 or len(value.limits[0]) != 3:
        raise TooLarge
    low, high = (rational(limit) for limit in value.limits[0][1:])
    if low is None or high is None or low.denominator != 1 or high.denominator != 1 or high - low >= _MAX_TERMS:
        raise TooLarge
    return max(1, int(high - low) + 1)


def _num_products(num_factors: int, degree: int) -> int:
    if degree > _MAX_TERMS:
        raise TooLarge
    return math.comb(num_factors + degree - 1, degree)


def contradicted(gold: Any, answer: Any) -> bool:
    """True if two values certainly differ, whatever the library says."""
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
    """The coordinates of a point, which may be an interval: the library reads (1, 2) as one."""
    return value.args[:2] if isinstance(value, Interval) else value.args


def _some_differ(gold: Iterable[Any], answer: Iterable[Any]) -> bool:
    return any(contradicted(g, a) for g, a in zip(gold, answer, strict=False))


def _covered(elements: Iterable[Any], others: Iterable[Any]) -> bool:
    others = tuple(others)
    return all(any(not contradicted(element, other) for other in others) for element in elements)


def _differ(gold: Any, answer: Any) -> bool:
    """True if two numbers or formulas differ; False if that can't be known."""
    gold, answer = _right_side(gold), _right_side(answer)
    if gold == answer or not isinstance(gold, Expr) or not isinstance(answer, Expr):
        return False
    points = _points(gold.free_symbols | answer.free_symbols)
    return any(_numbers_differ(gold.xreplace(point), answer.xreplace(point)) for point in points)


def _right_side(value: Any) -> Any:
    return value.rhs if isinstance(value, Relational) else value


def _points(symbols: set[Basic]) -> list[dict[Basic, Basic]]:
    ordered = sorted(symbols, key=str)
    offsets = (3, 8) if ordered else (0,)
    return [{symbol: Rational(2 * i + offset, 7) for i, symbol in enumerate(ordered)} for offset in offsets]


def _numbers_differ(gold: Any, answer: Any) -> bool:
    """True if two numbers differ: as fractions, to a thousand digits, or, for decimals, by more than rounding hides."""
    if gold.has(UnevaluatedExpr) or answer.has(UnevaluatedExpr):  # percentages, which can be read in two ways
        return False
    decimals = gold.has(Float), answer.has(Float)
    if not all(decimals):
        exact = rational(_as_written(gold)), rational(_as_written(answer))
        if None not in exact:
            return exact[0] != exact[1]
    if any(decimals):
        return _values_differ(gold, answer, _FEW_DIGITS, _RELATIVE_TOLERANCE)
    return any(_values_differ(gold, answer, digits, Pow(10, 10 - digits).evalf(5)) for digits in (_FEW_DIGITS, _DIGITS))


def _values_differ(gold: Any, answer: Any, digits: int, tolerance: Any) -> bool:
    try:
        values = [value.evalf(digits, maxn=2 * _DIGITS) for value in (gold, answer)]
        size = max(abs(value) for value in values)
        return bool(abs(values[0] - values[1]) > tolerance * size) and not all(map(_is_noise, values))
    except (TypeError, ValueError, OverflowError, AttributeError, ArithmeticError):
        return False


def _is_noise(value: Any) -> bool:
    """True if a number is 0 up to the error of its evaluation."""
    return value == 0 or (value.is_Float and value._prec < 10)


def _as_written(value: Any) -> Any:
    """The value with its decimals replaced by the fractions that they spell."""
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
