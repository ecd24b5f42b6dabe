"""The base of every settings class: frozen, closed, and free of heavy imports."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Frozen settings that refuse unknown keys; infinities and NaN are refused too."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
# Up to 2^63 - 1: larger integers fit no array, and no float either.
Count = Annotated[int, Field(ge=1, le=2**63 - 1)]
NonNegativeCount = Annotated[int, Field(ge=0, le=2**63 - 1)]
