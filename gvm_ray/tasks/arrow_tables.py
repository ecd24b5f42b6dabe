"""Columns of Arrow tables: the needed ones, and their values where plain Python values lose information.

A float of 32 or 16 bits becomes a Python float with digits that nobody wrote: 1234.56 becomes 1234.56005859375. A class
label of the `datasets` library becomes its number; the names are in the schema, also that of a Parquet file.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from gvm_ray.exceptions import DataError
from gvm_ray.tasks.fields import columns_of, field_value, missing_field

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
