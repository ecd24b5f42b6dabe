"""Messages for invalid settings: the setting, its value, and what to write instead."""

import difflib
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from pydantic import ValidationError

from gvm_ray.config.schema import Place, place_at, settings_of, variants_of
from gvm_ray.settings import Settings

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
            example = shown([value]) if isinstance(value, str | int | float) else "[...]"
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
    spelling = difflib.SequenceMatcher(None, name, known).ratio()
    is_part = set(name.split("_")) < set(words) or (len(name) > 2 and known.startswith(name))
    return max(spelling, 0.8) if is_part else spelling
