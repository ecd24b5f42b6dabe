"""The report of a preparation: kept and rejected rows with reasons; and the writing of report and output."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from gvm_ray.exceptions import DataError, free_space
from gvm_ray.settings import Settings
from gvm_ray.tasks.rows import Task

Reason = Literal["bad_row", "no_answer", "unverified", "duplicate", "near_duplicate", "contaminated", "too_long"]

# In the order of the checks; a row is rejected for the first reason that applies.
REASONS: dict[Reason, str] = {
    "bad_row": "a field is missing, empty or of the wrong type",
    "no_answer": "no final answer in the answer's field",
    "unverified": "Math-Verify can't parse the answer",
    "duplicate": "exactly the same problem",
    "near_duplicate": "the same problem except for layout, case or dollar signs",
    "contaminated": "an evaluation set has the problem, or a part of it",
    "too_long": "more tokens than --max-tokens",
}


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """The reason for which one task is removed."""

    reason: Reason
    detail: str


class Input(Settings):
    """A file or dataset that was read."""

    path: str
    sha256: str  # for a dataset, its fingerprint


class Dropped(Settings):
    """A row that isn't in the output, or was kept although its answer couldn't be verified."""

    prompt_id: str  # empty if the row gave no task
    where: str  # file and line
    reason: Reason
    detail: str


class DataReport(Settings):
    """The report of one preparation."""

    output: str
    sha256: str  # of the output
    request: str  # hash of options and inputs; equal requests give equal outputs
    num_read: int
    num_kept: int
    num_common_ngrams: int  # n-grams of evaluation sets in too many problems to prove anything
    kept_by_source: dict[str, int]
    inputs: tuple[Input, ...]
    evaluation_inputs: tuple[Input, ...]
    options: dict[str, Any]
    versions: dict[str, str]
    kept_unverified: tuple[Dropped, ...]
    dropped: tuple[Dropped, ...]

    @property
    def path(self) -> Path:
        """The report's file."""
        return report_path(self.output)

    def table(self) -> str:
        """A table to print: rows kept from each source, and rows dropped for each reason, with the first of them."""
        lines = [f"{self.output}: {self.num_kept:,} of {self.num_read:,} problems"]
        rows = [(f"{num:,}", "kept", source) for source, num in self.kept_by_source.items()]
        rows += reason_rows(self.dropped, what="dropped") + reason_rows(self.kept_unverified, what="kept anyway")
        if self.num_common_ngrams:
            phrase = f"n-grams of evaluation sets that are in more than {self.options['common_ngram']} problems"
            rows.append((f"{self.num_common_ngrams:,}", "ignored", phrase))
        return "\n".join([*lines, *aligned(rows)])


def reason_rows(rows: Sequence[Dropped], *, what: str) -> list[tuple[str, str, str]]:
    """A table row for each reason: the number of data rows, what was done with them, and the first of them."""
    counts = Counter(row.reason for row in rows)
    lines = []
    for reason, meaning in REASONS.items():
        if counts[reason]:
            first = next(row for row in rows if row.reason == reason)
            lines.append((f"{counts[reason]:,}", what, f"{reason}: {meaning}; {first.where}: {first.detail}"))
    return lines


def aligned(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    """Lines of a table with right-aligned numbers and left-aligned words."""
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    return [f"  {number:>{widths[0]}}  {what:<{widths[1]}}  {text}" for number, what, text in rows]


def report_path(output: str) -> Path:
    """The path of an output's report: `train.report.json` for `train.parquet`."""
    return Path(output).expanduser().with_suffix(".report.json")


def read_report(output: str) -> DataReport | None:
    """The report beside an output; None if it is missing or can't be read."""
    try:
        return DataReport.model_validate_json(report_path(output).read_bytes())
    except (OSError, ValidationError):
        return None


_ROW_GROUP = 2**16


def write_incomplete(tasks: Sequence[Task], *, output: Path) -> Path:
    """Write the tasks under a temporary name in the output's folder; the same tasks give the same bytes.

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
    """Give the file of `write_incomplete` its final name, and write the report beside it.

    Raises:
        DataError: the folder can't be written.
    """
    with _writable(output):
        _incomplete(report.path).write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
        os.replace(_incomplete(output), output)
        os.replace(_incomplete(report.path), report.path)


def _column(values: Sequence[Any]) -> Any:
    """An array of the values' common type, else of text."""
    import pyarrow

    try:
        return pyarrow.array(values)
    except (pyarrow.ArrowException, OverflowError):  # mixed types, e.g. levels 3 and "Level 3", or too large
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
