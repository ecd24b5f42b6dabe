r"""Rules that compare the spelling of two answers, applied before Math-Verify compares their values.

The library reads words as products of letters, drops the base of a number, divides ratios, and forgets the order and
the count of a list. A rule returns True or False if it can tell whether the answers are equal, else None. Both answers
have been rewritten (`answer_rules`).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import gcd

from gvm_ray.rewards.answer_rules import QUALIFIER


@dataclass(frozen=True, kw_only=True)
class PairRule:
    """A rule that decides by spelling."""

    name: str
    reason: str
    equal: Callable[[str, str], bool | None]


def decided(gold: str, answer: str) -> bool | None:
    """True or False by the first rule that decides whether the answers are equal; None if no rule does."""
    for rule in PAIR_RULES:
        equal = rule.equal(gold, answer)
        if equal is not None:
            return equal
    return None


def has_rule(answer: str) -> bool:
    """True if an answer is judged by its spelling: words, digits with a base, or a ratio of several numbers."""
    return _word(answer) is not None or _BASED.fullmatch(answer) is not None or _ratio(answer) is not None


_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_ARTICLE = re.compile(r"^(?:an?|the) ", re.IGNORECASE)
_WORDS = re.compile(r"[a-zA-Z][a-zA-Z' -]*[a-zA-Z]")
_PRODUCT = re.compile(r"[a-z]{2}")  # two lower-case letters are a product: xy is yx
_OPERATION = re.compile(r"[+*/^-]|\\(?:cdot|times|frac)")
_BASED = re.compile(r"([0-9A-Za-z]*\d[0-9A-Za-z]*|[A-F]+)\s*_\s*\{?([0-9a-z]+)\}?")
_NUMBER_WITH_INDEX = re.compile(r"(?<![a-zA-Z\\{}_\d])\d+\s*_")
_HALF_OF_DAY = re.compile(r"\s*\\?(?:text\s*\{)?\s*([ap])\.?\s?m\.?\s*\}?$", re.IGNORECASE)
_TIME = re.compile(r"(\d{1,2}):([0-5]\d)")
_LETTER_LIST = re.compile(r"[A-Z](?:\s*[,;]\s*[A-Z])+")
_CAPITALS = re.compile(r"(?<![a-zA-Z\\])[A-Z]{3,}(?![a-zA-Z])")
_QUALIFIER = re.compile(QUALIFIER)
_QUANTITY = r"\s*(-?\d+(?:\.\d+)?)\s*\\text\s*\{[^{}\d]*\}"
_QUANTITIES = re.compile(rf"(?:{_QUANTITY}){{1,3}}\s*\d+(?:\.\d+)?\s*(?:\\text\s*\{{[^{{}}\d]*\}})?")
_MARK = re.compile(r"\\(?:[lc]?dots)(?![a-zA-Z])|\.\.\.|…|(?<=[a-zA-Z)])'")
_UNSIGNED = re.compile(r"\d+(?:\.\d+)?")
_INEQUALITY = re.compile(r"[<>]|\\(?:le|ge|lt|gt|leq|geq)(?:slant)?(?![a-zA-Z])")
_OPENING, _CLOSING = "([{", ")]}"


def _plain(answer: str) -> str:
    return _TEXT.sub(r"\1", answer).strip()


def _word(answer: str) -> str | None:
    """The answer as words without case, article and hyphens; None if it is a formula."""
    plain = _ARTICLE.sub("", " ".join(_plain(answer).strip("(){}[].!\"' ").split()))
    return plain.casefold().replace("-", " ") if _WORDS.fullmatch(plain) else None


def _words(gold: str, answer: str) -> bool | None:
    word, other = _word(gold), _word(answer)
    if word is None and other is None:
        return None
    if word is None or other is None:
        # abc may be the product a \cdot b \cdot c; longer words aren't formulas.
        short = _PRODUCT.fullmatch((word or other or "")[-2:]) and len(word or other or "") <= 3
        return None if short and _OPERATION.search(gold + answer) else False
    if "no" not in (word, other) and _PRODUCT.fullmatch(gold) and _PRODUCT.fullmatch(answer):
        return None
    return word == other


def _bases(gold: str, answer: str) -> bool | None:
    one, other = _BASED.fullmatch(gold), _BASED.fullmatch(answer)
    if one and other:
        return (one[1].upper(), one[2]) == (other[1].upper(), other[2])
    if one and one[1].isalnum() and any(map(str.isdigit, one[1])):
        return one[1].upper() == answer.upper()  # the question names the base
    if _NUMBER_WITH_INDEX.search(gold) or _NUMBER_WITH_INDEX.search(answer):
        return False
    return None


def _ratio(answer: str) -> list[Fraction] | None:
    """The terms of a ratio or the parts of a time; None for anything else."""
    parts = _HALF_OF_DAY.sub("", answer).split(":")
    try:
        return [Fraction(_fraction(part)) for part in parts] if len(parts) > 1 else None
    except (ValueError, ZeroDivisionError):
        return None


def _fraction(part: str) -> str:
    part = re.sub(r"\\frac\s*\{(\d{1,20})\}\s*\{(\d{1,20})\}", r"\1/\2", part.strip())
    if len(part) > 50 or "e" in part.lower():
        raise ValueError(part)
    return part


def _ratios(gold: str, answer: str) -> bool | None:
    colons = max(gold.count(":"), answer.count(":"))
    if colons == 0:
        return None
    halves = {half[1].lower() for text in (gold, answer) if (half := _HALF_OF_DAY.search(text))}
    if len(halves) > 1:
        return False
    terms, others = _ratio(gold), _ratio(answer)
    if terms is None or others is None:
        # A ratio of two numbers is a quotient, which the library can judge; times and longer ratios are not.
        return None if colons == 1 and not _is_time(gold) and not _is_time(answer) else False
    if _is_time(gold) or (_TIME.fullmatch(gold) and _is_time(answer)) or 0 in terms or 0 in others:
        return terms == others
    return len(terms) == len(others) and all(
        term * others[0] == other * terms[0] for term, other in zip(terms, others, strict=True)
    )


def _is_time(answer: str) -> bool:
    """True if e.g. "10:30" is a time: with am or pm, with a minute such as 05, or not in lowest terms as a ratio."""
    time = _TIME.fullmatch(_HALF_OF_DAY.sub("", answer))
    if time is None:
        return False
    hours, minutes = int(time[1]), int(time[2])
    return _HALF_OF_DAY.search(answer) is not None or time[2][0] == "0" or gcd(hours, minutes) > 1


def _letter_lists(gold: str, answer: str) -> bool | None:
    golds, answers = _plain(gold), _plain(answer)
    if not (_LETTER_LIST.fullmatch(golds) and _LETTER_LIST.fullmatch(answers)):
        return None
    letters, others = re.findall("[A-Z]", golds), re.findall("[A-Z]", answers)
    return letters == others if letters != sorted(letters) else letters == sorted(others)


def _capitals(gold: str, answer: str) -> bool | None:
    names, others = _CAPITALS.findall(_plain(gold)), _CAPITALS.findall(_plain(answer))
    return False if names and others and names != others and len(names) == len(others) == 1 else None


def _qualifiers(gold: str, answer: str) -> bool | None:
    said, others = (
        {word.lower() for text in _TEXT.findall(each) for word in _QUALIFIER.findall(text)} for each in (gold, answer)
    )
    return False if others - said else None


def _marks(gold: str, answer: str) -> bool | None:
    one, other = (sorted(set(_MARK.findall(_TEXT.sub("", each)))) for each in (gold, answer))
    return False if one != other else None


def _quantities(gold: str, answer: str) -> bool | None:
    if not (_QUANTITIES.fullmatch(gold) or _QUANTITIES.fullmatch(answer)):
        return None
    numbers, others = ([Fraction(number) for number in _UNSIGNED.findall(each)] for each in (gold, answer))
    return numbers == others


def _shape(answer: str) -> tuple[str, int]:
    r"""The bracket around the answer ("" for none, "{" for \{), and its number of items; items with ± count twice."""
    depth, commas, signs, closes = 0, [0, 0], [0, 0], -1
    text = answer.replace(r"\{", "{").replace(r"\}", "}")
    for position, character in enumerate(text):
        if character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth -= 1
            if depth == 0 and closes < 0:
                closes = position
        elif character in ",;" and depth in (0, 1) and not _in_number(text, position):
            commas[depth] += 1
        elif character == "p" and depth in (0, 1) and text.startswith("\\pm", position - 1):
            signs[depth] += 1
    whole = text[:1] in _OPENING and closes == len(text) - 1 and text != ""
    level = 1 if whole else 0
    return (text[0] if whole else ""), 1 + commas[level] + signs[level]


def _in_number(text: str, position: int) -> bool:
    """True if the comma separates groups of digits, as in 1,234."""
    return text[position] == "," and re.match(r"\d,\d{3}(?!\d)", text[position - 1 : position + 5]) is not None


def _intervals(gold: str, answer: str) -> bool | None:
    for relation, other in ((gold, answer), (answer, gold)):
        if _INEQUALITY.search(relation) and not _INEQUALITY.search(other):
            bracket, count = _shape(other)
            if count > 1 and bracket in ("", "{"):
                return False
    return None


def _shapes(gold: str, answer: str) -> bool | None:
    (bracket, count), (other, other_count) = _shape(gold), _shape(answer)
    if count > 1 and other_count > 1:
        if bracket == "" and other == "(":  # a pair has an order, a list has none
            return False
        if {bracket, other} == {"{", "("}:
            return False
        return False if count != other_count else None
    if count == other_count == 1 and "[" in (bracket, other) and bracket != other:
        return False
    return None


PAIR_RULES = (
    PairRule(name="words", reason="the library multiplies letters: stop = post", equal=_words),
    PairRule(name="bases", reason="the library drops the base: 101_2 = 101_3", equal=_bases),
    PairRule(name="ratios", reason="the library divides: 2:3:4 = 1:6, and 12:00 is infinite", equal=_ratios),
    PairRule(name="orders of letters", reason="C,A,B,D is a ranking, A,C a choice", equal=_letter_lists),
    PairRule(name="names of points", reason="the library multiplies letters: ABC = CBA", equal=_capitals),
    PairRule(name="qualifiers", reason="the library drops words like units: 5 or more, 5 (maybe 6)", equal=_qualifiers),
    PairRule(
        name="marks", reason="the library drops primes and dots: f'(x) = f(x), and 1, 2, ... = 1, 2", equal=_marks
    ),
    PairRule(name="quantities", reason="the library reads only the first: 1 hour 30 minutes = 1", equal=_quantities),
    PairRule(name="intervals", reason="the library takes 2 < x < 3 for the list of its ends", equal=_intervals),
    PairRule(
        name="shapes", reason="the library takes 1,2 and {1,2} for (1,2), 1,2 for 1,2,2, [13] for 13", equal=_shapes
    ),
)
