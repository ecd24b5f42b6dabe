"""The classes of a closed union of settings, so that a contract covers each of them, also one that is new."""

from collections.abc import Mapping
from typing import Any, get_args

from gvm_ray.settings import Settings


def variants(union: Any) -> tuple[type[Settings], ...]:
    """The classes that pydantic tells apart by their `type`."""
    return get_args(get_args(union)[0])


def every_variant(union: Any, own: Mapping[str, Settings]) -> dict[str, Any]:
    """Settings by name: one's own cases, and the defaults of every class that has none among them.

    Raises:
        ValidationError: a class without a case has settings that must be written: give it one.
    """
    covered = {type(settings) for settings in own.values()}
    defaults = [variant() for variant in variants(union) if variant not in covered]
    return {**own, **{settings.model_dump()["type"]: settings for settings in defaults}}
