r"""Extraction of final answers from \boxed{...} in LaTeX text, shared by rewards and evaluation."""

import re

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
