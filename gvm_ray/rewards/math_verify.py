r"""Mathematical equality of the final answer and the gold answer, by the Math-Verify library.

Math-Verify's own time limits use SIGALRM, which doesn't work in threads and doesn't interrupt long C calls. They are
off here; instead the process that runs the reward is killed from outside. Before the library judges, both answers are
rewritten (`answer_rules`), and some pairs are decided by spelling (`answer_pairs`). Numbers are also compared exactly:
if they differ, the answers aren't equal, whatever the library says (`exact_values`).
"""

import functools
import itertools
import logging
import re
from dataclasses import dataclass
from typing import Any

from latex2sympy2_extended.latex2sympy2 import NormalizationConfig
from latex2sympy2_extended.logic import And
from math_verify import LatexExtractionConfig, parse, verify
from math_verify.grader import is_relation
from sympy import Eq, Expr, I, MatrixBase, Poly, Symbol, Tuple, pi
from sympy.core.relational import Relational

from gvm_ray.config.rewards import TruncatedGrading
from gvm_ray.maths.final_answer import final_answer, final_boxed
from gvm_ray.rewards.answer_pairs import decided, has_rule
from gvm_ray.rewards.answer_rules import rewritten
from gvm_ray.rewards.exact_values import TooLarge, check_sizes, contradicted, rational, written_out
from gvm_ray.types import Completion, Prompt

logging.getLogger("math_verify").setLevel(logging.ERROR)  # each process would warn that the time limits are off

# A longer answer is wrong unless the gold answer is as long. This bounds the work of the regular expressions and the
# parser, which grows with a power of the length.
_MAX_CHARACTERS = 2000
_MAX_DEPTH = 12  # of brackets; the parser's time grows exponentially with it, to seconds at 12
_GOLD_CHARACTERS = 300  # the benchmarks' longest answer has 224
_LATEX = LatexExtractionConfig(
    boxed_match_priority=0,
    normalization_config=NormalizationConfig(
        basic_latex=True, units=True, malformed_operators=True, nits=True, boxed="all", equations=False
    ),
)
# The library evaluates these while parsing, and compares the ends of intervals.
_WORKED_OUT = re.compile(r"\\(?:[dt]?binom|choose|gcd|lcm)(?![a-zA-Z])|\{\s*(?:gcd|lcm)\s*\}")
_LARGE = re.compile(r"\d{5}|\^[^,&]*\^")
_MAX_TOWER = 2  # powers in exponents: a^{b^c}
_INTEGER = re.compile(r"[+-]?\d{1,18}")
_LAYOUT = re.compile(r"(?<!\d,)(?<!\d)\s+|\s+(?!\d)")  # not in "1 2" and "1, 234", which aren't 12 and 1234
_LABEL = re.compile(r"(?:\(\s*([A-J])\s*\)|([A-J])(?:\)|\.(?=\s)))\s*(.*)", re.DOTALL)
_CHOICE = re.compile(r"(?<![a-zA-Z\\(])\(?\s*([A-J])\s*\)")  # a choice after the first
_BESIDE_CHOICES = re.compile(r"\b(?:and|or)\b|[\s().,;&/]|\b[A-J]\b")
_PERCENT = re.compile(r"\s*(?:\\?%|\\text\s*\{\s*(?:percent|pct)\s*\}|\bpercent|\bpct)$")
_NATURAL = re.compile(r"\\ln(?![a-zA-Z])")
_BARE_LOGARITHM = re.compile(r"\\log(?![a-zA-Z]|\s*_)")


class MathVerifyReward:
    r"""1 if the response's final answer equals the gold answer, else 0.

    The final answer comes from `functional.final_answer`: boxed, or, unless a box is required, in <answer> tags, after
    "the answer is" or at the end. The gold answer is plain LaTeX with or without dollar signs, or a solution with
    \boxed{}. If it has a label, as in "(A) 5", both its label and its value are right. Two conventions are
    Math-Verify's: units are dropped (5 cm is 5 m), and decimals are compared with decimals and irrational numbers to
    six places (1.414214 is \sqrt{2}). Other numbers are compared exactly: 0.333333 is not 1/3. An answer of more than
    2000 characters (and more than twice the gold answer's) is wrong. An answer nested more than 12 deep, or with a
    number of more than 2**17 bits, is right only if it is spelled like the gold answer.
    """

    def __init__(self, *, require_boxed: bool = False, truncated: TruncatedGrading = "boxed_only") -> None:
        r"""Create the reward.

        Args:
            require_boxed: True if an answer outside \boxed{} is wrong.
            truncated: For a response cut at the token limit: "boxed_only" takes an answer boxed before the cut, "wrong"
                gives 0, and "as_finished" also takes the last number, although the cut was arbitrary.
        """
        self._require_boxed = require_boxed
        self._truncated = truncated
        # The first call compiles the library's expressions; keep that out of the first response's time limit.
        equal_answers("1", r"\frac{1}{1}")

    def __call__(self, prompt: Prompt, completion: Completion) -> float:
        cut = completion.finish_reason == "length"
        if cut and self._truncated == "wrong":
            return 0.0
        answer = final_answer(completion.text)
        if answer is None:
            return 0.0
        if not answer.boxed and (self._require_boxed or (cut and self._truncated == "boxed_only")):
            return 0.0
        return float(equal_answers(prompt.answer, answer.text))


def equal_answers(gold: str, answer: str) -> bool:
    r"""True if an answer equals the gold answer; the gold answer may be a text with \boxed{}."""
    boxed = final_boxed(gold)
    gold = (gold if boxed is None else boxed).strip()
    answer = answer.strip()
    if len(answer) > max(_MAX_CHARACTERS, 2 * len(gold)):
        return False
    if gold == answer:
        return gold != ""
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(gold):  # most answers, a thousand times faster
        return int(answer) == int(gold)
    return _labelled_equal(_read(gold), _read(answer))


def can_parse_answer(answer: str) -> bool:
    r"""True if Math-Verify or one of our rules understands a gold answer (plain LaTeX, or text with \boxed{}).

    If a gold answer isn't understood, a response is right only if it spells the answer the same way. An answer of more
    than 300 characters counts as not understood: for some of these the parser takes minutes.
    """
    boxed = final_boxed(answer)
    read = _read((answer if boxed is None else boxed).strip())
    return bool(read.label) or _understood(read.text)


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """A rewritten answer, split into label and text if it names a choice."""

    label: str  # the letter of a choice, "" for none
    text: str  # the rest; the letter itself if there is no rest


@functools.lru_cache(maxsize=64)  # all samples of a prompt share its gold answer
def _read(answer: str) -> _Answer:
    if len(answer) > 2 * _MAX_CHARACTERS:
        return _Answer(label="", text=answer)
    text = rewritten(answer)
    label = _LABEL.fullmatch(re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text).strip())
    if label:
        letter = label[1] or label[2]
        if others := set(_CHOICE.findall(label[3])) - {letter}:
            only = not _BESIDE_CHOICES.sub("", label[0])
            return _Answer(label="", text=", ".join(sorted({letter, *others})) if only else text)
        return _Answer(label=letter, text=rewritten(label[3]) or letter)
    return _Answer(label=text if re.fullmatch("[A-J]", text) else "", text=text)


def _labelled_equal(gold: _Answer, answer: _Answer) -> bool:
    if gold.label and answer.label and gold.label != answer.label:
        return False
    if gold.label and gold.label == answer.label and answer.label in (gold.text, answer.text):
        return True
    return _equal(gold.text, answer.text)


def _equal(gold: str, answer: str) -> bool:
    if _spelling(answer) == _spelling(gold):
        return gold != ""
    if not gold or not answer or max(map(_depth, (gold, answer))) > _MAX_DEPTH or len(gold) > _GOLD_CHARACTERS:
        return False
    by_rule = decided(gold, answer)
    if by_rule is not None:
        return by_rule
    try:
        return any(_judged(*values) for values in _values(*_same_logarithm(gold, answer)))
    except (TooLarge, NotImplementedError):
        return False


def _values(gold: str, answer: str) -> list[tuple[Any, Any]]:
    """The pairs of values to compare: several if a percentage or an angle may be read in two ways."""
    (gold_text, gold_percent), (answer_text, answer_percent) = _without_percent(gold), _without_percent(answer)
    one, other = parse_formula(gold_text), parse_formula(answer_text)
    if one is None or other is None:
        return []
    if not isinstance(one, Expr) or not isinstance(other, Expr):
        return [(one, other)]
    gold_degrees, answer_degrees = r"\circ" in gold, r"\circ" in answer
    if gold_degrees != answer_degrees and ((answer_degrees and one.has(pi)) or (gold_degrees and other.has(pi))):
        return [(one * pi / 180, other) if gold_degrees else (one, other * pi / 180)]
    if gold_percent != answer_percent:
        return [(one, other), (one / 100, other) if gold_percent else (one, other / 100)]
    return [(one, other)]


def _judged(gold: Any, answer: Any) -> bool:
    """Math-Verify's verdict, unless exact comparison contradicts it or already decides."""
    if type(gold) is type(answer) and gold == answer:
        return True
    check_sizes(gold)
    check_sizes(answer)
    gold, answer = written_out(gold), written_out(answer)
    exact = rational(gold), rational(answer)
    if None not in exact:
        return exact[0] == exact[1]
    if isinstance(gold, MatrixBase) != isinstance(answer, MatrixBase):
        gold, answer = _as_tuple(gold), _as_tuple(answer)
    elif is_relation(gold) and is_relation(answer):
        gold, answer = _compared_relations(gold, answer)
    if contradicted(gold, answer):  # first, because the library's simplification takes a hundred times as long
        return False
    return verify(gold, answer, timeout_seconds=0, allow_set_relation_comp=True)


def _compared_relations(gold: Any, answer: Any) -> tuple[Any, Any]:
    """The numbers of two assignments (x = 5, y = 5), the solutions of two chains of inequalities, or both as given."""
    if all(isinstance(value, Eq) and value.lhs.is_Symbol and value.rhs.is_number for value in (gold, answer)):
        return gold.rhs, answer.rhs
    chains = all(isinstance(value, And) and _is_quadratic(value) for value in (gold, answer))
    if chains and gold.free_symbols == answer.free_symbols:
        try:
            return gold.as_set(), answer.as_set()
        except (NotImplementedError, TypeError, ValueError, AttributeError):
            return gold, answer
    return gold, answer


def _is_quadratic(chain: And) -> bool:
    """True if the inequalities can be solved quickly: polynomials in one symbol, of degree two at most."""
    sides = [side for relation in chain.args if isinstance(relation, Relational) for side in relation.args]
    return len(chain.free_symbols) == 1 and all(
        isinstance(side, Expr) and side.is_polynomial() and (side.is_number or Poly(side).degree() <= 2)
        for side in sides
    )


def _as_tuple(value: Any) -> Any:
    """A column vector as a tuple; other values as they are."""
    return Tuple(*value) if isinstance(value, MatrixBase) and value.shape[1] == 1 else value


@functools.lru_cache(maxsize=64)
def parse_formula(answer: str) -> Any:
    """A sympy object; None where Math-Verify can't read the LaTeX, or could take long to."""
    if _tower(answer) > _MAX_TOWER or (_WORKED_OUT.search(answer) and _LARGE.search(answer)):
        return None
    found = parse(
        rf"\boxed{{{answer}}}",
        [_LATEX],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=0,
    )
    if not found:
        return None
    value = found[0]
    imaginary = Symbol("i", real=False)  # the library's reading of the i in e^{i\pi}
    is_index = not hasattr(value, "free_symbols") or imaginary not in value.free_symbols  # the index of a sum
    return value if is_index else value.subs(imaginary, I)


def _understood(gold: str) -> bool:
    if not 0 < len(gold) <= _GOLD_CHARACTERS or _depth(gold) > _MAX_DEPTH:
        return False
    return bool(has_rule(gold) or parse_formula(_without_percent(gold)[0]) is not None)


def _without_percent(answer: str) -> tuple[str, bool]:
    """The answer without its percent sign, and True if it had one."""
    number, found = _PERCENT.subn("", answer)
    return (number, True) if found and number else (answer, False)


def _same_logarithm(gold: str, answer: str) -> tuple[str, str]:
    r"""Both answers with \ln for a bare \log if only one of them writes \ln: \log then means the natural logarithm."""
    if bool(_NATURAL.search(gold)) == bool(_NATURAL.search(answer)):
        return gold, answer
    return _BARE_LOGARITHM.sub(r"\\ln", gold), _BARE_LOGARITHM.sub(r"\\ln", answer)


def _spelling(answer: str) -> str:
    """The answer without layout, to compare answers that can't be parsed."""
    return re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", _LAYOUT.sub("", answer))


def _depth(answer: str) -> int:
    """The nesting depth of brackets of any kind, escaped ones included."""
    steps = ((character in "([{") - (character in ")]}") for character in answer)
    return max(itertools.accumulate(steps), default=0)


def _tower(answer: str) -> int:
    """The nesting depth of powers in exponents."""
    open_braces: list[bool] = []  # True for the brace of an exponent
    deepest, before = 0, ""
    for character in answer:
        if character == "^":
            deepest = max(deepest, sum(open_braces) + 1)
        elif character == "{":
            open_braces.append(before == "^")
        elif character == "}" and open_braces:
            open_braces.pop()
        before = before if character.isspace() else character
    return deepest
