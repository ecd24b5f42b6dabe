r"""Final answers in LaTeX text: what stands inside \boxed{...}. Pure text, shared by rewards and evaluation."""

import re

_TOKEN = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_SEPARATOR = re.compile(r"[\s$.]*+(?:,\s*+(?:and|or)?|and|or)[\s$]*+", re.IGNORECASE)  # linear in the text


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
    r"""Like `last_boxed`, but boxes that only commas, "and" or "or" part are one answer, joined by ", ".

    So "\boxed{1} and \boxed{2}" gives "1, 2".
    """
    spans = _boxed_spans(text)
    if not spans:
        return None
    group = [spans[-1]]
    for span in reversed(spans[:-1]):
        if not _SEPARATOR.fullmatch(text, span[2], group[-1][0]):
            break
        group.append(span)
    return ", ".join(text[start : end - 1].strip() for _, start, end in reversed(group))
