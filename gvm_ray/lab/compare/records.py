"""Records of a comparison's runs, as JSON and as CSV files."""

import csv
import io
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import Field, ValidationError, model_validator

from gvm_ray.exceptions import DataError
from gvm_ray.reporting.run_folder import replace_text
from gvm_ray.settings import Count, NonNegative, NonNegativeCount, Probability, Settings
from gvm_ray.types import Float64Array

Phase = Literal["exploration", "confirmation"]

# A name is also the name of a folder.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]


class Setting(Settings):
    """The names that runs must share to be compared arm against arm."""

    family: Name  # of tasks
    base: Name  # checkpoint from which training starts
    training_set: Name
    algorithm: Name

    def __str__(self) -> str:
        return f"{self.family}/{self.base}/{self.training_set}/{self.algorithm}"


class Evaluation(Settings):
    """One point of a learning curve; costs are cumulative, without the evaluations' own."""

    step: NonNegativeCount  # steps done; 0 is the base policy
    updates: NonNegativeCount  # optimizer updates done
    generated_tokens: NonNegativeCount  # including pilots
    charged_tokens: NonNegative  # generated tokens, plus prefilled tokens of candidate prompts at their measured price
    seconds: NonNegative
    prefill_tokens: NonNegativeCount | None = None  # of candidates, in forward passes that only the allocator needs
    prompt_tokens: NonNegativeCount | None = None  # of the requests' prompts; a request's samples share them
    trained_tokens: NonNegativeCount | None = None  # generated tokens of the samples handed to the learner
    accuracy: dict[str, Probability]  # test -> share of correct samples


class RunCosts(Settings):
    """Costs of a whole run; seconds are of the wall clock."""

    generated_tokens: NonNegativeCount = 0  # including pilots
    pilot_tokens: NonNegativeCount = 0  # generated tokens of pilots, sampled before the budget is divided
    prefill_tokens: NonNegativeCount = 0  # of candidate prompts, in forward passes that only the allocator needs
    planning_s: NonNegative = 0.0
    prefill_s: NonNegative = 0.0
    gradient_norms_s: NonNegative = 0.0
    sampling_s: NonNegative = 0.0
    update_s: NonNegative = 0.0

    @property
    def allocation_shares(self) -> dict[str, float]:
        """Shares [0, 1] of allocation in the time outside evaluation, by kind; NaN without times.

        Pilots count as their share of the sampling time by tokens, whether or not they are also trained on.
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
    """Accept rates that an allocator predicted for sampled prompts, compared with the observed ones."""

    brier: NonNegative  # mean squared difference
    predicted: tuple[float, ...]  # [B] mean of each non-empty bin
    observed: tuple[float, ...]  # [B]
    counts: tuple[int, ...]  # [B] prompts


class RunRecord(Settings):
    """One arm in one setting with one seed: its curve and its costs."""

    phase: Phase
    setting: Setting
    arm: Name  # the allocator with its settings
    seed: NonNegativeCount
    status: Literal["finished", "failed"]
    error: str = ""  # of a failed run
    updates_per_batch: Count
    token_budget: Count  # charged tokens after which the run ends
    evaluations: tuple[Evaluation, ...]  # [E] in order; a failed run may have none
    costs: RunCosts
    calibration: Calibration | None = None  # only for an allocator that predicts
    fingerprint: str = ""  # of the settings, so that a run with changed settings is run again
    base_digest: str = ""  # of the base policy's weights, which may differ slightly if built on another machine

    @model_validator(mode="after")
    def _check(self) -> "RunRecord":
        if self.status == "finished" and not self.evaluations:
            raise ValueError("a finished run has at least one evaluation; write status 'failed' for a run without")
        if (self.status == "failed") != bool(self.error):
            raise ValueError(
                f"status {self.status!r} with error {self.error!r}; a failed run, and only a failed run, has an error"
            )
        if len({frozenset(point.accuracy) for point in self.evaluations}) > 1:
            raise ValueError("the evaluations have different tests; every evaluation must have all tests")
        return self

    @property
    def key(self) -> tuple[str, ...]:
        """The unique key of this run; see `run_key`."""
        return run_key(self)

    @property
    def tests(self) -> tuple[str, ...]:
        return tuple(self.evaluations[0].accuracy) if self.evaluations else ()

    def points(self, name: str) -> Float64Array:
        """A count or time at each evaluation [E], by its field's name; NaN where it isn't known."""
        return np.array([getattr(point, name) for point in self.evaluations], dtype=np.float64)

    def accuracy(self, test: str) -> Float64Array:
        """The accuracy on a test at each evaluation [E]."""
        return np.array([point.accuracy[test] for point in self.evaluations], dtype=np.float64)


class Run(Protocol):
    """Protocol of a planned or recorded run: the fields that identify it in a comparison."""

    @property
    def phase(self) -> Phase: ...

    @property
    def setting(self) -> Setting: ...

    @property
    def arm(self) -> str: ...

    @property
    def seed(self) -> int: ...


def run_key(run: Run) -> tuple[str, ...]:
    """The names that identify a run, the phase first and the seed last."""
    setting = run.setting
    return (run.phase, setting.family, setting.base, setting.training_set, setting.algorithm, run.arm, str(run.seed))


def record_path(folder: Path, run: Run) -> Path:
    """The path of a run's record below the folder of records."""
    *names, seed = run_key(run)
    return folder.joinpath(*names, f"{seed}.json")


def write_record(folder: Path, record: RunRecord) -> Path:
    """Write a record as JSON atomically, replacing an earlier record of the same run; returns its path."""
    path = record_path(folder, record)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, record.model_dump_json(indent=1) + "\n")
    return path


def check_distinct(records: Iterable[RunRecord]) -> None:
    """Check that every run has at most one record.

    Raises:
        DataError: two records are of the same run.
    """
    key, count = max(Counter(record.key for record in records).items(), key=lambda item: item[1], default=((), 0))
    if count > 1:
        raise DataError(f"there are {count} records of the run {'/'.join(key)}; keep one of them")


def explain(error: ValidationError) -> str:
    """Format a validation error in one line: each field, and its problem."""
    return "; ".join(
        f"{'.'.join(map(str, item['loc'])) or '(whole record)'}: {item['msg'].removeprefix('Value error, ')}"
        for item in error.errors(include_url=False)
    )


def read_record(path: Path) -> RunRecord:
    """Read the record in a file.

    Raises:
        DataError: the file isn't a record.
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
    """Write `runs.csv`, one row per run, and `evaluations.csv`, one row per evaluation and one column per test; returns
    both paths."""
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
    """Read the records that :func:`write_csv` wrote into a folder, in the same order and with the same numbers.

    Raises:
        DataError: a file is missing, a row isn't a valid run or evaluation, or two rows are of the same run.
    """
    points: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in _read_rows(folder / "evaluations.csv"):
        accuracy = {name.removeprefix(_ACCURACY): row[name] for name in row if name.startswith(_ACCURACY) and row[name]}
        points[_key(row)].append({name: row.get(name) or None for name in _POINT} | {"accuracy": accuracy})
    records = [_record(row, points.pop(_key(row), [])) for row in _read_rows(folder / "runs.csv")]
    check_distinct(records)
    if points:
        raise DataError(
            f"evaluations.csv in {str(folder)!r} has rows of {'/'.join(next(iter(points)))}, but runs.csv has none"
        )
    return records


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format rows as CSV under a header of all columns in order of appearance; a row's missing columns are empty."""
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
            f"runs.csv and evaluations.csv have no valid run {'/'.join(_key(row))}: {explain(error)}"
        ) from None
