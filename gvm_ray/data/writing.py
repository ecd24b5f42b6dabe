"""The Parquet file and its report, each whole or not at all."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gvm_ray.data.report import DataReport
from gvm_ray.envs.task import Task
from gvm_ray.exceptions import DataError, free_space

_ROW_GROUP = 2**16


def write_incomplete(tasks: Sequence[Task], *, output: Path) -> Path:
    """The tasks under another name, in the output's folder; the same tasks give the same bytes.

    Raises:
        DataError: the folder can't be written.
    """
    import pyarrow
    import pyarrow.parquet

    features = dict.fromkeys(name for task in tasks for name in task.features)
    text = pyarrow.string()
    columns = {
        "prompt_id": pyarrow.array([task.prompt_id for task in tasks], text),
        "problem": pyarrow.array([task.problem for task in tasks], text),
        "answer": pyarrow.array([task.answer for task in tasks], text),
        **{name: _column([task.features.get(name) for task in tasks]) for name in features},
        "rationale": pyarrow.array([task.rationale for task in tasks], text),
    }
    incomplete = _incomplete(output)
    with _writable(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        table = pyarrow.table(columns)
        pyarrow.parquet.write_table(table, incomplete, compression="zstd", row_group_size=_ROW_GROUP)
    return incomplete


def publish(report: DataReport, *, output: Path) -> None:
    """Give what `write_incomplete` wrote its name, and write the report beside it.

    Raises:
        DataError: the folder can't be written.
    """
    with _writable(output):
        _incomplete(report.path).write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
        os.replace(_incomplete(output), output)
        os.replace(_incomplete(report.path), report.path)


def _column(values: Sequence[Any]) -> Any:
    """An array of the type that all values have, else of text."""
    import pyarrow

    try:
        return pyarrow.array(values)
    except (pyarrow.ArrowException, OverflowError):  # of several types, as levels 3 and "Level 3", or too large
        return pyarrow.array([None if value is None else str(value) for value in values], pyarrow.string())


def _incomplete(path: Path) -> Path:
    return path.with_name(path.name + ".incomplete")


@contextmanager
def _writable(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _incomplete(output).unlink(missing_ok=True)
        raise DataError(
            f"{str(output)!r} can't be written ({error}); {free_space(output.parent)} are free there. Make room, check "
            "its permissions, or write another --output"
        ) from error
