"""TOML files and `--set a.b=c` overrides to a RunConfig, with errors a person can act on.

Of settings that don't validate a message says which one, its value, and what to write instead.
"""

import codecs
import copy
import re
import shlex
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from gvm_ray.config.data import DataConfig
from gvm_ray.config.explain import explain, shown
from gvm_ray.config.lab import ComparisonConfig, EstimatorConfig, PredictionConfig
from gvm_ray.config.run import RunConfig
from gvm_ray.config.schema import Place, classes_of, place_at, variants_of, with_default_types
from gvm_ray.exceptions import ConfigError, likely_paths
from gvm_ray.settings import Settings

Model = TypeVar("Model", bound=Settings)

_MOST_NAMED = 3  # files in a hint
_UNENCODABLE = re.compile("[\ud800-\udfff]")  # Python's replacement for command-line bytes that aren't UTF-8


def load_config(path: str | Path | Sequence[str | Path], overrides: Iterable[str] = ()) -> RunConfig:
    """The run described by a TOML file, with `a.b=c` overrides applied.

    Args:
        path: one file, or several that each hold a part; if two set the same setting, the later one counts.
        overrides: applied to the merged files; if two name the same setting, the later one counts.

    Raises:
        ConfigError: a file is missing or isn't TOML, or a setting is unknown, out of range or contradictory.
    """
    paths = [path] if isinstance(path, str | Path) else path
    overrides = list(overrides)
    values = reduce(merged, map(read_toml, paths))
    try:
        return parse_config(values, overrides, origin=" + ".join(map(str, paths)))
    except ConfigError as error:
        given = {*values, *(_names(override)[0] for override in overrides)}
        missing = [name for name, field in RunConfig.model_fields.items() if field.is_required() and name not in given]
        raise ConfigError(f"{error}{_other_parts([*map(Path, paths)], missing=missing)}") from None


def _other_parts(paths: Sequence[Path], *, missing: Sequence[str]) -> str:
    """A hint for files that hold a part of a run: the files beside them that have the missing tables; may be empty."""
    beside = {path: _tables(path) for path in sorted(paths[0].parent.glob("*.toml")) if path not in paths}
    having = {name: [path for path, tables in beside.items() if name in tables] for name in missing}
    if not missing or not all(having.values()):
        return ""
    chosen: list[Path] = []
    for name in missing:
        if not any(name in beside[path] for path in chosen):
            chosen.append(max(having[name], key=lambda path: len(beside[path] & {*missing})))
    # The file with most tables is probably the one that the others are laid over.
    together = sorted([*chosen, *paths], key=lambda path: -len(beside[path] if path in beside else _tables(path)))
    found = "; ".join(f"{name} is in {_some(files)}" for name, files in having.items())
    return (
        f"\n  a run may be written in several files, of which this is a part: {found}. Give them together, e.g. "
        f"gvm-ray train {shlex.join(map(str, together))}"
    )


def _some(files: Sequence[Path]) -> str:
    names = [file.name for file in files]
    return ", ".join(names[:_MOST_NAMED]) + (" and others" if names[_MOST_NAMED:] else "")


def _tables(path: Path) -> set[str]:
    """The tables and settings at the top of a run's file, or of a part of one; empty if it isn't one."""
    try:
        names = read_toml(path).keys()
    except ConfigError:
        return set()
    return set(names) if names <= RunConfig.model_fields.keys() else set()


def load_comparison(path: str | Path, overrides: Iterable[str] = ()) -> ComparisonConfig:
    """The comparison described by a TOML file, with `a.b=c` overrides applied.

    Raises:
        ConfigError: as `load_config`.
    """
    return validated(ComparisonConfig, _changed(ComparisonConfig, read_toml(path), overrides), origin=str(path))


def load_estimator(path: str | Path, overrides: Iterable[str] = ()) -> EstimatorConfig:
    """The measurement of estimators described by a TOML file, with `a.b=c` overrides applied.

    Raises:
        ConfigError: as `load_config`.
    """
    return validated(EstimatorConfig, _changed(EstimatorConfig, read_toml(path), overrides), origin=str(path))


def load_prediction(path: str | Path, overrides: Iterable[str] = ()) -> PredictionConfig:
    """The measurement of predictions described by a TOML file, with `a.b=c` overrides applied.

    Raises:
        ConfigError: as `load_config`.
    """
    return validated(PredictionConfig, _changed(PredictionConfig, read_toml(path), overrides), origin=str(path))


def read_toml(path: str | Path) -> dict[str, Any]:
    """The plain values of a TOML file.

    Raises:
        ConfigError: it is missing, unreadable or not TOML.
    """
    path = Path(path)
    text = ""
    try:
        content = path.read_bytes()
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ValueError("it is in UTF-16")  # reported below, like other encodings
        text = content.decode("utf-8-sig")  # editors on Windows write a byte order mark
        return tomllib.loads(text)
    except FileNotFoundError:
        near = f"; write a setting as --set {path}" if "=" in str(path) else likely_paths(path)
        raise ConfigError(f"config file {str(path)!r} doesn't exist; write the path of a .toml file{near}") from None
    except IsADirectoryError:
        raise ConfigError(f"config file {str(path)!r} is a folder; write the path of a .toml file in it") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"config file {str(path)!r} is not valid TOML: {error}{_line_of(error, text)}") from error
    except (OSError, ValueError, RecursionError) as error:  # includes endless brackets or digits
        raise ConfigError(
            f"config file {str(path)!r} can't be read ({error}); write the path of a TOML file in UTF-8"
        ) from error


def _line_of(error: tomllib.TOMLDecodeError, text: str) -> str:
    """The line that the error is about, with a hint at the most frequent mistake."""
    number = re.search(r"at line (\d+)", str(error))
    if number is None:
        return ""
    line = text.splitlines()[int(number[1]) - 1].strip()
    hint = ""
    if "Invalid value" in str(error):
        hint = '; text needs quotes, e.g. name = "run"'
    elif "overwrite" in str(error) or "twice" in str(error):
        hint = "; a table or setting may appear only once in a file"
    return f", in {shown(line)}{hint}"


def merged(values: Mapping[str, Any], changes: Mapping[str, Any], *, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """A run's nested values with changes merged in. A table whose `type` changes is replaced as a whole.

    Args:
        values: those of the run, or of one of its tables.
        changes: nested like `values`.
        above: the names of that table, from the top.
    """
    result = dict(values)
    for key, change in changes.items():
        below, names = result.get(key), (*above, key)
        if isinstance(change, Mapping) and isinstance(below, Mapping):
            result[key] = (
                dict(change) if _is_other_variant(names, below, change) else merged(below, change, above=names)
            )
        else:
            result[key] = change
    return result


def _is_other_variant(names: tuple[str, ...], below: Mapping[str, Any], change: Mapping[str, Any]) -> bool:
    """True if the change gives the table another class. If one class serves all types, `type` is a plain setting."""
    changes_type = "type" in change and change["type"] != below.get("type")
    return changes_type and len(classes_of(place_at(RunConfig, names).annotations)) != 1


def parse_config(values: Mapping[str, Any], overrides: Iterable[str] = (), *, origin: str = "config") -> RunConfig:
    """The run described by nested plain values (what TOML or JSON gives), with `a.b=c` overrides applied.

    Raises:
        ConfigError: a setting is unknown, out of range or contradictory.
    """
    return validated(RunConfig, _changed(RunConfig, values, overrides), origin=origin)


def parse_data(values: Mapping[str, Any]) -> DataConfig:
    """The settings that a command line gives to `gvm-ray data prepare`.

    Raises:
        ConfigError: as `load_config`.
    """
    return validated(DataConfig, values, origin="data prepare")


def _changed(model: type[Settings], values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of the values with the overrides applied.

    Tables come before their settings, and a table's type before its other settings, because a change of type clears
    those. So the order of overrides counts only if two set the same setting.
    """
    changed = copy.deepcopy(with_default_types(model, values))
    split = [(_names(override), override) for override in overrides]
    for names, override in sorted(split, key=lambda each: (len(each[0]), each[0][-1] != "type")):
        _apply_override(model, changed, names, override)
    return changed


def _names(override: str) -> list[str]:
    """The tables and the setting that an override names."""
    key, separator, _ = override.partition("=")
    names = [name.strip() for name in key.split(".")]
    if not separator or not all(names):
        raise ConfigError(f"--set {override!r} is not of the form a.b=c; write e.g. --set allocator.alpha=0.01")
    if _UNENCODABLE.search(override):
        raise ConfigError(f"--set {override!r} is not UTF-8; set the terminal to UTF-8, or write the value in the file")
    return names


def validated(model: type[Model], values: Mapping[str, Any], *, origin: str) -> Model:
    """Settings of a kind from plain values.

    Raises:
        ConfigError: a setting is unknown, missing or wrong; it names `origin`.
    """
    try:
        return model.model_validate(with_default_types(model, values))
    except ValidationError as error:
        if (command := _other_command(error, model)) is not None:
            raise ConfigError(
                f"{origin} has settings of `gvm-ray {command}`, not of `gvm-ray {_COMMANDS[model]}`; give it to that "
                "command"
            ) from None
        raise ConfigError(explain(error, origin, model)) from None


_COMMANDS: dict[type[Settings], str] = {
    RunConfig: "train",
    ComparisonConfig: "compare",
    EstimatorConfig: "estimator",
    PredictionConfig: "predictor",
}


def _other_command(error: ValidationError, model: type[Settings]) -> str | None:
    """The command that knows all of several unknown settings at the top of a file for another command."""
    unknown = {item["loc"][0] for item in error.errors() if item["type"] == "extra_forbidden" and len(item["loc"]) == 1}
    known_by = [kind for kind in _COMMANDS if unknown <= kind.model_fields.keys()]
    return _COMMANDS[known_by[0]] if model in _COMMANDS and len(unknown) > 1 and known_by else None


def _apply_override(model: type[Settings], values: dict[str, Any], names: Sequence[str], override: str) -> None:
    *parents, last = names
    table = values
    for name in parents:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise ConfigError(
                f"--set {override!r}: {name!r} is a value, not a table, in the config file"
                + ("; write the whole list, in brackets" if isinstance(table, list) else "")
            )
    value = _parse_value(override.partition("=")[2], place_at(model, names))
    if last == "type" and table.get("type", value) != value and variants_of(place_at(model, parents).annotations):
        table.clear()  # another variant: the fields of the old one don't belong to it
    table[last] = value


def _parse_value(text: str, place: Place) -> Any:
    """The value of an override: the text without surrounding quotes if the setting takes text, else a TOML value.

    Text that isn't a TOML value stays text.
    """
    text = text.strip()
    value = _toml_value(text)
    if value is None:
        return None if place.takes_none else text  # "none" may be one of the setting's texts
    if place.takes_text and not isinstance(value, str | list if place.takes_list else str):
        return text
    return value


def _toml_value(text: str) -> Any:
    """The text as a TOML value; None for "none", which TOML lacks; the text itself if it isn't a value."""
    if text in ("none", "None"):
        return None
    try:
        values, alone = tomllib.loads(f"value = {text}"), tomllib.loads(f"value = [{text}]")
    except (ValueError, RecursionError):  # includes endless brackets or digits, and a comment in the list
        return text
    return values["value"] if len(values) == len(alone) == 1 else text
