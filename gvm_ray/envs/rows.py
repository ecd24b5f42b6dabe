"""A row to a Task; the rules for its fields are the same for files, Hugging Face datasets and functions."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from gvm_ray.config.prompts import FileSourceConfig, FunctionSourceConfig, HuggingFaceSourceConfig
from gvm_ray.envs.task import Task, content_id, normalised
from gvm_ray.exceptions import DataError

RowSourceConfig = FileSourceConfig | HuggingFaceSourceConfig | FunctionSourceConfig
Row = tuple[str, Mapping[str, Any]]  # file and line for messages, and field name to value

_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # zero, and half a character


def used_fields(config: RowSourceConfig) -> dict[str, str]:
    """Field name -> the setting that names it, for every field that a row must have."""
    fields = {
        config.prompt_field: "prompt_field",
        config.answer_field: "answer_field",
        config.id_field: "id_field",
        config.rationale_field: "rationale_field",
    } | dict.fromkeys(config.feature_fields, "feature_fields")
    return {name: setting for name, setting in fields.items() if name is not None}


def tasks_from_rows(rows: Iterable[Row], *, config: RowSourceConfig) -> list[Task]:
    """The tasks of the first `limit` rows, in their order.

    Args:
        rows: File and line for messages, and field name to value.
        config: Names the fields.

    Raises:
        DataError: a field is missing, empty, or of a type that can't be what it is named for, or two tasks that
            differ have one id.
    """
    tasks: list[Task] = []
    known: dict[str, tuple[str, Task]] = {}
    for where, row in islice(rows, config.limit):
        task = task_from_row(row, config=config, where=where)
        first_where, first = known.setdefault(task.prompt_id, (where, task))
        if (normalised(task.problem), task.answer) != (normalised(first.problem), first.answer):
            raise DataError(
                f"{where}: field {config.id_field!r} is {_shown(task.prompt_id)}, the id of another task ({first_where}"
                "); give each task an id of its own, or leave id_field out"
            )
        tasks.append(task)
    return tasks


def task_from_row(row: Mapping[str, Any], *, config: RowSourceConfig, where: str) -> Task:
    """The task of one row, whose fields the config names; without `id_field` its id is a hash of the content.

    Raises:
        DataError: a field is missing, empty, or of a type that can't be what it is named for.
    """
    for name, setting in used_fields(config).items():
        if name not in row:
            raise DataError(missing_field(name, setting=setting, where=where, known=row))
    problem = row[config.prompt_field]
    if not isinstance(problem, str) or not problem.strip():
        raise DataError(f"{where}: field {config.prompt_field!r} is {_shown(problem)}; the problem must be text")
    problem = _text(problem, where=f"{where}: field {config.prompt_field!r}")
    answer = _answer_text(row[config.answer_field], where=f"{where}: field {config.answer_field!r}")
    prompt_id = content_id(problem, answer)
    if config.id_field is not None:
        prompt_id = _id_text(row[config.id_field], where=f"{where}: field {config.id_field!r}")
    rationale = None
    if config.rationale_field is not None:
        rationale = _rationale(row[config.rationale_field], where=f"{where}: field {config.rationale_field!r}")
    return Task(
        prompt_id=prompt_id,
        problem=problem,
        answer=answer,
        features={name: row[name] for name in config.feature_fields},
        rationale=rationale,
    )


def missing_field(name: str, *, setting: str, where: str, known: Mapping[str, Any] | list[str]) -> str:
    """What to say of a row or a table without the field."""
    return f"{where}: no field {name!r}; set {setting} to one of its fields: {', '.join(sorted(known)) or '(none)'}"


def _text(text: str, *, where: str) -> str:
    """The text itself, if a tokenizer can take it: JSON may spell characters that no UTF-8 text holds."""
    if found := _NO_TEXT.search(text):
        raise DataError(f"{where} holds the character {found[0]!r} at position {found.start()}; remove it")
    return text


def _answer_text(value: object, *, where: str) -> str:
    """Gold answers come as text, as numbers (27.0 is "27"), or as a list of these, joined by ", "."""
    if isinstance(value, str) and value.strip():
        return _text(value, where=where)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, list) and value and not any(isinstance(item, list) for item in value):
        return ", ".join(_answer_text(item, where=where) for item in value)
    raise DataError(f"{where} is {_shown(value)}; the answer must be text, a finite number, or a list of these")


def _id_text(value: object, *, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise DataError(f"{where} is {_shown(value)}; an id must be text or a whole number")
    return _text(str(value), where=where)


def _rationale(value: object, *, where: str) -> str | None:
    """The reference response, or the first of several; a null or an empty one makes no demonstration."""
    first = value[0] if isinstance(value, list) and value else value
    if first is None or first in ("", []):
        return None
    if not isinstance(first, str):
        raise DataError(f"{where} is {_shown(value)}; a rationale must be text or a list of texts")
    return _text(first, where=where)


def _shown(value: object) -> str:
    """A value for a message: its type and the beginning of its JSON form."""
    if value is None:
        return "null"
    if value == "":
        return "empty"
    text = json.dumps(value, default=str, ensure_ascii=False)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
