r"""Mathematical equality of the final answer and the gold answer, by the Math-Verify library.

Math-Verify's own time limits use SIGALRM, which works in no thread and interrupts no long C call; they are off here,
and the process that runs the reward is killed from outside instead. What is added to the library: an answer that is
boxed is taken whole or not at all (the library falls back to any fraction inside it), numbers in e-notation, and
numbers far below 1, which the library rounds to six decimals and so finds equal.
"""

import itertools
import logging
import re
from typing import Any

from latex2sympy2_extended.latex2sympy2 import NormalizationConfig
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from sympy import Basic, Expr, UnevaluatedExpr

from gvm_ray.functional.boxed import final_boxed
from gvm_ray.types import Completion, Prompt

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns once a process that its time limits are off

# An answer outside a box is looked for at the end only, and a box that holds more is wrong unless the gold answer is as
# long: bounds the work of the regular expressions and the parser, which grows with a power of the length.
_MAX_CHARACTERS = 2000
_MAX_DEPTH = 12  # of brackets; the parser's time grows exponentially with it, to seconds at 12
_GOLD_CHARACTERS = 300  # the benchmarks' longest answer has 224
_RELATIVE_TOLERANCE = 1e-3  # what rounding to six decimals can hide in a number of size 1e-3
_LATEX = LatexExtractionConfig(
    boxed_match_priority=0,
    normalization_config=NormalizationConfig(
        basic_latex=True, units=True, malformed_operators=True, nits=True, boxed="all", equations=False
    ),
)
_EXPRESSION = ExprExtractionConfig()
_INTEGER = re.compile(r"[+-]?\d{1,18}")
_BOLD = re.compile(r"\\(?:textbf|mathbf)\s*\{([^{}]*)\}")  # as AMC and AIME solutions set their answers: \textbf{(073)}
_LAYOUT = re.compile(r"\\(?:left|right|displaystyle|quad|qquad|[!,;:> ])(?![a-zA-Z])|\s")


class MathVerifyReward:
    r"""1 if the response's final answer equals the gold answer, else 0.

    The final answer is the last \boxed{} (several, if only commas, "and" or "or" part them), else what Math-Verify
    finds in the last lines. The gold answer is plain LaTeX with or without dollar signs, or a solution with \boxed{}.
    A boxed answer of more than 2000 characters (and twice the gold answer's) is wrong, and one nested more than 12 deep
    is right only if it spells the gold answer.
    """

    def __init__(self) -> None:
        # A gold answer is shared by all samples of its prompt. The first call also compiles the library's expressions,
        # which the first response's time limit shouldn't pay for.
        self._gold_answer = "1"
        self._gold = _parse_boxed("1")
        _parse_text("The answer is 1.")

    def __call__(self, prompt: Prompt, completion: Completion) -> float:
        boxed_gold = final_boxed(prompt.answer)
        gold = _clean(prompt.answer if boxed_gold is None else boxed_gold)
        boxed = final_boxed(completion.text)
        if boxed is not None and len(boxed) > max(_MAX_CHARACTERS, 2 * len(gold)):
            return 0.0
        answer = None if boxed is None else _clean(boxed)
        if answer is not None:
            if _spelling(answer) == _spelling(gold) != "":
                return 1.0
            if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(gold):  # most answers, a thousand times faster
                return float(int(answer) == int(gold))
            if _depth(answer) > _MAX_DEPTH:
                return 0.0
        if gold != self._gold_answer:
            self._gold_answer, self._gold = gold, _parse_boxed(gold)
        if not self._gold:
            return 0.0
        found = _parse_text(completion.text) if answer is None else _parse_boxed(answer)
        return float(bool(found) and _equal(self._gold[0], found[0]))


def can_parse_answer(answer: str) -> bool:
    r"""Whether Math-Verify understands a gold answer (plain LaTeX, or text with \boxed{}).

    A response to a prompt whose gold answer it doesn't understand is right only if it spells the answer the same way.
    An answer of more than 300 characters counts as not understood: with some of them the parser takes minutes.
    """
    boxed = final_boxed(answer)
    gold = answer if boxed is None else boxed
    return len(gold) <= _GOLD_CHARACTERS and bool(_parse_boxed(_clean(gold)))


def _clean(answer: str) -> str:
    answer = re.sub(r"(?<!\\)\$", "", answer).strip().rstrip(".").strip()
    if bold := _BOLD.fullmatch(answer):
        answer = bold[1].strip()
    answer = re.sub(r"(?<![\w.])([+-]?\d*\.?\d+)[eE]([+-]?\d+)(?![\w.])", r"\1 \\times 10^{\2}", answer)
    return re.sub(r"(\d)\.(?!\d)", r"\1", answer)  # "1./3"


def _spelling(answer: str) -> str:
    """The answer without layout, for comparing what can't be parsed."""
    answer = re.sub(r"\\[dt]frac(?![a-zA-Z])", r"\\frac", answer)
    return _LAYOUT.sub("", re.sub(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}", r"\1", answer))


def _depth(answer: str) -> int:
    """How deep brackets of any kind are nested, escaped ones included."""
    steps = ((character in "([{") - (character in ")]}") for character in answer)
    return max(itertools.accumulate(steps), default=0)


def _parse_boxed(answer: str) -> list[Any]:
    """[] or one sympy object."""
    return parse(
        rf"\boxed{{{answer}}}",
        [_LATEX],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=0,
    )[:1]


def _parse_text(text: str) -> list[Any]:
    """[] or one sympy object."""
    return parse(
        text[-_MAX_CHARACTERS:],
        [_LATEX, _EXPRESSION],
        fallback_mode="no_fallback",
        parsing_timeout=0,
    )[:1]


def _equal(gold: Basic, answer: Basic) -> bool:
    if not verify(gold, answer, timeout_seconds=0):
        return False
    gold_size, answer_size = _size(gold), _size(answer)
    if not gold_size or not answer_size:
        return True
    return abs(gold_size - answer_size) <= _RELATIVE_TOLERANCE * abs(gold_size)


def _size(value: Any) -> float | None:
    """The value of a real number; None for anything else, and for a percentage, which may be meant either way."""
    if not isinstance(value, Expr) or not value.is_number or value.has(UnevaluatedExpr):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None
