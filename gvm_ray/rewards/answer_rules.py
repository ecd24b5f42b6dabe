# ruff: noqa: RUF001 - the first rule is about look-alike signs
r"""Rules that rewrite an answer before Math-Verify reads it, in order, each with its reason.

A rule changes the spelling and keeps the value. Gold answers and responses go through the same rules. Rules that need
both answers, e.g. to see that their order counts, are in `answer_pairs`. Responses are untrusted text, so every
pattern takes time linear in the answer's length, or quadratic at worst.
"""

import itertools
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule that rewrites an answer."""

    name: str
    reason: str
    apply: Callable[[str], str]


def rewritten(answer: str) -> str:
    """The answer after all the rules."""
    for rule in RULES:
        answer = rule.apply(answer).strip()
    return answer


def _sub(pattern: str, replacement: str | Callable[[re.Match[str]], str]) -> Callable[[str], str]:
    compiled = re.compile(pattern)
    return lambda text: compiled.sub(replacement, text)


_SIGNS = {
    **dict.fromkeys("−–—‒‐‑﹣－", "-"),
    **dict.fromkeys("×✕✖", r"\times "),
    **dict.fromkeys("·⋅∙•", r"\cdot "),
    **dict.fromkeys("∕⁄", "/"),
    **dict.fromkeys("、，﹐", ","),
    **dict.fromkeys("。．｡", "."),
    **dict.fromkeys("〈⟨", r"\langle "),
    **dict.fromkeys("〉⟩", r"\rangle "),
    **dict.fromkeys("≤⩽≦", r"\le "),
    **dict.fromkeys("≥⩾≧", r"\ge "),
    **dict.fromkeys("°º˚", r"^\circ "),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
    **{"÷": "/", "±": r"\pm ", "∓": r"\mp ", "≠": r"\ne ", "≈": r"\approx ", "∞": r"\infty ", "∪": r"\cup "},
    **{"∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}"},
    **{"∠": r"\angle ", "△": r"\triangle ", "′": "'", "ϕ": r"\phi ", "µ": r"\mu "},
}
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+(?:\.\d+)?|\w))")
_NUMBER_WORDS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10} | {
    "eleven": 11,
    "twelve": 12,
    "sixteen": 16,
}
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?|[a-z]|\\[a-z]+)\s*\^\s*\\circ(?![a-zA-Z])")
QUALIFIER = (
    r"(?<![a-zA-Z])(?i:or|maybe|perhaps|possibly|not|wrong|incorrect|if|otherwise|unless|except"
    r"|at least|at most|more than|less than|percent|pct|thousand|million|billion|trillion|dozen)"
    r"(?![a-zA-Z])"
)
_LAST_UNIT = re.compile(
    rf"(?<=[\d}})])\s*\\text\s*\{{(?![^{{}}]*{QUALIFIER})[^{{}}]*\}}(?:\s*\^\s*(?:\{{\s*-?\d\s*\}}|-?\d))?\s*(?=$|[,;)\]])"
)
_UNIT = r"\\text\s*\{[^{}]*\}(?:\s*\^\s*\{?\d\}?)?"


def _unicode(text: str) -> str:
    r"""The text with TeX for Unicode signs, Greek letters, fractions, powers and indices, and the rest in NFKC."""
    if text.isascii():
        return text
    text = _ROOT.sub(lambda root: rf"\sqrt{{{root[1] or root[2] or root[3]}}}", text)
    runs = itertools.groupby(text, key=lambda character: unicodedata.decomposition(character).partition(" ")[0])
    return "".join(_run(kind, "".join(run)) for kind, run in runs)


def _run(kind: str, run: str) -> str:
    match kind:
        case "<super>" | "<sub>" if not set(run) & _SIGNS.keys():
            return f"{'^' if kind == '<super>' else '_'}{{{unicodedata.normalize('NFKC', run).replace('−', '-')}}}"
        case "<fraction>":
            parts = (unicodedata.normalize("NFKC", character).partition("⁄") for character in run)
            return "".join(rf"\frac{{{numerator}}}{{{denominator or 1}}}" for numerator, _, denominator in parts)
        case _:
            return "".join(_SIGNS.get(character) or _letter(character) for character in run)


def _letter(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    name = unicodedata.name(character, "")
    if name.startswith(("GREEK SMALL LETTER ", "GREEK CAPITAL LETTER ")) and name.count(" ") == 3:
        letter = name.rpartition(" ")[2].lower().replace("lamda", "lambda")
        return rf"\{letter if ' SMALL ' in name else letter.capitalize()} "
    return unicodedata.normalize("NFKC", character)


def _repeating(match: re.Match[str]) -> str:
    whole, fixed, block = match[1], match[2], match[3]
    denominator = (10 ** len(block) - 1) * 10 ** len(fixed)
    numerator = int(whole + fixed + block) - int((whole + fixed) or "0")
    return rf"\frac{{{numerator}}}{{{denominator}}}"


def _base(match: re.Match[str]) -> str:
    return f"{match[1]}_{{{_NUMBER_WORDS.get(match[2].lower(), match[2])}}}"


def _radians(text: str) -> str:
    if not _TRIGONOMETRIC.search(text):
        return text
    return _DEGREES.sub(r"(\1 \\cdot \\frac{\\pi}{180})", text)


def _without_units(text: str) -> str:
    return _LAST_UNIT.sub("", text) if text.count(r"\text") > 1 else text


def _unwrapped(text: str) -> str:
    plain = len(text) > 2 and text[0] == "{" and text.find("}") == len(text) - 1 and "\\" not in text
    return text[1:-1] if plain else text


RULES = (
    Rule(name="Unicode", reason="models write −, √2, π, ½ and full-width digits", apply=_unicode),
    Rule(name="dollars", reason=r"a box may hold $13$ or 13\)", apply=_sub(r"(?<!\\)\$|(?<!\\)\\[()]", "")),
    Rule(name="boxes", reason="a box inside the box", apply=_sub(r"\\(?:boxed|fbox|framebox)\s*(?=\{)", "")),
    Rule(
        name="text fonts",
        reason=r"one command for words and units, whatever their font; the library reads \text",
        apply=_sub(r"\\(?:text(?:bf|it|sf|tt|sc|rm|normal)|math(?:bf|it|sf|tt|rm)|mbox|hbox)\s*(?=\{)", r"\\text"),
    ),
    Rule(
        name="decorations",
        reason="emphasis and colour have no meaning",
        apply=_sub(
            r"\\(?:underline|boldsymbol|bm|pmb|emph|ensuremath|mathop)\s*(?=\{)"
            r"|\\(?:color|textcolor|colorbox)\s*\{[^{}]*\}|\\operatorname\*?\s*(?=\{[^a-zA-Z{}]*\})",
            "",
        ),
    ),
    Rule(
        name="font switches",
        reason=r"\Large, \bf and \displaystyle act on what follows and take no argument",
        apply=_sub(
            r"\\(?:tiny|scriptsize|footnotesize|small|normalsize|[lL]arge|LARGE|[hH]uge|bf|rm|it|sf|tt|em|bfseries"
            r"|(?:display|text|script)style|limits|nolimits)(?![a-zA-Z])",
            "",
        ),
    ),
    Rule(
        name="bracket sizes",
        reason=r"\bigl( and \left( are (",
        apply=_sub(r"\\(?:[bB]igg?[lrm]?|left|right|middle)(?![a-zA-Z])\s*(?:\.(?!\d))?", ""),
    ),
    Rule(
        name="bracketed arrays",
        reason="a matrix in its own brackets is a matrix, not a list or an interval with one item",
        apply=_sub(
            r"^(?:[a-zA-Z]\s*=)?\s*[(\[]\s*(\\begin\s*\{(array|matrix)\}(?:(?!\\(?:begin|end)(?![a-zA-Z])).)*\\end\s*\{\2\})"
            r"\s*[)\]]$",
            r"\1",
        ),
    ),
    Rule(
        name="phantoms",
        reason="they aren't printed",
        apply=_sub(r"\\[hv]?phantom\s*\{[^{}]*\}|(?<!\\)\\!|\\text\s*\{\s*\}|\\label\s*\{[^{}]*\}", ""),
    ),
    Rule(
        name="spaces",
        reason="ties, thin and wide spaces are spaces",
        apply=_sub(
            r"~|(?<!\\)\\[,;:> ]|\\(?:q?quad|enspace|thinspace|medspace|thickspace|space|hfill)(?![a-zA-Z])"
            r"|\\[hv]space\*?\s*\{[^{}]*\}|\s+",
            " ",
        ),
    ),
    Rule(name="text numbers", reason=r"\text{(073)} is (073)", apply=_sub(r"\\text\s*\{([^a-zA-Z{}]*)\}", r"\1")),
    Rule(
        name="fractions",
        reason=r"\dfrac and \tfrac are sizes of \frac",
        apply=_sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    ),
    Rule(
        name="beginnings",
        reason='"= 13", "≈ 13", "Answer: 13" and "Therefore 13" mean 13',
        apply=_sub(
            r"^(?:\s|=|:|\\(?:approx|simeq|cong|doteq|therefore|implies|Rightarrow|to)(?![a-zA-Z])"
            r"|\\text\s*\{\s*(?i:(?:the )?(?:final )?answer(?: is)?|therefore|thus|so|hence)\s*[:=,]?\s*\}"
            r"|(?i:(?:the )?(?:final )?answer(?: is\b|\s*[:=])))+",
            "",
        ),
    ),
    Rule(
        name="endings",
        reason="punctuation, line breaks and tick marks after an answer",
        apply=_sub(r"(?:\s|(?<!\\)[.,;:]|\\\\(?!\w)|\\(?:checkmark|blacksquare|square|Box|qed)(?![a-zA-Z]))+$", ""),
    ),
    Rule(
        name="ASCII signs",
        reason="operators as programs write them",
        apply=lambda text: text.replace("**", "^").replace("<=", r"\le ").replace(">=", r"\ge ").replace("!=", r"\ne "),
    ),
    Rule(
        name="infinity",
        reason="∞ in any spelling",
        apply=_sub(
            r"\\text\s*\{\s*(?i:(?:positive |plus |\+)?(?:infinity|infty|inf))\s*\}|\\(?:infin|infinity)(?![a-zA-Z])"
            r"|(?<![\\a-zA-Z])(?i:(?:(?:positive|plus) )?(?:infinity|infty|inf|oo))(?![a-zA-Z])",
            r"\\infty ",
        ),
    ),
    Rule(
        name="minus infinity",
        reason="-∞ in words",
        apply=_sub(
            r"\\text\s*\{\s*(?i:(?:negative |minus |-)(?:infinity|inf))\s*\}"
            r"|(?:\\text\s*\{\s*)?(?i:negative|minus)\s*\}?\s*\\infty",
            r"-\\infty ",
        ),
    ),
    Rule(
        name="names",
        reason="the backslash of functions and letters may be missing",
        apply=_sub(r"(?<![\\a-zA-Z{])(pi|theta|alpha|beta|gamma|lambda|omega)(?![a-zA-Z])", r"\\\1 "),
    ),
    Rule(
        name="roots",
        reason=r"sqrt(3) and \sqrt(3), as programs write \sqrt{3}",
        apply=_sub(r"(?<![a-zA-Z\\])\\?sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    ),
    Rule(
        name="e-notation",
        reason="1e-8 is a number, not a product with e",
        apply=_sub(r"(?<![\w.])([+-]?\d*\.?\d+)[eE]([+-]?\d+)(?![\w.])", r"\1 \\times 10^{\2}"),
    ),
    Rule(name="bare points", reason='"1./3"', apply=_sub(r"(\d)\.(?![\d\\({])", r"\1")),
    Rule(
        name="repeating decimals",
        reason=r"0.1\overline{6} is 1/6",
        apply=_sub(r"(?<![\d.])(\d{0,20})\.(\d{0,20})\\(?:overline|bar|dot)\s*\{?\s*(\d{1,20})\s*\}?", _repeating),
    ),
    Rule(name="comma groups", reason=r"1{,}234", apply=_sub(r"\s*\{\s*,\s*\}\s*", ",")),
    Rule(
        name="space groups",
        reason="1 234 567, in groups of three",
        apply=_sub(r"(?<![\w.,}^])\d{1,3}(?: \d{3})+(?![\d/ ])", lambda match: match[0].replace(" ", "")),
    ),
    Rule(
        name="mixed numbers",
        reason="1 1/2 is 3/2",
        apply=_sub(r"(?<![\w./\\}^])(\d+) (\d+) ?/ ?(\d+)(?![\w/.])", r"\1\\frac{\2}{\3}"),
    ),
    Rule(
        name="numbers apart",
        reason='"1 3" is two numbers, but the library reads 13',
        apply=_sub(
            r"(?:^|(?<=[,;=(\[{]))\s*-?\d+(?:\.\d+)?(?: -?\d+(?:\.\d+)?)+\s*(?=$|[,;)\]}])",
            lambda match: ";".join(match[0].split()),
        ),
    ),
    Rule(
        name="degrees",
        reason="one spelling of the degree",
        apply=_sub(
            r"\s*\\text\s*\{\s*degrees?\s*\}|\s*\^\s*\{\s*\\circ\s*\}|\s*\\degree(?![a-zA-Z])"
            r"|(?<=\d) ?degrees?(?![a-z])",
            r"^\\circ ",
        ),
    ),
    Rule(
        name="temperatures",
        reason="°C and °F are units, which the library drops",
        apply=_sub(r"\^\s*\\circ\s*(?:\\text\s*\{\s*[CF]\s*\}|[CF])$", r"^\\circ "),
    ),
    Rule(name="radians", reason="the library takes sin 30° for sin 30", apply=_radians),
    Rule(
        name="currencies",
        reason="they are units, but the library drops only the dollar",
        apply=_sub(
            r"[€£¥₹¢₽₩]|\\(?:pounds|euro|cents?|yen|textsterling|texteuro|textcent)(?![a-zA-Z])"
            r"|^\\text\s*\{\s*(?:US|USD|EUR|GBP|Rs\.?|INR)\s*\}|^(?:US|USD|EUR|GBP|Rs\.?|INR)(?=[\s\\$\d])",
            "",
        ),
    ),
    Rule(
        name="unit symbols",
        reason="the library doesn't drop ohms and quotients of units",
        apply=_sub(
            rf"(?<=[\d}}])\s*(?:[kM]\s*|\\mu\s*)?\\(?:Omega|ohm)\s*$|\s*\\frac\s*\{{\s*{_UNIT}\s*\}}\s*\{{\s*{_UNIT}\s*\}}$",
            "",
        ),
    ),
    Rule(
        name="ordinals",
        reason=r"13^{th}",
        apply=_sub(r"(?<=\d)\s*\^\s*\{?\s*(?:\\text\s*\{\s*)?(?:st|nd|rd|th)\s*\}*$", ""),
    ),
    Rule(
        name="bases",
        reason="one spelling of digits with a base: 1011_two, (1011)_{2}",
        apply=_sub(
            r"^(?:\\text\s*\{\s*)?\(?([0-9A-Fa-f]+)\)?\s*\}?\s*_\s*"
            r"\{?\s*(?:\\text\s*\{\s*)?\(?(?:base )?\s*\}?(\d+|[a-zA-Z]{3,})\)?[\s}]*$",
            _base,
        ),
    ),
    Rule(
        name="bases in words",
        reason="the library drops the base: 101 (base 2)",
        apply=_sub(
            r"^([0-9A-Fa-f]+)[\s(]*(?:\\text\s*\{[\s(]*)?"
            r"(?i:in )?(?i:base)[ -]?(?:\})?\s*\{?(\d+|[a-zA-Z]{3,})[)\s}]*$",
            _base,
        ),
    ),
    Rule(
        name="and",
        reason=r"\text{A and B} is A, B",
        apply=_sub(
            r"\\text\s*\{\s*([^{}\s]+) (?:and|or) ([^{}\s]+)\s*\}|,?\s*\\text\s*\{\s*,?\s*(?:and|or)\s*\}",
            lambda match: rf"\text{{{match[1]}}}, \text{{{match[2]}}}" if match[1] else ", ",
        ),
    ),
    Rule(
        name="and between quantities",
        reason="2 s or 3 s are two numbers, but the library drops everything after the first unit",
        apply=_sub(r"(?<=[\d})])\s*\\text\s*\{[^{}]*(?<![a-zA-Z])(?:and|or)\s*\}(?=\s*[-+(\\\d])", ", "),
    ),
    Rule(
        name="several units",
        reason="in 2 cm, 3 cm the library drops everything from the first unit to the last",
        apply=_without_units,
    ),
    Rule(
        name="quantifiers",
        reason='"2k\\pi, k an integer" means 2k\\pi',
        apply=_sub(
            r"(?:[,;]|\\text\s*\{\s*,?\s*(?:where|for|with|for all|for any)\s*\})[\s(]*(?:where |for |with )?"
            r"[a-zA-Z]\s*(?:\\in\s*\\mathbb\s*\{?\s*[ZN]\s*\}?(?:\^?_?\{?[+*\d]\}?)?|\\in\s*Z"
            r"|\\text\s*\{\s*(?:is )?(?:an |any )?integer\s*\}|(?:is )?(?:an |any )integer)[)\s]*$",
            "",
        ),
    ),
    Rule(name="vectors", reason=r"\langle 1,2\rangle is (1,2)", apply=_sub(r"^\\langle(.*)\\rangle$", r"(\1)")),
    Rule(name="empty sets", reason="one sign", apply=_sub(r"\\varnothing(?![a-zA-Z])|^\\\{\s*\\\}$", r"\\emptyset ")),
    Rule(name="groups", reason="braces around the whole", apply=_unwrapped),
)
