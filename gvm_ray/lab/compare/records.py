"""Records of a comparison's runs, as JSON and as CSV files."""

import csv
import io
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import Field, ValidationError, model_validator

from gvm_ray.exceptions import DataError
from gvm_ray.settings import Count, NonNegative, NonNegativeCount, Probability, Settings
from gvm_ray.types import Float64Array

Phase = Literal["exploration", "confirmation"]
Cost = Literal["charged_tokens", "generated_tokens", "updates", "seconds"]

# A name is also the name of a folder.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]


class Setting(Settings):
    """What runs must share to be compared arm against arm."""

    family: Name  # of tasks
    base: Name  # checkpoint that training starts from
    training_set: Name
    algorithm: Name

    def __str__(self) -> str:
        return f"{self.family}/{self.base}/{self.training_set}/{self.algorithm}"


class Evaluation(Settings):
    """One point of a learning curve; costs are cumulative, the evaluations' own left out."""

    step: NonNegativeCount  # steps done; 0 is the base policy
    updates: NonNegativeCount  # optimizer updates made
    generated_tokens: NonNegativeCount  # pilots included
    charged_tokens: NonNegative  # generated tokens, and those of prefilled candidate prompts at their measured price
    seconds: NonNegative
    accuracy: dict[str, Probability]  # test -> share of correct samples


class RunCosts(Settings):
    """What a whole run spent; seconds are of the wall clock."""

    generated_tokens: NonNegativeCount = 0  # pilots included
    pilot_tokens: NonNegativeCount = 0  # of them, sampled to learn about prompts before the budget is divided
    prefill_tokens: NonNegativeCount = 0  # of candidate prompts, in forward passes that only the allocator asked for
    planning_s: NonNegative = 0.0
    prefill_s: NonNegative = 0.0
    gradient_norms_s: NonNegative = 0.0
    sampling_s: NonNegative = 0.0
    update_s: NonNegative = 0.0

    @property
    def allocation_shares(self) -> dict[str, float]:
        """Shares [0, 1] of the time outside evaluation that deciding who gets samples took; NaN without times.

        Pilots take their share of the sampling by tokens, whether or not they are trained on as well.
        """
        total = self.planning_s + self.prefill_s + self.gradient_norms_s + self.sampling_s + self.update_s
        pilots_s = self.sampling_s * self.pilot_tokens / max(self.generated_tokens, 1)
        spent = {
            "pilots": pilots_s,
            "prefill": self.prefill_s,
            "gradient_norms": self.gradient_norms_s,
            "planning": self.planning_s,
        }
        return {name: s / total if total else math.nan for name, s in spent.items()}


class Calibration(Settings):
    """Accept rates that an allocator expected of the prompts it sampled, against those observed."""

    brier: NonNegative  # mean squared difference
    predicted: tuple[float, ...]  # [B] mean of each bin that isn't empty
    observed: tuple[float, ...]  # [B]
    counts: tuple[int, ...]  # [B] prompts


class RunRecord(Settings):
    """One arm in one setting with one seed: its curve and its costs."""

    phase: Phase
    setting: Setting
    arm: Name  # the allocator and what belongs to it
    seed: NonNegativeCount
    status: Literal["finished", "failed"]
    error: str = ""  # of a failed run
    updates_per_batch: Count
    token_budget: Count  # charged tokens after which the run ends
    evaluations: tuple[Evaluation, ...]  # [E] in order; a failed run may have none
    costs: RunCosts
    calibration: Calibration | None = None  # of an allocator that predicts
    fingerprint: str = ""  # of the settings, so that a changed run is run again
    base_digest: str = ""  # of the base policy's weights, which another machine may have built a little differently

    @model_validator(mode="after")
    def _check(self) -> "RunRecord":
        if self.status == "finished" and not self.evaluations:
            raise ValueError("a finished run has at least one evaluation; write status 'failed' for one without")
        if (self.status == "failed") != bool(self.error):
            raise ValueError(
                f"status {self.status!r} with error {self.error!r}; a failed run, and only that, has an error"
            )
        if len({frozenset(point.accuracy) for point in self.evaluations}) > 1:
            raise ValueError("the evaluations are of different tests; every evaluation has every test")
        return self

    @property
    def key(self) -> tuple[str, ...]:
        """What tells this run from all others."""
        return run_key(self)

    @property
    def tests(self) -> tuple[str, ...]:
        return tuple(self.evaluations[0].accuracy) if self.evaluations else ()

    def spent(self, cost: Cost) -> Float64Array:
        """[E] a cumulative cost at each evaluation."""
        return np.array([getattr(point, cost) for point in self.evaluations], dtype=np.float64)

    def accuracy(self, test: str) -> Float64Array:
        """[E] accuracy on a test at each evaluation."""
        return np.array([point.accuracy[test] for point in self.evaluations], dtype=np.float64)


class Run(Protocol):
    """What tells a run from all others of a comparison, be it planned or recorded."""

    @property
    def phase(self) -> Phase: ...

    @property
    def setting(self) -> Setting: ...

    @property
    def arm(self) -> str: ...

    @property
    def seed(self) -> int: ...


def run_key(run: Run) -> tuple[str, ...]:
    """The names that tell a run from all others, the phase first and the seed last."""
    setting = run.setting
    return (run.phase, setting.family, setting.base, setting.training_set, setting.algorithm, run.arm, str(run.seed))


def record_path(folder: Path, run: Run) -> Path:
    """Where a run's record lies below the folder of a comparison."""
    *names, seed = run_key(run)
    return folder.joinpath(*names, f"{seed}.json")


def write_record(folder: Path, record: RunRecord) -> Path:
    """Write a record as JSON, whole or not at all, replacing an earlier one of the same run; returns its path."""
    path = record_path(folder, record)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, record.model_dump_json(indent=1) + "\n")
    return path


def check_distinct(records: Iterable[RunRecord]) -> None:
    """Every run at most once.

    Raises:
        DataError: two records are of the same run.
    """
    key, count = max(Counter(record.key for record in records).items(), key=lambda item: item[1], default=((), 0))
    if count > 1:
        raise DataError(f"there are {count} records of the run {'/'.join(key)}; keep one of them")


def explain(error: ValidationError) -> str:
    """What is wrong with which field, in one line."""
    return "; ".join(
        f"{'.'.join(map(str, item['loc'])) or '(whole record)'}: {item['msg'].removeprefix('Value error, ')}"
        for item in error.errors(include_url=False)
    )


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: whoever reads it meets the old text or the new one."""
    incomplete = path.with_name(path.name + ".incomplete")
    incomplete.write_text(text, encoding="utf-8")
    os.replace(incomplete, path)


def read_record(path: Path) -> RunRecord:
    """The record in a file.

    Raises:
        DataError: it is none.
    """
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(f"{str(path)!r} is not a record of a run: {explain(error)}") from None


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
