"""Reader of a run's folder for reports; the run may still be under way."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gvm_ray.exceptions import DataError
from gvm_ray.reporting.run_folder import RunFolder, parse_json, read_rows, read_steps
from gvm_ray.types import Float64Array

_QUIET_S = 600.0  # a run without a summary has ended early if there was no step for this long ...
_QUIET_STEPS = 5  # ... and for this many times its longest step


@dataclass(frozen=True, kw_only=True, eq=False)
class RunData:
    """The contents of one run's files; missing files are empty or None."""

    name: str  # unique within the report
    config: Mapping[str, Any]  # nested, resolved
    rows: Sequence[Mapping[str, Any]]  # of metrics.jsonl
    arrays: Sequence[Mapping[str, Any]]  # of histograms.jsonl
    samples: Sequence[Mapping[str, Any]]  # of samples.jsonl
    summary: Mapping[str, Any] | None
    base_accuracy: float | None
    quiet_s: float  # since the last step was written

    @classmethod
    def read(cls, folder: RunFolder) -> "RunData":
        """Read the run in a folder.

        Raises:
            DataError: a file is damaged.
        """
        evaluation = _read_json(folder.base_evaluation) or {}
        written = folder.metrics.stat().st_mtime if folder.metrics.exists() else math.inf
        return cls(
            name=folder.path.resolve().name,
            config=_read_json(folder.config) or {},
            rows=_read_rows(folder.metrics, read=read_steps),
            arrays=_read_rows(folder.histograms),
            samples=_read_rows(folder.samples),
            summary=_read_json(folder.summary),
            base_accuracy=evaluation.get("eval/accuracy"),
            quiet_s=max(0.0, time.time() - written) if math.isfinite(written) else math.inf,
        )

    @property
    def num_steps(self) -> int:
        """The number of completed steps."""
        return int(self.rows[-1]["step"]) + 1 if self.rows else 0

    @property
    def status(self) -> str:
        """The status: `finished`, `under way` or `ended early`. The time since the last step decides the last two."""
        if self.summary is not None and self.summary.get("num_steps", 0) >= self.num_steps:
            return "finished"
        longest = max(np.diff(self.column("time_s"), prepend=0.0), default=0.0)
        return "under way" if self.quiet_s <= max(_QUIET_S, _QUIET_STEPS * longest) else "ended early"

    def column(self, name: str) -> Float64Array:
        """Values [S] of a metric by step; NaN if a step lacks it or it wasn't finite."""
        return np.array([row.get(name) for row in self.rows], dtype=np.float64)

    def last(self, name: str) -> float | None:
        """The newest finite value of a metric."""
        finite = self.column(name)
        finite = finite[np.isfinite(finite)]
        return float(finite[-1]) if finite.size else None

    def rows_of(self, *names: str) -> list[list[Float64Array]]:
        """The named arrays of each step that has all of them, in this order; null becomes NaN."""
        return [
            [np.array(row[name], dtype=np.float64) for name in names] for row in self.arrays if set(names) <= row.keys()
        ]


def read_runs(folders: Sequence[Path]) -> list[RunData]:
    """Read runs in order; runs with the same name are named by their folders.

    Raises:
        DataError: a file of a run is damaged.
    """
    runs = [RunData.read(RunFolder(path)) for path in folders]
    names = [run.name for run in runs]
    return [
        replace(run, name=str(path)) if names.count(run.name) > 1 else run
        for run, path in zip(runs, folders, strict=True)
    ]


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path, error) from error
    if not isinstance(values, dict):
        raise _damaged(path, "it holds no JSON object")
    return values


def _read_rows(path: Path, *, read: Callable[[Path], list[dict[str, Any]]] = read_rows) -> list[dict[str, Any]]:
    try:
        return read(path)
    except (ValueError, KeyError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, cause: object) -> DataError:
    return DataError(f"{str(path)!r} is damaged ({cause}); move it away to make the report without it")
