"""Settings classes as a tree: the values allowed at a dotted place, and the variant of a table without `type`."""

import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import isclass
from typing import Annotated, Any, Literal, get_args, get_origin

from gvm_ray.settings import Settings

_UNIONS = (typing.Union, types.UnionType)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A place in a settings file."""

    names: tuple[str, ...]  # of the tables and the setting, without the types in an error's location
    annotations: tuple[Any, ...] = ()  # types allowed there; none for an unknown setting
    table: tuple[type[Settings], ...] = ()  # possible classes of the table that contains it
    variants: tuple[type[Settings], ...] = ()  # the same for every `type` of that table
    siblings: tuple[type[Settings], ...] = ()  # for a table whose `type` is known: the classes of all its types

    @property
    def dotted(self) -> str:
        """The place as `--set` takes it, e.g. "learner.lora.rank"."""
        return ".".join(self.names)

    @property
    def takes_text(self) -> bool:
        """True if only text, none or a list of texts is allowed there."""
        apart_from_lists = [a for a in self.annotations if get_origin(a) is not tuple]  # lists are written in brackets
        return any(a is not type(None) for a in apart_from_lists) and all(map(_is_text, apart_from_lists))

    @property
    def takes_list(self) -> bool:
        """True if a list is allowed there."""
        return any(get_origin(a) is tuple for a in self.annotations)

    @property
    def takes_none(self) -> bool:
        """True if the setting can be none."""
        return type(None) in self.annotations


def place_at(model: type[Settings], location: Sequence[int | str]) -> Place:
    """The place at a location in the model's files: names and indices, or an error's location, which has types too."""
    place = Place(names=(), annotations=(model,))
    for part in location:
        place = _below(place, part)
    return place


def variants_of(annotations: Sequence[Any]) -> dict[str, type[Settings]]:
    """The possible classes of a table, by `type`; none if one class serves all types."""
    classes = classes_of(annotations)
    return {kind.model_fields["type"].default: kind for kind in classes} if len(classes) > 1 else {}


def settings_in(annotation: Any) -> list[type[Settings]]:
    """The settings classes in a field's annotation, including those in lists, in order."""
    found: list[type[Settings]] = []
    for part in alternatives(annotation):
        if get_origin(part) is tuple:
            found += [kind for argument in get_args(part) for kind in settings_in(argument)]
        elif _is_settings(part):
            found.append(part)
    return found


def alternatives(annotation: Any) -> list[Any]:
    """The members of a union, nested or not."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in _UNIONS:
        return [part for argument in get_args(annotation) for part in alternatives(argument)]
    return [annotation]


def with_default_types(model: type[Settings], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with the default `type` added to every table that may have several and doesn't name one."""
    filled = dict(values)
    for name, field in model.model_fields.items():
        if name in filled:
            filled[name] = _with_types(alternatives(field.annotation), filled[name], default=field.default)
    return filled


def settings_of(model: type[Settings], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The names of every setting and table of the model."""
    for name, field in model.model_fields.items():
        yield (*above, name)
        for kind in settings_in(field.annotation):
            yield from settings_of(kind, (*above, name))


_WORDS = {"integer": "integer", "number": "number", "boolean": "true or false", "string": "text", "object": "table"}


def values_in_words(schema: Mapping[str, Any], *, quote: Callable[[Any], str] = repr) -> str:
    """The values that a setting's JSON schema admits, e.g. "integer ≥ 1 or none"; `quote` writes a text or number."""
    if "anyOf" in schema:
        parts = [values_in_words(part, quote=quote) for part in schema["anyOf"] if part.get("type") != "null"]
        return " or ".join([*parts, *(["none"] if len(parts) < len(schema["anyOf"]) else [])])
    if "enum" in schema or "const" in schema:
        return ", ".join(map(quote, schema.get("enum") or [schema["const"]]))
    if schema.get("type") == "array":
        items = schema.get("prefixItems") or [schema.get("items", {})]
        return "list of " + " and ".join(dict.fromkeys(values_in_words(item, quote=quote) for item in items))
    if schema.get("format") == "date":
        return "date"
    bounds = [
        f"{sign} {schema[key]:g}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if key in schema and schema[key] < 2**63 - 1
    ]
    bounds += [f"a multiple of {schema['multipleOf']:g}"] if "multipleOf" in schema else []
    return " ".join([_WORDS.get(schema.get("type", ""), "any value"), ", ".join(bounds)]).strip()


def _with_types(annotations: Sequence[Any], value: Any, *, default: Any = None) -> Any:
    if isinstance(value, list | tuple):
        elements = [part for a in annotations if get_origin(a) is tuple for part in alternatives(get_args(a)[0])]
        return [_with_types(elements, each) for each in value]
    if not isinstance(value, Mapping):
        return value
    classes, variants = classes_of(annotations), variants_of(annotations)
    if variants:
        kind = getattr(default, "type", None)
        value = {"type": kind, **value} if kind is not None else value
        known = isinstance(value.get("type"), str) and value["type"] in variants
        classes = [variants[value["type"]]] if known else []
    return with_default_types(classes[0], value) if classes else value


def _below(place: Place, part: int | str) -> Place:
    if isinstance(part, int):
        return Place(names=(*place.names, str(part)), annotations=_elements(place.annotations))
    variants = variants_of(place.annotations)
    if part in variants:
        return replace(place, annotations=(variants[part],), siblings=tuple(variants.values()))
    classes = tuple(classes_of(place.annotations))
    fields = [kind.model_fields[part].annotation for kind in classes if part in kind.model_fields]
    values = [get_args(a)[1] for a in place.annotations if get_origin(a) is dict]
    if not classes and not values:
        return place  # in an error's location: the name of a union's member
    found = dict.fromkeys(part for a in fields or values for part in alternatives(a))
    return Place(
        names=(*place.names, part), annotations=tuple(found), table=classes, variants=place.siblings or classes
    )


def _elements(annotations: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(part for a in annotations if get_origin(a) is tuple for part in alternatives(get_args(a)[0]))


def classes_of(annotations: Sequence[Any]) -> list[type[Settings]]:
    """The settings classes among these annotations."""
    return [part for part in annotations if _is_settings(part)]


def _is_settings(annotation: Any) -> bool:
    return isclass(annotation) and issubclass(annotation, Settings)


def _is_text(annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return all(isinstance(value, str) for value in get_args(annotation))
    return annotation in (str, type(None))
