"""The classes of a closed union of settings, so that a contract covers each of them, also one that is new."""

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import ValidationError

from gvm_ray.settings import Settings


def variants(union: Any) -> tuple[type[Settings], ...]:
    """The classes that pydantic tells apart by their `type`."""
    return get_args(get_args(union)[0])


def every_variant(union: Any, own: Mapping[str, Settings]) -> dict[str, Any]:
    """Settings by name: one's own cases, and the defaults of every class that has none among them.

    Raises:
        ValueError: a class without a case has settings that must be written.
    """
    covered = {type(settings) for settings in own.values()}
    missing = [variant for variant in variants(union) if variant not in covered]
    return {**own, **{variant.model_fields["type"].default: _defaults(variant) for variant in missing}}


def _defaults(variant: type[Settings]) -> Settings:
    try:
        return variant()
    except ValidationError as error:
        raise ValueError(f"{variant.__name__} has settings without a default: add a case of its own here") from error
