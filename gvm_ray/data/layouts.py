r"""Which fields of raw rows hold problem, answer and solution, and how the answer is taken out of a solution.

NuminaMath (`problem`, `solution`, `source`; 1.5 also `answer`), MATH (`problem`, `level`, `type`, `solution`; MATH-500
also `answer`) and GSM8K (`question`, `answer` that ends with "#### 42") are known by their fields; anything else is
`plain`, whose answers are as they stand or boxed in a longer text.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gvm_ray.config.data import DataConfig, LayoutName
from gvm_ray.config.prompts import FileSourceConfig
from gvm_ray.envs.fields import field_value, missing_field
from gvm_ray.envs.rows import task_from_row, used_fields
from gvm_ray.envs.task import Task, content_id
from gvm_ray.exceptions import DataError
from gvm_ray.functional.boxed import final_boxed

PROBLEM_FIELDS = ("problem", "question", "prompt")
SOLUTION_FIELDS = ("solution", "rationale")

_GSM8K_MARK = "####"
# Digits in threes: 1,234,567. Commas between numbers stay (1,2 and 1, 234), as do those in brackets, found first.
_GROUPED = re.compile(r"[(\[{][^()\[\]{}]*[)\]}]|(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!,?\d)")
_NO_ANSWER = ("proof", "notfound")  # what NuminaMath-1.5 writes where a problem has no answer to compare with
_NO_SETTINGS = FileSourceConfig(path="-")  # field names are set for each layout


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where things stand in the rows of one table."""

    name: LayoutName
    fields: FileSourceConfig  # the names, without feature_fields
    features: Mapping[str, str]  # column of the output -> field
    default_source: str  # for rows that don't name theirs

    def task(self, row: Mapping[str, Any], *, where: str) -> Task | None:
        """The row's task, whose features begin with its `source`; None where the row has no final answer.

        Raises:
            DataError: a field of the row is missing, empty, or of the wrong type.
        """
        raw = task_from_row(row, config=self.fields, where=where)
        answer = self._final_answer(raw.answer)
        if answer is None:
            return None
        source = row.get("source")
        features = {column: _value_or_none(row, field) for column, field in self.features.items()}
        if self.name == "math":  # "Level 5", "Level ?" or, in MATH-500, 5
            level = re.search(r"\d+", str(features["level"]))
            features["level"] = int(level[0]) if level else None
        return replace(
            raw,
            prompt_id=content_id(raw.problem, answer) if self.fields.id_field is None else raw.prompt_id,
            answer=answer,
            features={"source": source if source and isinstance(source, str) else self.default_source, **features},
        )

    def _final_answer(self, text: str) -> str | None:
        if self.name == "gsm8k":
            _, mark, answer = text.rpartition(_GSM8K_MARK)
            return _without_separators(answer.strip()) if mark and answer.strip() else None
        if boxed := final_boxed(text):
            return boxed
        # A solution without a box holds its answer somewhere, and nothing says where.
        name = self.fields.answer_field
        is_solution = name == self.fields.rationale_field or name.rpartition(".")[2] in SOLUTION_FIELDS
        return None if is_solution or text.strip().lower() in _NO_ANSWER else text.strip()


def find_layout(first: Mapping[str, Any], *, config: DataConfig, where: str, default_source: str) -> Layout:
    """The layout of a table.

    Args:
        first: Its first row.
        config: The layout asked for, "auto" to go by the row, and the fields that the caller names.
        where: The row's file and line.
        default_source: For `source`, of rows that don't name theirs.

    Raises:
        DataError: the row hasn't the fields of the layout, or those that the caller names.
    """
    name = _name_of(first) if config.layout == "auto" else config.layout
    solution = next((field for field in SOLUTION_FIELDS if field in first), None)
    features: dict[str, str] = {}
    match name:
        case "gsm8k":
            named = {"prompt_field": "question", "answer_field": "answer"}
            solution = config.answer_field or "answer"  # which ends with the answer
        case "math" | "numina_math":
            solution = "solution"
            named = {"prompt_field": "problem", "answer_field": "answer" if "answer" in first else "solution"}
            if name == "math":
                features = {"level": "level", "subject": "subject" if "subject" in first else "type"}
            else:
                features = {field: field for field in ("problem_type", "question_type") if field in first}
        case _:
            named = {"prompt_field": problem_field(first), "answer_field": "answer"}
    names = {"rationale_field": solution, **named, "id_field": None}
    names |= {setting: field for setting in names if (field := getattr(config, setting)) is not None}
    features |= config.feature_columns
    fields = _NO_SETTINGS.model_copy(update=names)
    for field, setting in (used_fields(fields) | dict.fromkeys(features.values(), "feature_fields")).items():
        try:
            field_value(first, field)
        except KeyError:
            option = f"--{setting.replace('_', '-')}"
            raise DataError(
                missing_field(field, setting=option, where=f"{where} (layout {name!r})", known=first)
                + "; or write another --layout"
            ) from None
    if name in ("gsm8k", "math"):
        default_source = name
    return Layout(name=name, fields=fields, features=features, default_source=default_source)


def problem_field(first: Mapping[str, Any]) -> str:
    """The field of a row that holds its problem, by its name; "problem" where none has such a name."""
    return next((field for field in PROBLEM_FIELDS if field in first), PROBLEM_FIELDS[0])


def _value_or_none(row: Mapping[str, Any], field: str) -> Any:
    try:
        return field_value(row, field)
    except KeyError:  # the first row has it, others may leave it out
        return None


def _without_separators(answer: str) -> str:
    return _GROUPED.sub(lambda found: found[0] if found[0][0] in "([{" else found[0].replace(",", ""), answer)


def _name_of(first: Mapping[str, Any]) -> LayoutName:
    fields = first.keys()
    if {"problem", "solution", "source"} <= fields:
        return "numina_math"
    if {"problem", "solution", "level"} <= fields and fields & {"type", "subject"}:
        return "math"
    if {"question", "answer"} <= fields and "problem" not in fields and _GSM8K_MARK in str(first["answer"]):
        return "gsm8k"
    return "plain"
