"""Settings that don't validate, in words: which one, its value, and what to write instead."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import takewhile
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from gvm_ray.config.schema import Place, classes_of, place_at, settings_of, values_in_words, variants_of
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
    "train_batch_size": ("prompts_per_step",),
    "max_new_tokens": ("sampling", "max_tokens"),
    "max_completion_length": ("sampling", "max_tokens"),
    "max_response_length": ("sampling", "max_tokens"),
    "max_prompt_length": ("prompts", "max_tokens"),
    "max_steps": ("num_steps",),
    "total_training_steps": ("num_steps",),
    "output_dir": ("runs_dir",),
    "kl_coef": ("kl", "coefficient"),
    "kl_loss_coef": ("kl", "coefficient"),
    "entropy_coeff": ("entropy_coefficient",),
    "grad_clip": ("gradient_clip",),
    "max_grad_norm": ("gradient_clip",),
    "save_freq": ("checkpoint", "every_steps"),
    "save_steps": ("checkpoint", "every_steps"),
    "test_freq": ("evaluation", "every_steps"),
    "eval_steps": ("evaluation", "every_steps"),
    "tensor_model_parallel_size": ("tensor_parallel_size",),
    "data_parallel_size": ("num_generators",),
    "gradient_checkpointing": ("activation_checkpointing",),
}
_ABSENT = {  # names that have no counterpart here -> the reason, and what comes nearest
    **dict.fromkeys(
        ("top_p", "top_k", "min_p", "repetition_penalty"),
        "training samples from the policy as it is, because log-probs of other samples would need a correction; leave "
        "it out (evaluation.top_p is for evaluations)",
    ),
    "pipeline_parallel_size": "a generator's model is divided by engine.tensor_parallel_size alone",
    **dict.fromkeys(
        ("num_gpus", "n_gpus", "gpus", "n_gpus_per_node"),
        "write learner.gpus_per_worker and engine.gpus_per_generator, with learner.num_workers and "
        "engine.num_generators for the number of actors",
    ),
    **dict.fromkeys(
        ("num_epochs", "num_train_epochs", "total_epochs", "epochs"),
        "write num_steps, each of prompts_per_step prompts",
    ),
    "do_sample": "responses are always sampled; write sampling.temperature",
}
_SAME_VALUES = {  # other names of values
    "bf16": ("bfloat16",),
    "fp32": ("float32",),
    "hf": ("huggingface", "transformers"),
    "none": ("off",),
    "false": ("off",),
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
    lines: dict[str, str] = {}
    for item in error.errors(include_url=False):
        place = place_at(model, item["loc"])
        where = f"{place.dotted}.type" if item["type"].startswith("union_tag") else place.dotted
        # A value that may be of several types has an error for each of them, and the first one says it all.
        lines.setdefault(where, f"  {where or '(whole config)'}: {_message(item, place, model)}")
    return "\n".join([f"{origin}: {len(lines)} problem(s)", *lines.values()])


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
        case "missing" if place.names[-1].isdigit():
            return f"required, but not given{_example(_above(place, model))}"
        case "missing" | "union_tag_not_found":
            return "required, but not given" + (
                f"; {_one_of(variants, place, None, model)}" if variants else _pattern(place)
            )
        case "union_tag_invalid":
            return f"unknown type (got {shown(value['type'])}); {_one_of(variants, place, value['type'], model)}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"takes a table, not {shown(value)}; {_as_table(value, place, model)}"
        case "tuple_type":
            example = _as_list(value, place_at(model, (*item["loc"], 0)))
            return f"takes a list, not {shown(value)}; write it in brackets, e.g. {place.names[-1]} = {example}"
        case "string_type":
            name = "" if place.names[-1].isdigit() else f"{place.names[-1]} = "
            return f"takes text, not {shown(value)}; write quotes, e.g. {name}{_quoted(value)}"
        case "string_pattern_mismatch":
            return f"takes {PATTERNS.get(context['pattern'], context['pattern'])} (got {shown(value)})"
        case "string_too_short":
            required = any(kind.model_fields[place.names[-1]].is_required() for kind in place.table)
            return "is empty; write some text" + ("" if required else ", or leave it out")
        case "bool_type" | "bool_parsing":
            return f"takes true or false (got {shown(value)})"
        case "finite_number":
            return f"takes a finite number (got {shown(value)}){_example(place)}"
        case "too_short" | "too_long":
            least = item["type"] == "too_short"
            bound = f"at least {context['min_length']}" if least else f"at most {context['max_length']}"
            return f"takes a list of {bound}, not of {context['actual_length']}"
        case kind if kind.split("_")[0] in _OF_VALUES and (values := _values(place, kind)):
            return f"takes {values} (got {shown(value)}){_nearest_value(value, place) or _example(place)}"
        case kind if kind in _BOUNDS:  # of a list's or a table's element
            sign, bound = _BOUNDS[kind]
            return f"takes a number {sign} {context[bound]:g} (got {shown(value)})"
        case kind if kind.split("_")[0] in ("int", "float"):
            return f"takes {'an integer' if kind.startswith('int') else 'a number'} (got {shown(value)})"
        case _:
            message = item["msg"].removeprefix("Value error, ")
            hides_value = message.startswith(place.dotted) or not item["loc"] or isinstance(value, dict)
            return message if hides_value else f"{message} (got {shown(value)})"


@cache
def _schemas(kind: type[Settings]) -> Mapping[str, Any]:
    """The JSON schemas of a class's settings."""
    return kind.model_json_schema()["properties"]


def _pattern(place: Place) -> str:
    """A hint for a text that has to follow a pattern; else empty."""
    schemas = [_schemas(kind).get(place.names[-1], {}) for kind in place.table]
    patterns = [schema["pattern"] for schema in schemas if schema.get("pattern") in PATTERNS]
    return f"; it takes {PATTERNS[patterns[0]]}" if patterns else ""


def _as_list(value: object, element: Place) -> str:
    """An example of a list with the value, whose elements are tables or plain values."""
    tables, classes = variants_of(element.annotations), classes_of(element.annotations)
    if tables:
        return f"[{{ type = {next((name for name in tables if name == value), next(iter(tables)))!r} }}]"
    if classes:
        has_path = isinstance(value, str) and "path" in classes[0].model_fields
        return f"[{{ path = {value!r} }}]" if has_path else "[{ NAME = ... }]"
    return shown([value]) if isinstance(value, str | int | float) else "[...]"


# Beginnings of the types of errors that are about a single value: "int_parsing", "greater_than_equal", ...
_OF_VALUES = ("int", "float", "greater", "less", "multiple", "literal", "date")
_BOUNDS = {
    "greater_than": (">", "gt"),
    "greater_than_equal": ("≥", "ge"),
    "less_than": ("<", "lt"),
    "less_than_equal": ("≤", "le"),
}
_ARTICLES = {"integer": "an integer", "number": "a number", "date": "a date, e.g. 2026-11-30"}


def _values(place: Place, kind: str) -> str:
    """The values that a setting takes, in words; empty if they aren't known, or don't show an error of this kind."""
    fields = [_schemas(kind).get(place.names[-1]) for kind in place.table]
    words = {values_in_words(schema) for schema in fields if schema is not None}
    if len(words) != 1 or "any value" in (text := words.pop()) or _BOUNDS.get(kind, ("",))[0] not in text:
        return ""
    first, _, rest = text.partition(" ")
    return f"{_ARTICLES.get(first, 'one of ' + first if first.endswith(',') else first)} {rest}".strip()


def _example(place: Place) -> str:
    """The setting's default as an example, if it is a number or a list of numbers; else empty."""
    defaults = [
        kind.model_fields[name].default for kind in place.table if (name := place.names[-1]) in kind.model_fields
    ]
    value = next(iter(defaults), None)
    value = list(value) if isinstance(value, tuple) and value else value
    is_example = isinstance(value, int | float | list) and not isinstance(value, bool)
    return f"; write e.g. {place.names[-1]} = {value}" if is_example else ""


def _nearest_value(value: object, place: Place) -> str:
    """A guess at the intended one of a setting's texts."""
    texts = [text for a in place.annotations if get_origin(a) is Literal for text in get_args(a)]
    near = _nearest(value, texts)
    return f"; did you mean {near!r}?" if near is not None else ""


def _nearest(value: object, names: Iterable[str]) -> str | None:
    """The name that was probably meant; None if no name is near."""
    if not isinstance(value, str):
        return None
    plain = {_letters(name): name for name in names if isinstance(name, str)}
    wanted = _letters(value)
    same = [name for name in _SAME_VALUES.get(value.lower(), ()) if name in plain]
    begun = [name for name in plain if len(wanted) > 2 and name.startswith(wanted)]
    found = same or difflib.get_close_matches(wanted, plain, n=1, cutoff=0.75) or (begun if len(begun) == 1 else [])
    return plain[found[0]] if found else None


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


def _above(place: Place, model: type[Settings]) -> Place:
    return place_at(model, place.names[:-1])


def _one_of(variants: Mapping[str, object], place: Place, value: object, model: type[Settings]) -> str:
    """The `type` to write instead of a value: that of a similar name, of another table, or one of all."""
    if (near := _nearest(value, variants)) is not None:
        return f"did you mean {near!r}? `gvm-ray settings {place.names[0]}` explains the types"
    if (table := _table_with_type(value, model)) and table != place.dotted:
        return f"{table}.type = {value!r} exists; write {place.dotted}.type as one of {', '.join(map(repr, variants))}"
    return f"write {place.dotted}.type as one of {', '.join(map(repr, variants))}"


def _table_with_type(value: object, model: type[Settings]) -> str:
    """The first table at the top that has this `type`; empty if there is none."""
    names = model.model_fields if isinstance(value, str) else ()
    return next((name for name in names if value in variants_of(place_at(model, (name,)).annotations)), "")


def _as_table(value: object, place: Place, model: type[Settings]) -> str:
    variants, classes = variants_of(place.annotations), classes_of(place.annotations)
    types = {
        name for kind in classes if (field := kind.model_fields.get("type")) for name in get_args(field.annotation)
    }
    if isinstance(value, str) and len(classes) == 1 and (near := _nearest(value, types)) is not None:
        return f"write {place.dotted}.type = {near!r}"
    if isinstance(value, str) and variants:
        near = value if value in variants else _nearest(value, variants)
        of_path = next((name for name, kind in variants.items() if "path" in kind.model_fields), None)
        if near is None and of_path is not None and re.search("[/.]", value):
            return f"write {place.dotted} = {{ type = {of_path!r}, path = {value!r} }}"
        return _one_of(variants, place, value, model) if near is None else f"write {place.dotted}.type = {near!r}"
    if value is False and place.takes_none:
        return f"leave it out, or write --set {place.dotted}=none"
    if value is True and not any(field.is_required() for kind in classes for field in kind.model_fields.values()):
        return f"write {place.dotted} = {{}} for its defaults"
    return f"write its settings as {place.dotted}.NAME = ..., or below [{place.dotted}]"


def _quoted(value: object) -> str:
    if isinstance(value, dict | list):
        return '"..."'
    text = str(value).lower() if isinstance(value, bool) else shown(value) if isinstance(value, int) else str(value)
    return f'"{text}"'


def _suggestion(place: Place, model: type[Settings]) -> str:
    """A guess at the intended setting: in another type of its table, under a similar name, or in another table."""
    *above, name = place.names
    if name in _ABSENT and "evaluation" not in above:
        return f": {_ABSENT[name]}"
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
