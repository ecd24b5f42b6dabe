"""JSON that every parser takes: a number that isn't finite, which JSON can't say, is null on the way out and in."""

import json
import math
from collections.abc import Mapping
from typing import Any


def json_text(value: Any, *, indent: int | None = None) -> str:
    """The value as JSON, without a newline at its end; NaN and infinities are null at any depth."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def parse_json(text: str) -> Any:
    """The value of a JSON text; the words NaN and Infinity, which Python writes unless told otherwise, are None.

    Raises:
        ValueError: it isn't JSON.
    """
    return json.loads(text, parse_constant=lambda _: None)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
