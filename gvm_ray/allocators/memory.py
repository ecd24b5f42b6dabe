"""Memory of the samples drawn: counts of every prompt, and the latest groups as rows to learn from."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gvm_ray.maths.statistics import beta_posterior_mean
from gvm_ray.types import Float64Array, GroupOutcome, Prompt, TrainedNorms

_ROW = np.dtype([("trials", "f8"), ("successes", "f8"), ("gradient_norm", "f8")])
_UNSEEN = np.array((0.0, 0.0, np.nan), dtype=_ROW)
_GROUP = np.dtype(
    [
        ("step", "f8"),
        ("trials", "f8"),  # scored samples
        ("successes", "f8"),
        ("accepted_square", "f8"),  # mean squared gradient norm of the accepted samples; NaN if not measured
        ("rejected_square", "f8"),
    ]
)
_USUAL_ROWS, _KEPT_STEPS = 2048, 8  # at a forgetting of 0.9 the groups before 8 steps count less than half


class PromptMemory:
    """Counts for each prompt: scored samples, accepted samples, and the mean gradient norm of accepted samples.

    The driver keeps one memory of the whole run, and one of each step under way. Counts are fractional if earlier
    visits decay. A gradient norm that was never measured is NaN. Arrays [P] are in the order of the requested ids.
    Only prompts with samples are kept: at most the training set, some 160 bytes a prompt with its id.
    """

    def __init__(self) -> None:
        self._row_of: dict[str, int] = {}
        self._room = np.empty(0, dtype=_ROW)  # the rows, then spare ones

    @property
    def _columns(self) -> NDArray[np.void]:
        return self._room[: len(self)]

    @classmethod
    def of(cls, outcomes: Sequence[GroupOutcome], *, accept_threshold: float) -> "PromptMemory":
        """Create the memory of one round. Unscored samples don't count; outcomes of one prompt are merged.

        Args:
            outcomes: the round's outcomes.
            accept_threshold: a sample is accepted when its reward is at least this.
        """
        memory = cls()
        if not outcomes:
            return memory
        rows = np.repeat(memory._rows(o.prompt_id for o in outcomes), [len(o.rewards) for o in outcomes])
        rewards = np.concatenate([outcome.rewards for outcome in outcomes])
        accepted = rewards >= accept_threshold  # False for an unscored NaN
        memory._columns["trials"] = np.bincount(rows, np.isfinite(rewards), minlength=len(memory))
        memory._columns["successes"] = np.bincount(rows, accepted, minlength=len(memory))
        norms = np.concatenate(
            [np.full(len(o.rewards), np.nan) if o.gradient_norms is None else o.gradient_norms for o in outcomes]
        )
        measured = np.flatnonzero(accepted & np.isfinite(norms))
        by_prompt = norms[measured[np.argsort(rows[measured], kind="stable")]]
        num_measured = np.bincount(rows[measured], minlength=len(memory))
        for row, group in enumerate(np.split(by_prompt, np.cumsum(num_measured)[:-1])):
            if group.size:
                memory._columns["gradient_norm"][row] = group.mean()
        return memory

    def __len__(self) -> int:
        return len(self._row_of)

    @property
    def prompt_ids(self) -> tuple[str, ...]:
        """Prompt ids in order of first appearance."""
        return tuple(self._row_of)

    def counts(self, prompt_ids: Sequence[str]) -> tuple[Float64Array, Float64Array]:
        """The numbers of accepted [P] and scored [P] samples; 0 for unseen prompts."""
        found = self._look_up(prompt_ids)
        return found["successes"], found["trials"]

    def accept_rates(
        self, prompt_ids: Sequence[str], *, prior_successes: float = 0.0, prior_failures: float = 0.0
    ) -> Float64Array:
        """Posterior means [P] under a Beta prior; NaN for prompts with neither samples nor a prior."""
        successes, trials = self.counts(prompt_ids)
        rates = beta_posterior_mean(successes, trials, prior_successes=prior_successes, prior_failures=prior_failures)
        rates[trials + prior_successes + prior_failures == 0] = np.nan
        return rates

    def gradient_norms(self, prompt_ids: Sequence[str]) -> Float64Array:
        """G [P] of each prompt's last measured round; NaN if never measured."""
        return self._look_up(prompt_ids)["gradient_norm"]

    def add(self, other: "PromptMemory", *, decay: float | Float64Array = 1.0) -> None:
        """Multiply own counts by `decay` (one factor, or one for each row of `other`), and add the counts of `other`.
        Gradient norms that `other` measured replace own ones."""
        rows = self._rows(other._row_of)
        columns = self._columns
        columns["trials"][rows] = decay * columns["trials"][rows] + other._columns["trials"]
        columns["successes"][rows] = decay * columns["successes"][rows] + other._columns["successes"]
        measured = np.isfinite(other._columns["gradient_norm"])
        columns["gradient_norm"][rows[measured]] = other._columns["gradient_norm"][measured]

    def state_dict(self) -> dict[str, Any]:
        """prompt_id -> [trials, successes, gradient norm or None], as plain JSON values."""
        rows = zip(self._row_of, self._columns.tolist(), strict=True)
        return {prompt_id: [None if value != value else value for value in row] for prompt_id, row in rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the memory by what `state_dict` returned."""
        self._row_of = {prompt_id: row for row, prompt_id in enumerate(state)}
        rows = [tuple(np.nan if value is None else value for value in row) for row in state.values()]
        self._room = np.array(rows, dtype=_ROW)

    def _rows(self, prompt_ids: Iterable[str]) -> NDArray[np.int64]:
        """The row of each prompt [P]; new prompts get an empty row."""
        row_of = self._row_of
        rows = np.fromiter((row_of.setdefault(prompt_id, len(row_of)) for prompt_id in prompt_ids), dtype=np.int64)
        if (missing := len(row_of) - len(self._room)) > 0:
            spare = len(self._room) // 8  # so that a run's steps don't copy everything each time
            self._room = np.concatenate([self._room, np.full(missing + spare, _UNSEEN)])
        return rows

    def _look_up(self, prompt_ids: Sequence[str]) -> NDArray[np.void]:
        """Copies of the prompts' rows [P]; empty rows for unseen prompts."""
        rows = np.array([self._row_of.get(prompt_id, -1) for prompt_id in prompt_ids], dtype=np.int64)
        found = np.full(len(rows), _UNSEEN)
        found[rows >= 0] = self._columns[rows[rows >= 0]]
        return found


class Observations:
    """The latest groups, at most `max_rows`, or if that is None 2048 or those of the latest 8 steps. All rounds of a
    prompt in one step are one group.

    Attributes:
        rows: [N, D] features of each group's prompt.
        columns: structured array [N] of each group's counts and norms.
    """

    def __init__(self, *, accept_threshold: float, max_rows: int | None) -> None:
        self._accept_threshold = accept_threshold
        self._max_rows = max_rows
        self._prompt_ids: list[str] = []
        self.rows: Float64Array = np.zeros((0, 0))
        self.columns = np.zeros(0, dtype=_GROUP)

    @property
    def prompts(self) -> NDArray[np.int64]:
        """[N] number of each group's prompt, by first appearance."""
        numbers: dict[str, int] = {}
        return np.array([numbers.setdefault(id_, len(numbers)) for id_ in self._prompt_ids], dtype=np.int64)

    def add(self, outcomes: Sequence[GroupOutcome], *, features: Mapping[str, Float64Array], step: int) -> None:
        """Add a round; samples without a reward don't count."""
        open_groups = {self._prompt_ids[row]: row for row in np.flatnonzero(self.columns["step"] == step)}
        added: dict[str, np.ndarray] = {}
        for outcome in outcomes:
            if not outcome.scored.any():
                continue
            seen = self._group(outcome, step=step)
            if outcome.prompt_id in open_groups:
                row = open_groups[outcome.prompt_id]
                self.columns[row] = _together(self.columns[row], seen)
            elif outcome.prompt_id in added:
                added[outcome.prompt_id] = _together(added[outcome.prompt_id], seen)
            else:
                added[outcome.prompt_id] = seen
        if added:
            self._append(list(added), np.stack([features[id_] for id_ in added]), np.array(list(added.values())))

    def add_norms(self, norms: Sequence[TrainedNorms]) -> None:
        """Fill in the gradient norms of each prompt's latest group."""
        latest = {prompt_id: row for row, prompt_id in enumerate(self._prompt_ids)}
        squares: dict[tuple[int, str], list[Float64Array]] = {}
        for trained in norms:
            row = latest.get(trained.prompt_id)
            if row is None:
                continue
            for column, chosen in (("accepted_square", trained.positive), ("rejected_square", ~trained.positive)):
                values = trained.norms[chosen & np.isfinite(trained.norms)] ** 2
                squares.setdefault((row, column), []).append(values)
        for (row, column), values in squares.items():
            together = np.concatenate(values)
            if together.size:
                self.columns[column][row] = together.mean()

    def recent_counts(
        self, prompts: Sequence[Prompt], *, forgetting: float, step: int
    ) -> tuple[Float64Array, Float64Array]:
        """Successes and trials [P] of each prompt, weighted by forgetting^age."""
        index = {prompt.prompt_id: row for row, prompt in enumerate(prompts)}
        of_prompt = np.array([index.get(prompt_id, -1) for prompt_id in self._prompt_ids], dtype=np.int64)
        weights = forgetting ** (step - self.columns["step"]).clip(min=0)
        asked = of_prompt >= 0
        counts = np.zeros((2, len(prompts)))
        for row, name in enumerate(("successes", "trials")):
            np.add.at(counts[row], of_prompt[asked], (weights * self.columns[name])[asked])
        return counts[0], counts[1]

    def state_dict(self) -> dict[str, Any]:
        """The groups as plain JSON values. Features, by far the largest part, are base64 of float32."""
        return {
            "prompt_ids": list(self._prompt_ids),
            "num_features": self.rows.shape[1],
            "features": base64.b64encode(self.rows.astype("<f4").tobytes()).decode("ascii"),
            "columns": [[None if value != value else value for value in row] for row in self.columns.tolist()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the groups by what `state_dict` returned."""
        self._prompt_ids = list(state["prompt_ids"])
        values = np.frombuffer(base64.b64decode(state["features"]), dtype="<f4").astype(np.float64)
        self.rows = values.reshape(len(self._prompt_ids), state["num_features"])
        rows = [tuple(np.nan if value is None else value for value in row) for row in state["columns"]]
        self.columns = np.array(rows, dtype=_GROUP)

    def _group(self, outcome: GroupOutcome, *, step: int) -> np.ndarray:
        scored = outcome.scored
        successes = float((outcome.rewards >= self._accept_threshold).sum())
        return np.array((step, scored.sum(), successes, np.nan, np.nan), dtype=_GROUP)

    def _append(self, prompt_ids: list[str], rows: Float64Array, columns: np.ndarray) -> None:
        rows = rows.astype(np.float32).astype(np.float64)  # as in a checkpoint, so that a resumed run gets the same
        if self.rows.shape[1] != rows.shape[1]:
            self.rows = np.zeros((0, rows.shape[1]))
            self._prompt_ids, self.columns = [], self.columns[:0]
        columns = np.concatenate([self.columns, columns])
        kept = self._max_rows
        if kept is None:
            recent = np.isin(columns["step"], np.unique(columns["step"])[-_KEPT_STEPS:])
            kept = max(_USUAL_ROWS, int(recent.sum()))
        first = max(len(columns) - kept, 0)
        self._prompt_ids = (self._prompt_ids + prompt_ids)[first:]
        self.rows = np.concatenate([self.rows, rows])[first:]
        self.columns = columns[first:]


def _together(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Merge two rounds of one group."""
    both = first.copy()
    both["trials"] = first["trials"] + second["trials"]
    both["successes"] = first["successes"] + second["successes"]
    return both
