"""A variant without a case of its own is covered by its defaults, or refused where it has none."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from gvm_ray.settings import Settings
from tests.contract.union_cases import every_variant, variants


class Red(Settings):
    """Has defaults."""

    type: Literal["red"] = "red"
    depth: int = 1


class Blue(Settings):
    """Has nothing to set."""

    type: Literal["blue"] = "blue"


class Green(Settings):
    """Has a setting that must be written."""

    type: Literal["green"] = "green"
    depth: int


Two = Annotated[Red | Blue, Field(discriminator="type")]
Three = Annotated[Red | Blue | Green, Field(discriminator="type")]


def test_defaults_stand_in_for_a_missing_case() -> None:
    assert variants(Two) == (Red, Blue)
    deep = Red(depth=3)
    assert every_variant(Two, {"deep": deep}) == {"deep": deep, "blue": Blue()}
    assert every_variant(Two, {}) == {"red": Red(), "blue": Blue()}


def test_a_variant_that_has_no_defaults_needs_a_case() -> None:
    with pytest.raises(ValueError, match="Green has settings without a default: add a case"):
        every_variant(Three, {})
    assert "mossy" in every_variant(Three, {"mossy": Green(depth=2)})
