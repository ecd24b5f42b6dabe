r"""Extraction of a response's final answer as text: boxed, in <answer> tags, or stated in the last lines.

Used by rewards, which judge answers, and by majority votes, which count them. Takes time linear in the text, because
responses may be hostile.
"""

import re
from dataclasses import dataclass

from gvm_ray.maths.boxed import final_boxed

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
