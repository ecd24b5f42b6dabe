r"""Extraction of a response's final answer as text: boxed, in <answer> tags, or stated in the last lines.

Used by rewards, which judge answers, and by majority votes, which count them. Takes time linear in the text, because
responses may be hostile.
"""

import re
from dataclasses import dataclass

_TOKEN = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
# Text that may stand between the boxes of one answer: list labels, punctuation, layout, arrows and these words, but no
# other words or digits, and no operators. Matches in linear time.
_SEPARATOR = re.compile(
    r"(?:(?:(?<![a-z])(?:answer|option|choice|part|case|solution)\s?)?"
    r"(?<![a-z\d\\])\(?(?:\d{1,2}|[a-z]|[ivx]{2,4})\**(?:[.:](?!\d)|\))"
    r"|&nbsp;|<[bh]r ?/?>|[\s$.,;:!?&~*|/()\[\]{}`'\"“”‘’_#•，、；。！？–—→⇒⟶⟹∪∨>-]"  # noqa: RUF001
    r"|\\[\\,;:!()\[\] |]|\\[hv]space\{[^{}]*+\}"
    r"|\\(?:q?quad|(?:thin|med|thick|en)space|hfill|newline|linebreak|par|item|hline|hrule|bullet)(?![a-z])"
    r"|\\(?:text(?:bf|it|rm|sf|normal)?|math(?:rm|bf|it|sf)|emph|[mh]box|left|right|lor|land|vee|wedge)(?![a-z])"
    r"|\\(?:to|mapsto|implies|iff|(?:long)?(?:left)?rightarrow|cup|mid|vert|parallel)(?![a-z])"
    r"|(?<![a-z])(?:and|n?or|as|well|also|else|either|both|alternatively|maybe|perhaps|possibly|vs|versus)(?![a-z]))*+",
    re.IGNORECASE,
)

_BLANK = re.compile(  # prints nothing, or the dots or question mark of a blank to fill in
    r"(?:[\s~{}$.?…_\u200b-\u200d\u2060\ufeff]|\\[\\,;:!>() _]|\\(?:[hv]space\*?|[hv]?phantom)\{[^{}]*+\}"
    r"|\\(?:q?quad|(?:thin|med|thick|en)space|text(?:bf|it|rm|sf)?|math(?:rm|bf|it|sf)|[mhf]box|boxed|[lc]?dots)"
    r"(?![a-zA-Z]))*+"
)


def _boxed_spans(text: str) -> list[tuple[int, int, int]]:
    r"""Find (start, content start, end) of every complete \boxed{...}, in order of start, in one pass over the text."""
    spans: list[tuple[int, int, int]] = []
    open_braces: list[tuple[int, int] | None] = []
    for token in _TOKEN.finditer(text):
        word = token.group()
        if len(word) > 2:
            open_braces.append((token.start(), token.end()))
        elif word == "{":
            open_braces.append(None)
        elif word == "}" and open_braces:
            opener = open_braces.pop()
            if opener is not None:
                spans.append((*opener, token.end()))
    return sorted(spans)


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last complete \boxed{...} of `text`, stripped; None if there is none.

    Braces are matched (escaped braces don't count). A box cut off by the end of the text is ignored.
    """
    spans = _boxed_spans(text)
    if not spans:
        return None
    _, start, end = spans[-1]
    return text[start : end - 1].strip()


def final_boxed(text: str) -> str | None:
    r"""Return the answer in the last boxes of `text`, stripped; None if all boxes are blank.

    Boxes form one answer if nothing lies between them but punctuation, layout, list labels, "and" or "or". Their
    distinct contents are joined by ", ": "\boxed{1} and \boxed{2}" gives "1, 2". Blank boxes, also with dots or a
    question mark, are skipped. A box inside another box is part of the outer one.
    """
    group: list[tuple[int, int, int]] = []
    following = 0  # start of the box that follows
    for span in reversed(_outer(_boxed_spans(text))):
        box, start, end = span
        if group and not _SEPARATOR.fullmatch(text, end, following):
            break
        following = box
        if not _BLANK.fullmatch(text, start, end - 1):
            group.append(span)
    contents = dict.fromkeys(text[start : end - 1].strip() for _, start, end in reversed(group))
    return ", ".join(contents) if contents else None


def _outer(spans: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """The outermost spans."""
    outer: list[tuple[int, int, int]] = []
    for span in spans:
        if not outer or span[0] >= outer[-1][2]:
            outer.append(span)
    return outer


# An unboxed answer is searched only at the end.
_END_CHARACTERS = 2000
_THINKING = re.compile(
    r"<\s?(/?)\s?(?:think(?:ing)?|thoughts?|reasoning)(?:\s[^<>]{0,100})?>|<\|(?:begin|(end))_of_thought\|>"
    r"|\[(/?)THINK\]|◁(/?)think▷",
    re.IGNORECASE,
)
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)
# \box{5}, \boxed(5), \boxed[5], and \boxed{5} whose \b a string literal turned into a backspace.
_MISSPELT_BOX = re.compile(r"(?:\\box|\x08oxed)\s*\{|\\boxed\s*([(\[])([^()\[\]{}\n]{1,80})[)\]]")
_EMPHASIS = re.compile(r"(?<![\w*\\^])(\*{1,3}|__|`)(?=[^\s*_`])([^*`\n]*?[^\s*`])\1(?![\w*])")
_STATED = re.compile(r"answer[ \t]*[*_]*[ \t]*(?:is|are|:|=)[ \t]*:?[ \t]*[*_]*", re.IGNORECASE)
_DENIED = re.compile(r",?\s*(?<![a-z])not\s+(?:equal to\s+)?[^\s,;]+", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?:\s|$)|[!?](?=\s+[A-Z])|,?\s(?:because|since|so|but|which|where|as)\s|\n")
_WORD = re.compile(r"(?<![a-zA-Z\\])[a-zA-Z]{2,}(?![a-zA-Z])")
_MATHS = re.compile(r"(?<![\\\d])\$([^$\n]+)\$|\\\(([^\n]*?)\\\)|\\\[(.*?)\\\]|\$\$([^$]+)\$\$", re.DOTALL)
_NUMBER = re.compile(
    r"(?<![\w.,^_\\{-])(?:\\?[$€£¥])?(-?(?:\\[dt]?frac\{-?\d+\}\{-?\d+\}"
    r"|(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s?/\s?\d+(?:\.\d+)?)?|\.\d+))(\s?\\?%)?(?![\d^])"
)
_MAX_STATED_WORDS = 2


@dataclass(frozen=True, kw_only=True)
class FinalAnswer:
    """The answer that a response gives."""

    text: str
    boxed: bool


def final_answer(response: str) -> FinalAnswer | None:
    r"""Extract the answer of a response; None if it gives none.

    The answer is the first of these that is found: the last \boxed{} that isn't empty (boxes with only "and" or
    punctuation between them are one answer), the last <answer> tags, the text after "the answer is", the last formula
    or number in the last 2,000 characters. Text in <think> or similar tags, closed or not, is ignored, and so are
    numbers that the response denies ("not 5").
    """
    spoken = without_thinking(response)
    boxed = final_boxed(_MISSPELT_BOX.sub(lambda box: rf"\boxed{{{box[2]}}}" if box[1] else r"\boxed{", spoken))
    if boxed is not None:
        return FinalAnswer(text=boxed, boxed=True)
    text = _said(spoken[-_END_CHARACTERS:])
    return FinalAnswer(text=text, boxed=False) if text else None


def without_thinking(text: str) -> str:
    """Return the text outside <think> and similar tags. Text before a closing tag without an opening tag is removed."""
    kept: list[str] = []
    position, is_open = 0, False
    for tag in _THINKING.finditer(text):
        if not any(tag.groups()):
            if not is_open:
                kept.append(text[position : tag.start()])
            is_open = True
        elif is_open:
            is_open = False
        else:
            kept = []
        position = tag.end()
    return "".join(kept) if is_open else "".join(kept) + text[position:]


def _said(text: str) -> str:
    if tagged := _TAGGED.findall(text):
        return tagged[-1].strip()
    for _ in range(2):  # **_5_**
        text = _EMPHASIS.sub(r"\2", text)
    if stated := list(_STATED.finditer(text)):
        answer = _stated(text[stated[-1].end() :])
        if answer:
            return answer
    text = _DENIED.sub("", text)
    found = [(match.end(), _content(match)) for match in (*_MATHS.finditer(text), *_NUMBER.finditer(text))]
    return max(found, default=(0, ""))[1]


def _stated(rest: str) -> str:
    """Return the text after "the answer is", up to the end of its sentence; "" if that is prose."""
    if (maths := _MATHS.match(rest)) and not re.match(r"\s*(?:,|and|or)\s*[$\\\d]", rest[maths.end() :]):
        return _content(maths)
    rest = _DENIED.sub("", rest.lstrip()) if rest.strip() else ""
    answer = _SENTENCE_END.split(rest, maxsplit=1)[0].strip().rstrip(".")
    return answer if len(_WORD.findall(re.sub(r"\\text\{[^{}]*\}", "", answer))) <= _MAX_STATED_WORDS else ""


def _content(match: re.Match[str]) -> str:
    return "".join(group for group in match.groups() if group).strip()
