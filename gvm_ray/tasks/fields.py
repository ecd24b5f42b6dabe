"""Fields of a row by name, nested ones with dots: `reward_model.ground_truth`.

A dot leads into an object, a struct, a text that holds a JSON object, or, with an index from 0, into a list:
`prompt.0.content`. A field whose own name contains the dot comes first.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from gvm_ray.exceptions import DataError

_MAX_NAMES = 40  # field names in a message


def field_value(row: Mapping[str, Any], name: str) -> Any:
    """The field's value; None if a dot leads into null.

    Raises:
        KeyError: the row has no such field.
    """
    if name in row:
        return row[name]
    for head, tail in _ways_in(name):
        if head in row:
            try:
                return _inner_value(row[head], tail)
            except KeyError:
                continue
    raise KeyError(name)


def columns_of(name: str, known: Iterable[str]) -> list[str]:
    """The columns of a table that may contain a field; none if the table doesn't have the field."""
    known = frozenset(known)
    return [column for column in (name, *(head for head, _ in _ways_in(name))) if column in known]


def field_names(row: Mapping[str, Any]) -> str:
    """The names of a row's fields, nested ones included, in alphabetical order; for a message."""
    names = sorted({*_names(row)})  # a set, because a row may have both a field `a.b` and a field `b` in `a`
    shown = ", ".join(names[:_MAX_NAMES]) + (", ..." if len(names) > _MAX_NAMES else "")
    return shown or "(none)"


def missing_field(name: str, *, setting: str, where: str, known: Mapping[str, Any]) -> str:
    """The message for a row without the field."""
    return f"{where}: no field {name!r}; set {setting} to one of its fields: {field_names(known)}"


def check_unique(columns: Iterable[str], *, where: str, fields: Mapping[str, str] | None) -> None:
    """Refuse a table with two columns of one name. If `fields` is given, only their columns count.

    Raises:
        DataError: a name occurs twice; the message has the name.
    """
    counts = Counter(columns)
    used = None if fields is None else {column for name in fields for column in columns_of(name, counts)}
    if twice := [name for name, num in counts.items() if name and num > 1 and (used is None or name in used)]:
        raise DataError(
            f"{where}: there are several fields named {', '.join(map(repr, twice))}, so it is unclear which one is "
            "meant; rename or remove all but one"
        )


def _ways_in(name: str) -> Iterator[tuple[str, str]]:
    """(name before the dot, name after it) for every dot, from the last to the first."""
    head, dot, tail = name.rpartition(".")
    while dot:
        yield head, tail
        head, dot, last = head.rpartition(".")
        tail = f"{last}.{tail}"


def _inner_value(value: Any, name: str) -> Any:
    value = _opened(value)
    if value is None:
        return None
    if isinstance(value, Mapping):
        return field_value(value, name)
    if isinstance(value, list | tuple | np.ndarray):
        first, dot, rest = name.partition(".")
        if first.isdecimal() and int(first) < len(value):
            return _inner_value(value[int(first)], rest) if dot else value[int(first)]
    raise KeyError(name)


def _opened(value: Any) -> Any:
    """The parsed object if the value is text that holds a JSON object, else the value itself."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _names(row: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in row.items():
        inner = _opened(value)
        if isinstance(inner, Mapping) and inner:
            yield from _names(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
