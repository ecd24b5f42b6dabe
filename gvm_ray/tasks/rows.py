"""Tasks, and their construction from rows of data, with the same rules for files, datasets and functions."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import islice
from typing import Any

import numpy as np

from gvm_ray.config.prompts import FieldNames, FileSourceConfig, FunctionSourceConfig, HuggingFaceSourceConfig
from gvm_ray.exceptions import DataError
from gvm_ray.tasks.fields import field_names, field_value, missing_field, python_float


@dataclass(frozen=True, kw_only=True)
class Task:
    """A problem with its gold answer."""

    prompt_id: str  # given by the data, or a hash of the content
    problem: str  # as in the source, without a template
    answer: str  # gold answer as text; empty if the task's own scorer grades
    features: Mapping[str, Any] = field(default_factory=dict)
    rationale: str | None = None  # a reference response, for the warm start
    # A whole chat where the source has one, with its own system prompt and examples; `problem` is then its text.
    messages: tuple[Mapping[str, str], ...] | None = None

    @property
    def has_own_score(self) -> bool:
        """True if the source scores responses itself, so that the gold answer need not be parsed."""
        return not self.features.keys().isdisjoint(("reasoning_gym", "environment"))


def content_id(problem: str, answer: str) -> str:
    """16 hex digits that depend only on problem and answer, so they are the same in every run."""
    return hashlib.sha256(f"{problem}\0{answer}".encode()).hexdigest()[:16]


def normalised(problem: str) -> str:
    """The problem with every run of whitespace as one space, so that copies of a problem are equal."""
    return " ".join(problem.split())


RowSourceConfig = FileSourceConfig | HuggingFaceSourceConfig | FunctionSourceConfig
Row = tuple[str, Mapping[str, Any]]  # (file and line for messages, field name -> value)

_WHOLE_FLOAT = re.compile(r"[+-]?\d+\.0")  # a whole number that was a float, in a CSV file or a text column
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # the null character, and lone surrogates


def used_fields(config: RowSourceConfig) -> dict[str, str]:
    """Field name -> the (first) setting that names it, for every field that a row must have."""
    fields = {
        **dict.fromkeys(config.feature_fields, "feature_fields"),
        config.rationale_field: "rationale_field",
        config.id_field: "id_field",
        config.answer_field: "answer_field",
        **dict.fromkeys(names_of(config.prompt_field), "prompt_field"),
    }
    return {name: fields[name] for name in reversed(fields) if name is not None}


def names_of(fields: FieldNames) -> tuple[str, ...]:
    """The names as a tuple, also if there is only one."""
    return (fields,) if isinstance(fields, str) else fields


def tasks_from_rows(rows: Iterable[Row], *, config: RowSourceConfig) -> list[Task]:
    """The tasks of the first `limit` rows, in their order.

    Args:
        rows: Pairs of file and line (for messages) and field name -> value.
        config: Names the fields.

    Raises:
        DataError: a field is missing, empty or of a wrong type, or two different tasks have the same id.
    """
    tasks: list[Task] = []
    known: dict[str, tuple[str, Task]] = {}
    for where, row in islice(rows, config.limit):
        task = task_from_row(row, config=config, where=where)
        first_where, first = known.setdefault(task.prompt_id, (where, task))
        if (normalised(task.problem), task.answer) != (normalised(first.problem), first.answer):
            raise DataError(
                f"{where}: field {config.id_field!r} is {_shown(task.prompt_id)}, the id of another task ({first_where}"
                "); give each task an id of its own, or leave out id_field"
            )
        tasks.append(task)
    return tasks


def task_from_row(row: Mapping[str, Any], *, config: RowSourceConfig, where: str) -> Task:
    """The task of one row, with the fields that the config names; without `id_field` its id is a content hash.

    Raises:
        DataError: a field is missing, empty or of a wrong type.
    """
    values: dict[str, Any] = {}
    for name, setting in used_fields(config).items():
        try:
            values[name] = field_value(row, name)
        except KeyError:
            raise DataError(missing_field(name, setting=setting, where=where, known=row)) from None
    problem = problem_text({name: values[name] for name in names_of(config.prompt_field)}, where=where)
    answer = _answer_text(values[config.answer_field], where=where, name=config.answer_field)
    prompt_id = content_id(problem, answer)
    if config.id_field is not None:
        prompt_id = _id_text(values[config.id_field], where=f"{where}: field {config.id_field!r}")
    rationale = None
    if config.rationale_field is not None:
        rationale = _rationale(values[config.rationale_field], where=f"{where}: field {config.rationale_field!r}")
    return Task(
        prompt_id=prompt_id,
        problem=problem,
        answer=answer,
        features={name: values[name] for name in config.feature_fields},
        rationale=rationale,
    )


def problem_text(values: Mapping[str, Any], *, where: str) -> str:
    """The problem's text; the texts of several fields are joined by a space, without empty ones.

    A field holds text, or a chat with a single user message, whose content is the text.

    Args:
        values: Field name -> value.
        where: The row's file and line.

    Raises:
        DataError: the fields hold no text, or something other than text.
    """
    if len(values) == 1:
        ((name, value),) = values.items()
        problem = _problem_part(value, where=where, name=name)
    else:
        parts = [_problem_part(value, where=where, name=name) for name, value in values.items() if value is not None]
        problem = " ".join(part.strip() for part in parts if part.strip())
    if not problem.strip():
        shown = ", ".join(f"field {name!r} is {_shown(value)}" for name, value in values.items())
        raise DataError(f"{where}: {shown}; the problem must be text")
    return problem


def _problem_part(value: object, *, where: str, name: str) -> str:
    label = f"{where}: field {name!r}"
    value = _without_numpy(value)
    if isinstance(value, list) and value and all(isinstance(part, Mapping) and "role" in part for part in value):
        return _user_message(value, where=label, name=name)
    if not isinstance(value, str):
        raise DataError(f"{label} is {_shown(value)}; the problem must be text{_inner_fields(name, value)}")
    return _text(value, where=label)


def _user_message(chat: list[Any], *, where: str, name: str) -> str:
    """The text of a chat with a single user message. Other chats are refused: their prompt would be unclear."""
    roles = [str(message["role"]) for message in chat]
    content = chat[0].get("content")
    if roles == ["user"] and isinstance(content, str):
        return _text(content, where=where)
    fields = ", ".join(f"{name}.{index}.content ({role})" for index, role in enumerate(roles[:4]))
    raise DataError(
        f"{where} is a chat of {', '.join(roles[:4])}{', ...' if len(roles) > 4 else ''}, and only one message by the "
        f"user, with text as content, can be the problem; name the field of the text: {fields}"
    )


def _text(text: str, *, where: str) -> str:
    """The text itself, if a tokenizer can take it: JSON can spell characters that UTF-8 text can't contain."""
    if found := _NO_TEXT.search(text):
        raise DataError(f"{where} holds the character {found[0]!r} at position {found.start()}; remove it")
    return str(text)  # turns a subclass, e.g. numpy's, into plain text


def _answer_text(value: object, *, where: str, name: str) -> str:
    """The gold answer as text, from text, a number (27.0 is "27"), or a list of these, joined by ", "."""
    value = _without_numpy(value)
    number = _number_text(value)
    if number is not None:
        return number
    if isinstance(value, str) and value.strip():
        text = _text(value, where=f"{where}: field {name!r}")
        return text.removesuffix(".0") if _WHOLE_FLOAT.fullmatch(text) else text
    if (
        isinstance(value, list | tuple)
        and value
        and not any(isinstance(item, list | tuple | Mapping) for item in value)
    ):
        return ", ".join(_answer_text(item, where=where, name=name) for item in value)
    raise DataError(
        f"{where}: field {name!r} is {_shown(value)}; the answer must be text, a finite number, or a list of these"
        f"{_inner_fields(name, value)}"
    )


def _number_text(value: object) -> str | None:
    """A finite number in digits, without an exponent; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, float | Decimal | np.floating):
        return None
    number = Decimal(str(python_float(value) if isinstance(value, np.floating) else value))
    if not number.is_finite():
        return None
    text = f"{number:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text if number else "0"


def _without_numpy(value: object) -> object:
    """An array as a list, and a numpy scalar as a Python one; numpy floats stay, because they know their precision."""
    if isinstance(value, np.ndarray):
        return list(value) if value.ndim else _without_numpy(value[()])
    return value.item() if isinstance(value, np.generic) and not isinstance(value, np.floating) else value


def _id_text(value: object, *, where: str) -> str:
    value = _without_numpy(value)
    number = _number_text(value)  # a column of whole numbers with a missing value is read as floats
    text = value if isinstance(value, str) else number
    if text is None or not text.strip() or (number is not None and "." in number):
        raise DataError(f"{where} is {_shown(value)}; an id must be text or a whole number")
    return _text(text, where=where)


def _rationale(value: object, *, where: str) -> str | None:
    """The reference response, or the first of several; None for a null or an empty one."""
    value = _without_numpy(value)
    first = value[0] if isinstance(value, list | tuple) and value else value
    if first is None or first in ("", []):
        return None
    if not isinstance(first, str):
        raise DataError(f"{where} is {_shown(value)}; a rationale must be text or a list of texts")
    return _text(first, where=where)


def _inner_fields(name: str, value: object) -> str:
    """The end of a message about a value that is a row itself: its fields."""
    return f"; name a field in it: {field_names({name: value})}" if isinstance(value, Mapping) and value else ""


def _shown(value: object) -> str:
    """The type and the beginning of the JSON form of a value, for a message."""
    if value is None:
        return "null"
    if value == "":
        return "empty"
    text = json.dumps(value, default=str, ensure_ascii=False, skipkeys=True)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
