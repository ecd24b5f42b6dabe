"""TOML files and `--set a.b=c` overrides to a RunConfig, with errors a person can act on."""

import copy
import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from gvm_ray.config.arena import ArenaConfig
from gvm_ray.config.data import DataConfig
from gvm_ray.config.estimator import EstimatorConfig
from gvm_ray.config.run import RunConfig
from gvm_ray.exceptions import ConfigError

Model = TypeVar("Model", bound=BaseModel)

_SHOWN_CHARACTERS = 200  # of a wrong value, in a message
_UNENCODABLE = re.compile("[\ud800-\udfff]")  # what Python makes of a command line's bytes that aren't UTF-8


def load_config(path: str | Path | Sequence[str | Path], overrides: Iterable[str] = ()) -> RunConfig:
    """The run described by a TOML file, with `a.b=c` overrides applied in order.

    Args:
        path: one file, or several that each say a part; where two set the same, the later one counts.
        overrides: applied to what the files say together.

    Raises:
        ConfigError: a file is missing or isn't TOML, or a setting is unknown, out of range or contradictory.
    """
    paths = [path] if isinstance(path, str | Path) else path
    values = reduce(merged, map(read_toml, paths))
    return parse_config(values, overrides, origin=" + ".join(map(str, paths)))


def load_arena(path: str | Path, overrides: Iterable[str] = ()) -> ArenaConfig:
    """The comparison described by a TOML file, with `a.b=c` overrides applied in order.

    Raises:
        ConfigError: as `load_config`.
    """
    return _validated(ArenaConfig, _overridden(path, overrides), origin=str(path))


def load_estimator(path: str | Path, overrides: Iterable[str] = ()) -> EstimatorConfig:
    """The measurement of estimators described by a TOML file, with `a.b=c` overrides applied in order.

    Raises:
        ConfigError: as `load_config`.
    """
    return _validated(EstimatorConfig, _overridden(path, overrides), origin=str(path))


def read_toml(path: str | Path) -> dict[str, Any]:
    """The plain values of a TOML file.

    Raises:
        ConfigError: it is missing, unreadable or not TOML.
    """
    path = Path(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"config file {str(path)!r} doesn't exist; write the path of a .toml file") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"config file {str(path)!r} is not valid TOML: {error}") from error
    except (OSError, ValueError, RecursionError) as error:  # also of brackets or digits without end
        raise ConfigError(
            f"config file {str(path)!r} can't be read ({error}); write the path of a TOML file in UTF-8"
        ) from error


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with changes laid over them; a table whose `type` changes gives way whole."""
    result = dict(values)
    for key, change in changes.items():
        below = result.get(key)
        if isinstance(change, Mapping) and isinstance(below, Mapping):
            other_variant = "type" in change and change["type"] != below.get("type")
            result[key] = dict(change) if other_variant else merged(below, change)
        else:
            result[key] = change
    return result


def parse_config(values: Mapping[str, Any], overrides: Iterable[str] = (), *, origin: str = "config") -> RunConfig:
    """The run described by nested plain values (what TOML or JSON gives), with `a.b=c` overrides applied in order.

    Raises:
        ConfigError: a setting is unknown, out of range or contradictory.
    """
    return _validated(RunConfig, _changed(copy.deepcopy(dict(values)), overrides), origin=origin)


def parse_data(values: Mapping[str, Any]) -> DataConfig:
    """What a command line asks of `gvm-ray data prepare`.

    Raises:
        ConfigError: as `load_config`.
    """
    return _validated(DataConfig, values, origin="data prepare")


def _overridden(path: str | Path, overrides: Iterable[str]) -> dict[str, Any]:
    return _changed(read_toml(path), overrides)


def _changed(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    for override in overrides:
        _apply_override(values, override)
    return values


def _validated(model: type[Model], values: Mapping[str, Any], *, origin: str) -> Model:
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(_explain(error, origin, model)) from None


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    *parents, last = (name.strip() for name in key.split("."))
    if not separator or not all((*parents, last)):
        raise ConfigError(f"--set {override!r} is not of the form a.b=c; write e.g. --set allocator.alpha=0.01")
    if _UNENCODABLE.search(override):
        raise ConfigError(f"--set {override!r} is not UTF-8; set the terminal to UTF-8, or write the value in the file")
    table = values
    for name in parents:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override!r}: {name!r} is a value, not a table, in the config file")
    if parents and last == "type" and table.get("type") != _parse_value(text):
        table.clear()  # another variant: the fields of the old one don't belong to it
    table[last] = _parse_value(text)


def _parse_value(text: str) -> Any:
    """A TOML value where it parses as one, else the text itself (so that strings need no quotes)."""
    if text.strip() in ("none", "None"):
        return None
    try:
        values = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # also of brackets or digits without end
        return text.strip()
    return values["value"] if len(values) == 1 else text.strip()


def _explain(error: ValidationError, origin: str, model: type[BaseModel]) -> str:
    lines = [f"{origin}: {error.error_count()} problem(s)"]
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"]) or "(whole config)"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = f"unknown setting{_suggest(item['loc'], model)}"
        elif item["type"] == "missing":
            message = "required, but not given"
        elif not message.startswith(where) and item["loc"] and not isinstance(item["input"], dict):
            message = f"{message} (got {_shown(item['input'])})"
        lines.append(f"  {where}: {message}")
    return "\n".join(lines)


def _shown(value: object) -> str:
    """The value as Python writes it, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # TOML has hexadecimal numbers of any length, Python writes at most 4,300 digits
        text = "a number of more than 4,300 digits"
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def _suggest(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """A near name, or the list of names, that the table at `location` knows."""
    known = sorted(_field_names(model))
    near = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"; did you mean {near[0]!r}?" if near and near[0] != location[-1] else ""


def _field_names(model: type[BaseModel]) -> set[str]:
    names: set[str] = set()
    pending: list[Any] = [model]
    seen: set[Any] = set()
    while pending:
        annotation = pending.pop()
        if annotation in seen:
            continue
        seen.add(annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            names |= set(annotation.model_fields)
            pending += [f.annotation for f in annotation.model_fields.values()]
        pending += list(getattr(annotation, "__args__", ()))
    return names
