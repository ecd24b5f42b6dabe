"""TOML files and `--set a.b=c` overrides to a RunConfig, with errors a person can act on.

Of settings that don't validate a message says which one, its value, and what to write instead.
"""

import codecs
import copy
import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from gvm_ray.config.data import DataConfig
from gvm_ray.config.lab import ComparisonConfig, EstimatorConfig, PredictionConfig
from gvm_ray.config.run import RunConfig
from gvm_ray.config.schema import Place, classes_of, place_at, settings_of, variants_of, with_default_types
from gvm_ray.exceptions import ConfigError, likely_paths
from gvm_ray.settings import Settings

Model = TypeVar("Model", bound=Settings)

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
    values = reduce(merged, map(read_toml, paths))
    return parse_config(values, overrides, origin=" + ".join(map(str, paths)))


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


_SHOWN_CHARACTERS = 200  # of a wrong value, in a message
_NEAR, _VERY_NEAR = 0.6, 0.85  # least likeness for a suggestion from the same table, and from another table
_MOST_SUGGESTED = 3
_ALIASES = {  # names in other frameworks -> the last parts of the names here
    "r": ("lora", "rank"),
    "lora_r": ("lora", "rank"),
    "lora_rank": ("lora", "rank"),
    "lora_alpha": ("lora", "alpha"),
    "lr": ("learning_rate",),
    "n": ("samples_per_prompt",),
    "num_generations": ("samples_per_prompt",),
    "batch_size": ("prompts_per_step",),
    "max_new_tokens": ("sampling", "max_tokens"),
}
PATTERNS = {  # of text settings
    r"^[A-Za-z0-9][A-Za-z0-9._+-]*$": "letters, digits and . _ + -, with a letter or digit first: it names a folder",
    r"^[\w.]+:[\w.]+$": "'module:name', e.g. 'my_package.scoring:score'",
    r"^[^\x00]*$": "text without a null character",
}


def explain(error: ValidationError, origin: str, model: type[Settings]) -> str:
    """A message with one line per problem.

    Args:
        error: raised by the model.
        origin: the source of the settings, e.g. a file name.
        model: the settings class.
    """
    lines = [f"{origin}: {error.error_count()} problem(s)"]
    for item in error.errors(include_url=False):
        place = place_at(model, item["loc"])
        where, message = place.dotted, _message(item, place, model)
        if item["type"].startswith("union_tag"):
            where = f"{where}.type"
        lines.append(f"  {where or '(whole config)'}: {message}")
    return "\n".join(lines)


def shown(value: object) -> str:
    """The value as Python writes it, shortened if it is long."""
    try:
        text = repr(value)
    except ValueError:  # TOML allows hexadecimal numbers of any length, but Python writes at most 4,300 digits
        text = "a number of more than 4,300 digits"
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def _message(item: Mapping[str, Any], place: Place, model: type[Settings]) -> str:
    value, context, variants = item["input"], item.get("ctx", {}), variants_of(place.annotations)
    match item["type"]:
        case "extra_forbidden":
            return f"unknown setting{_suggestion(place, model)}"
        case "missing" | "union_tag_not_found":
            return "required, but not given" + (f"; {_one_of(variants, place)}" if variants else "")
        case "union_tag_invalid":
            return f"unknown type (got {shown(value['type'])}); {_one_of(variants, place)}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"takes a table, not {shown(value)}; {_as_table(value, variants, place)}"
        case "tuple_type":
            tables = variants_of(place_at(model, (*item["loc"], 0)).annotations)
            example = shown([value]) if isinstance(value, str | int | float) else "[...]"
            if tables:
                example = f"[{{ type = {next((name for name in tables if name == value), next(iter(tables)))!r} }}]"
            return f"takes a list, not {shown(value)}; write it in brackets, e.g. {place.names[-1]} = {example}"
        case "string_type":
            return f"takes text, not {shown(value)}; write quotes, e.g. {place.names[-1]} = {_quoted(value)}"
        case "string_pattern_mismatch":
            return f"takes {PATTERNS.get(context['pattern'], context['pattern'])} (got {shown(value)})"
        case "string_too_short":
            return "is empty; write some text, or leave it out"
        case "bool_type" | "bool_parsing":
            return f"takes true or false (got {shown(value)})"
        case "too_short" | "too_long":
            least = item["type"] == "too_short"
            bound = f"at least {context['min_length']}" if least else f"at most {context['max_length']}"
            return f"takes a list of {bound}, not of {context['actual_length']}"
        case _:
            message = item["msg"].removeprefix("Value error, ")
            hides_value = message.startswith(place.dotted) or not item["loc"] or isinstance(value, dict)
            return message if hides_value else f"{message} (got {shown(value)})"


def _one_of(variants: Mapping[str, object], place: Place) -> str:
    return f"write {place.dotted}.type as one of {', '.join(map(repr, variants))}"


def _as_table(value: object, variants: Mapping[str, object], place: Place) -> str:
    if isinstance(value, str) and variants:
        return f"write {place.dotted}.type = {value!r}" if value in variants else _one_of(variants, place)
    return f"write its settings as {place.dotted}.NAME = ..., or below [{place.dotted}]"


def _quoted(value: object) -> str:
    if isinstance(value, dict | list):
        return '"..."'
    text = str(value).lower() if isinstance(value, bool) else shown(value) if isinstance(value, int) else str(value)
    return f'"{text}"'


def _suggestion(place: Place, model: type[Settings]) -> str:
    """A guess at the intended setting: in another type of its table, under a similar name, or in another table."""
    *above, name = place.names
    owners = [kind for kind in place.variants if kind not in place.table and name in kind.model_fields]
    if owners:
        types = " or ".join(repr(kind.model_fields["type"].default) for kind in owners)
        return f" of type = {place.table[0].model_fields['type'].default!r}; {'.'.join(above)}.type = {types} has it"
    here = {known: _likeness(name, (*above, known)) for kind in place.table for known in kind.model_fields}
    near = max(here, key=lambda known: here[known], default="")
    if near and here[near] >= _VERY_NEAR:
        return f"; did you mean {near!r}?"
    if elsewhere := _elsewhere(name, tuple(above), model):
        return f"; did you mean {' or '.join(map(repr, elsewhere))}?"
    return f"; did you mean {near!r}?" if near and here[near] >= _NEAR else ""


def _elsewhere(name: str, above: tuple[str, ...], model: type[Settings]) -> Sequence[str]:
    """Dotted names of the most similar settings in other tables; of equals, those nearest to this table."""
    likeness = {names: _likeness(name, names) for names in dict.fromkeys(settings_of(model))}
    best = max(likeness.values())
    if best < _VERY_NEAR or name == "type":  # too many tables have a type
        return ()
    found = [names for names, value in likeness.items() if value == best]
    shared = {names: _num_shared(names, above) for names in found}
    nearest = [names for names in found if shared[names] == max(shared.values())]
    return [".".join(names) for names in sorted(nearest, key=len)[:_MOST_SUGGESTED]]


def _num_shared(names: tuple[str, ...], above: tuple[str, ...]) -> int:
    pairs = zip(names, above, strict=False)
    return len([*takewhile(lambda pair: pair[0] == pair[1], pairs)])


def _likeness(name: str, names: tuple[str, ...]) -> float:
    """Similarity of a name and a setting's dotted name, in [0, 1].

    The initials of its words count like a typo; its beginning, or some of its words, count less.
    """
    known, alias = names[-1], _ALIASES.get(name, ())
    words = known.split("_")
    if name == known or (alias and names[-len(alias) :] == alias):
        return 1.0
    if len(words) > 1 and name == "".join(word[:1] for word in words):
        return 0.9
    spelling = 0.9 if sorted(name) == sorted(known) else difflib.SequenceMatcher(None, name, known).ratio()
    is_part = set(name.split("_")) < set(words) or (len(name) > 2 and known.startswith(name))
    return max(spelling, 0.8) if is_part else spelling
