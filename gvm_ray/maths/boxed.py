r"""Final answers in LaTeX text: what stands inside \boxed{...}. Pure text, shared by rewards and evaluation."""

import re

_TOKEN = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
# What may stand between boxes of one answer: the labels of a list, punctuation, layout, arrows and these words, but no
# other word or digit and no sign of operation. Linear in the text.
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

_BLANK = re.compile(  # prints nothing, or the dots or the question mark of a form
    r"(?:[\s~{}$.?…_\u200b-\u200d\u2060\ufeff]|\\[\\,;:!>() _]|\\(?:[hv]space\*?|[hv]?phantom)\{[^{}]*+\}"
    r"|\\(?:q?quad|(?:thin|med|thick|en)space|text(?:bf|it|rm|sf)?|math(?:rm|bf|it|sf)|[mhf]box|boxed|[lc]?dots)"
    r"(?![a-zA-Z]))*+"
)


def _boxed_spans(text: str) -> list[tuple[int, int, int]]:
    r"""(start, content start, end) of every complete \boxed{...}, in order of start; one pass over the text."""
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
    r"""The content of the last complete \boxed{...} of `text`, stripped; None where there is none.

    Braces are matched (escaped ones don't count); a box that the end of the text cuts off is passed over.
    """
    spans = _boxed_spans(text)
    if not spans:
        return None
    _, start, end = spans[-1]
    return text[start : end - 1].strip()


def final_boxed(text: str) -> str | None:
    r"""The answer in the last boxes of `text`, stripped; None where no box holds anything.

    Boxes that only punctuation, layout, the labels of a list, "and" or "or" part, or nothing, are one answer, joined by
    ", " and each named once: "\boxed{1} and \boxed{2}" gives "1, 2". Blank boxes are passed over, as are those that
    hold dots or a question mark, and a box inside another is part of it.
    """
    group: list[tuple[int, int, int]] = []
    following = 0  # where the box behind starts
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
    """The spans that lie in no other."""
    outer: list[tuple[int, int, int]] = []
    for span in spans:
        if not outer or span[0] >= outer[-1][2]:
            outer.append(span)
    return outer
