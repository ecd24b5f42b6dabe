"""Counts of many prompts in columns, so that a decision over a million of them is a few array operations."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gvm_ray.types import Float64Array

_ROW = np.dtype([("trials", "f8"), ("successes", "f8"), ("gradient_norm", "f8"), ("policy_version", "i8")])
_UNSEEN = np.array((0.0, 0.0, np.nan, -1), dtype=_ROW)


@dataclass(frozen=True, kw_only=True)
class PromptStats:
    """An allocator's memory of one prompt; plain numbers, so it serialises as JSON."""

    trials: float = 0.0
    successes: float = 0.0
    gradient_norm: float | None = None  # G, mean over accepted samples
    policy_version: int = -1  # version of the last samples folded in


class PromptTable:
    """One row for each prompt, the numbers of `PromptStats`; a gradient norm that was never measured is NaN.

    Attributes:
        columns: structured array [rows] with the fields of `PromptStats`, in order of the prompts' first appearance.
    """

    def __init__(self) -> None:
        self._row_of: dict[str, int] = {}
        self.columns = np.empty(0, dtype=_ROW)

    def __len__(self) -> int:
        return len(self._row_of)

    def __contains__(self, prompt_id: str) -> bool:
        return prompt_id in self._row_of

    @property
    def prompt_ids(self) -> tuple[str, ...]:
        """The prompts, in order of their rows."""
        return tuple(self._row_of)

    def rows(self, prompt_ids: Iterable[str]) -> NDArray[np.int64]:
        """Row of each prompt [P]; one that has none yet gets an empty one."""
        row_of = self._row_of
        rows = np.fromiter((row_of.setdefault(prompt_id, len(row_of)) for prompt_id in prompt_ids), dtype=np.int64)
        added = len(row_of) - len(self.columns)
        if added:
            self.columns = np.concatenate([self.columns, np.full(added, _UNSEEN)])
        return rows

    def look_up(self, prompt_ids: Sequence[str]) -> NDArray[np.void]:
        """Copies of the prompts' rows [P], empty ones for prompts that have none."""
        rows = np.array([self._row_of.get(prompt_id, -1) for prompt_id in prompt_ids], dtype=np.int64)
        found = np.full(len(rows), _UNSEEN)
        found[rows >= 0] = self.columns[rows[rows >= 0]]
        return found

    def add(self, other: "PromptTable", *, decay: float | Float64Array = 1.0) -> None:
        """Sum the counts, those before times `decay` (one factor, or one for each row of `other`); a measured gradient
        norm replaces the one before, and the latest policy version stays."""
        rows = self.rows(other._row_of)
        columns = self.columns
        columns["trials"][rows] = decay * columns["trials"][rows] + other.columns["trials"]
        columns["successes"][rows] = decay * columns["successes"][rows] + other.columns["successes"]
        measured = np.isfinite(other.columns["gradient_norm"])
        columns["gradient_norm"][rows[measured]] = other.columns["gradient_norm"][measured]
        columns["policy_version"][rows] = np.maximum(columns["policy_version"][rows], other.columns["policy_version"])

    def get(self, prompt_id: str) -> PromptStats | None:
        """The prompt's row; None where it has none."""
        row = self._row_of.get(prompt_id)
        return None if row is None else _stats(*self.columns[row].item())

    def state_dict(self) -> dict[str, Any]:
        """prompt_id -> the fields of `PromptStats`, as plain JSON values."""
        rows = zip(self._row_of, self.columns.tolist(), strict=True)
        return {prompt_id: vars(_stats(*row)) for prompt_id, row in rows}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "PromptTable":
        """The table that `state_dict` described."""
        table = cls()
        table.rows(state)
        for row, values in enumerate(state.values()):
            stats = PromptStats(**values)
            norm = np.nan if stats.gradient_norm is None else stats.gradient_norm
            table.columns[row] = (stats.trials, stats.successes, norm, stats.policy_version)
        return table


def _stats(trials: float, successes: float, gradient_norm: float, policy_version: int) -> PromptStats:
    return PromptStats(
        trials=trials,
        successes=successes,
        gradient_norm=None if math.isnan(gradient_norm) else gradient_norm,
        policy_version=policy_version,
    )
