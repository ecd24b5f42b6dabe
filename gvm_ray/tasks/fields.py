"""Fields of rows by name, in Python's values and in Arrow tables.

`reward_model.ground_truth` is what stands in the field `reward_model`.

A dot leads into an object, a struct, a text that holds a JSON object, or, with an index from 0, into a list:
`prompt.0.content`. A field whose own name contains the dot comes first.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

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


if TYPE_CHECKING:
    import pyarrow

_Reader = Callable[[Any], Any]


def row_reader(schema: "pyarrow.Schema") -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A function that converts a row with Arrow's Python values.

    It shortens floats (`python_float`) and replaces class labels by their names. A value that isn't of the column's
    type stays as it is.
    """
    labels = _features(schema)
    readers = {field.name: _reader(field.type, labels.get(field.name)) for field in schema}
    return _in_struct({name: reader for name, reader in readers.items() if reader is not None}) or dict


def python_float(value: "np.floating[Any]") -> float:
    """The Python float with the shortest decimal form that is the same number in the value's precision.

    Whole numbers stay exact (the shortest form of 65504 in 16 bits would be 65500), except from 1e16 on, where Python
    writes exponents.
    """
    exact = float(value)
    return exact if exact.is_integer() and abs(exact) < 1e16 else float(str(value))


def needed_columns(schema: "pyarrow.Schema", *, where: str, fields: Mapping[str, str]) -> list[str]:
    """The columns of an Arrow table that contain the fields (name -> setting that names it).

    Raises:
        DataError: a field is missing. Fields inside text or lists are known only when a row is read.
    """
    known = _blank(schema)
    for name, setting in fields.items():
        try:
            field_value(known, name)
        except KeyError:
            raise DataError(missing_field(name, setting=setting, where=where, known=known)) from None
    return list(dict.fromkeys(column for name in fields for column in columns_of(name, known)))


def _blank(fields: Iterable["pyarrow.Field"]) -> dict[str, Any]:
    """A row of nulls, with all fields of all structs."""
    from pyarrow import types

    return {field.name: _blank(field.type.fields) if types.is_struct(field.type) else None for field in fields}


def _features(schema: "pyarrow.Schema") -> dict[str, Any]:
    """The columns' features, as described by the `datasets` library; none in other tables."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):  # another program's table
        return {}
    return features if isinstance(features, dict) else {}


def _reader(kind: "pyarrow.DataType", feature: Any) -> _Reader | None:
    """A function that converts one value of this type; None if values need no conversion."""
    from pyarrow import types

    feature = feature if isinstance(feature, dict) else {}
    if types.is_float16(kind) or types.is_float32(kind):
        return _float_of(np.float16 if types.is_float16(kind) else np.float32)
    if types.is_integer(kind) and feature.get("_type") == "ClassLabel":
        return _label_of(feature.get("names") or [])
    if types.is_struct(kind):
        readers = {field.name: _reader(field.type, feature.get(field.name)) for field in kind.fields}
        return _in_struct({name: reader for name, reader in readers.items() if reader is not None})
    if types.is_map(kind):
        item = _reader(kind.item_type, None)
        return item and (lambda value: {key: item(each) for key, each in value.items()} if value else value)
    if hasattr(kind, "value_type"):  # lists of any kind, and encoded values (dictionary, run length)
        item = _reader(kind.value_type, feature.get("feature"))
        return item and (
            lambda value: [item(each) for each in value] if isinstance(value, list | np.ndarray) else item(value)
        )
    return None


def _in_struct(readers: Mapping[str, _Reader]) -> _Reader | None:
    if not readers:
        return None

    def read(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {**value, **{name: reader(value[name]) for name, reader in readers.items() if name in value}}

    return read


def _float_of(precision: type[np.floating[Any]]) -> _Reader:
    return lambda value: python_float(precision(value)) if isinstance(value, float | np.floating) else value


def _label_of(names: list[str]) -> _Reader:
    def name(value: Any) -> Any:
        if not isinstance(value, int | np.integer):
            return value
        return names[value] if 0 <= value < len(names) else None  # -1 means no label

    return name
