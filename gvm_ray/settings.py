"""The base of every settings class, and objects that settings name by path. Free of heavy imports."""

import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError


class Settings(BaseModel):
    """Frozen settings that refuse unknown keys, infinities, NaN, and booleans as numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _no_boolean_as_number(cls, values: Any) -> Any:
        """Refuse booleans as numbers: Python itself would take true as 1."""
        if not isinstance(values, Mapping):
            return values
        wrong = [name for name in cls.model_fields if _has_boolean(values.get(name)) and cls._takes_numbers(name)]
        if wrong:
            raise ValidationError.from_exception_data(
                cls.__name__, [cls._boolean_error(values, name) for name in wrong]
            )
        return values

    @classmethod
    def _takes_numbers(cls, name: str) -> bool:
        kinds = {*_kinds(cls.model_fields[name].annotation)}
        return bool(kinds & {int, float}) and not kinds & {bool, Any}

    @classmethod
    def _boolean_error(cls, values: Mapping[str, Any], name: str) -> InitErrorDetails:
        default = cls.model_fields[name].default
        example = list(default) if isinstance(default, tuple) else default
        example = example if isinstance(example, int | float | list) else 1
        error = PydanticCustomError(
            "boolean_as_number",
            "takes numbers, not true or false; write e.g. {name} = {example}",
            {"name": name, "example": example},
        )
        return {"type": error, "loc": (name,), "input": values[name]}


def _has_boolean(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_boolean, value.values()))
    return any(map(_has_boolean, value)) if isinstance(value, list | tuple) else isinstance(value, bool)


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types in an annotation."""
    if get_origin(annotation) is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif get_origin(annotation) is Literal:
        yield from map(type, get_args(annotation))
    elif arguments := get_args(annotation):
        for argument in arguments:
            yield from _kinds(argument)
    else:
        yield annotation


Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
# Up to 2^63 - 1: larger integers don't fit into arrays, and huge ones not even into floats.
Count = Annotated[int, Field(ge=1, le=2**63 - 1)]
NonNegativeCount = Annotated[int, Field(ge=0, le=2**63 - 1)]


def create_from_path(path: str, *arguments: Any, parameters: Mapping[str, Any], protocol: type) -> Any:
    """`module:Class` called with the arguments and parameters, checked for the methods of a runtime protocol.

    Raises:
        ImportError: it can't be imported, called like that, or lacks a method.
    """
    try:
        made = import_object(path)(*arguments, **parameters)
    except TypeError as error:
        raise ImportError(f"{path!r} can't be called with {sorted(parameters)}: {error}") from error
    if not isinstance(made, protocol):
        raise ImportError(f"{path!r} doesn't offer all methods of {protocol.__module__}.{protocol.__qualname__}")
    return made


def import_object(path: str) -> Any:
    """The object at `module:name` (or `module:Class.attribute`).

    A module in the working folder is found even where a console script left that folder out of the import path.

    Raises:
        ImportError: the module or the name in it doesn't exist, or importing the module raised.
    """
    module_name, _, name = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # the user's module may raise anything while it is imported
        raise ImportError(
            f"{path!r} can't be imported: {type(error).__name__}: {error}; "
            "write 'module:name' of a module that Python finds from the folder the run is started in"
        ) from error
    return found
