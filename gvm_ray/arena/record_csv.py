"""All records of a comparison as two tables to keep beside a result: one row a run, and one row an evaluation."""

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gvm_ray.arena.records import (
    Calibration,
    Evaluation,
    RunCosts,
    RunRecord,
    Setting,
    check_distinct,
    explain,
    replace_text,
)
from gvm_ray.exceptions import DataError

_SETTING = tuple(Setting.model_fields)
_RUN = ("phase", *_SETTING, "arm", "seed")
_OWN = ("status", "error", "updates_per_batch", "token_budget", "fingerprint", "base_digest")
_CALIBRATION = "calibration"
_COSTS = tuple(RunCosts.model_fields)
_POINT = tuple(name for name in Evaluation.model_fields if name != "accuracy")
_ACCURACY = "accuracy/"


def write_csv(records: Sequence[RunRecord], folder: Path) -> tuple[Path, Path]:
    """`runs.csv`, one row a run, and `evaluations.csv`, one row an evaluation with a column a test; returns both."""
    runs: list[dict[str, Any]] = []
    points: list[dict[str, Any]] = []
    for record in records:
        run = dict(zip(_RUN, record.key, strict=True))
        own = record.model_dump(include=set(_OWN))
        calibration = "" if record.calibration is None else record.calibration.model_dump_json()
        runs.append(run | own | record.costs.model_dump() | {_CALIBRATION: calibration})
        for point in record.evaluations:
            accuracies = {_ACCURACY + test: value for test, value in point.accuracy.items()}
            points.append(run | point.model_dump(exclude={"accuracy"}) | accuracies)
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "runs.csv", folder / "evaluations.csv"
    for path, rows in zip(paths, (runs, points), strict=True):
        replace_text(path, csv_text(rows))
    return paths


def read_csv(folder: Path) -> list[RunRecord]:
    """The records that :func:`write_csv` wrote into a folder, in the same order and equal in every number.

    Raises:
        DataError: a file is missing, a row is no run or no evaluation, or two rows are of the same run.
    """
    points: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in _read_rows(folder / "evaluations.csv"):
        accuracy = {name.removeprefix(_ACCURACY): row[name] for name in row if name.startswith(_ACCURACY) and row[name]}
        points[_key(row)].append({name: row.get(name) for name in _POINT} | {"accuracy": accuracy})
    records = [_record(row, points.pop(_key(row), [])) for row in _read_rows(folder / "runs.csv")]
    check_distinct(records)
    if points:
        raise DataError(
            f"evaluations.csv in {str(folder)!r} has rows of {'/'.join(next(iter(points)))}, runs.csv has none"
        )
    return records


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV under a header of all their columns, in order of appearance; empty where a row lacks one."""
    columns = dict.fromkeys(name for row in rows for name in row)
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        raise DataError(f"{str(path)!r} doesn't exist; give the folder with runs.csv and evaluations.csv") from None


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row.get(name)) for name in _RUN)


def _record(row: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> RunRecord:
    values: dict[str, Any] = {name: value for name, value in row.items() if name not in (*_SETTING, *_COSTS)}
    values["setting"] = {name: row.get(name) for name in _SETTING}
    values["costs"] = {name: row.get(name) for name in _COSTS}
    try:
        values[_CALIBRATION] = Calibration.model_validate_json(row[_CALIBRATION]) if row[_CALIBRATION] else None
        return RunRecord.model_validate(values | {"evaluations": points})
    except ValidationError as error:
        raise DataError(
            f"runs.csv and evaluations.csv don't give the run {'/'.join(_key(row))}: {explain(error)}"
        ) from None
