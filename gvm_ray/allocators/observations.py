"""The latest groups of a run as rows: a prompt's features when it was sampled, and what came of it."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gvm_ray.types import Float64Array, GroupOutcome, Prompt, TrainedNorms

_GROUP = np.dtype(
    [
        ("step", "f8"),
        ("trials", "f8"),  # scored samples
        ("successes", "f8"),
        ("num_tokens", "f8"),  # mean of a response
        ("accepted_square", "f8"),  # mean squared gradient norm of the accepted samples; NaN where not measured
        ("rejected_square", "f8"),
    ]
)


class Observations:
    """At most `max_rows` groups, the latest; a prompt's rounds of one step are one group.

    Attributes:
        rows: [N, D] features of each group's prompt.
        columns: structured array [N] of what was seen.
    """

    def __init__(self, *, accept_threshold: float, max_rows: int) -> None:
        self._accept_threshold = accept_threshold
        self._max_rows = max_rows
        self._prompt_ids: list[str] = []
        self.rows: Float64Array = np.zeros((0, 0))
        self.columns = np.zeros(0, dtype=_GROUP)

    def add(self, outcomes: Sequence[GroupOutcome], *, features: Mapping[str, Float64Array], step: int) -> None:
        """Fold a round in; samples without a reward don't count."""
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
        """Successes and trials [P] of each prompt itself, weighted by forgetting^age."""
        index = {prompt.prompt_id: row for row, prompt in enumerate(prompts)}
        of_prompt = np.array([index.get(prompt_id, -1) for prompt_id in self._prompt_ids], dtype=np.int64)
        weights = forgetting ** (step - self.columns["step"]).clip(min=0)
        asked = of_prompt >= 0
        counts = np.zeros((2, len(prompts)))
        for row, name in enumerate(("successes", "trials")):
            np.add.at(counts[row], of_prompt[asked], (weights * self.columns[name])[asked])
        return counts[0], counts[1]

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values; the features as base64 of float32, for they are by far the most."""
        return {
            "prompt_ids": list(self._prompt_ids),
            "num_features": self.rows.shape[1],
            "features": base64.b64encode(self.rows.astype("<f4").tobytes()).decode("ascii"),
            "columns": [[None if value != value else value for value in row] for row in self.columns.tolist()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace everything by what `state_dict` described."""
        self._prompt_ids = list(state["prompt_ids"])
        values = np.frombuffer(base64.b64decode(state["features"]), dtype="<f4").astype(np.float64)
        self.rows = values.reshape(len(self._prompt_ids), state["num_features"])
        rows = [tuple(np.nan if value is None else value for value in row) for row in state["columns"]]
        self.columns = np.array(rows, dtype=_GROUP)

    def _group(self, outcome: GroupOutcome, *, step: int) -> np.ndarray:
        scored = outcome.scored
        successes = float((outcome.rewards >= self._accept_threshold).sum())
        tokens = float(outcome.num_tokens[scored].mean())
        return np.array((step, scored.sum(), successes, tokens, np.nan, np.nan), dtype=_GROUP)

    def _append(self, prompt_ids: list[str], rows: Float64Array, columns: np.ndarray) -> None:
        rows = rows.astype(np.float32).astype(np.float64)  # as a checkpoint keeps them, so that a resumed run agrees
        if self.rows.shape[1] != rows.shape[1]:
            self.rows = np.zeros((0, rows.shape[1]))
            self._prompt_ids, self.columns = [], self.columns[:0]
        first = max(len(self._prompt_ids) + len(prompt_ids) - self._max_rows, 0)
        self._prompt_ids = (self._prompt_ids + prompt_ids)[first:]
        self.rows = np.concatenate([self.rows, rows])[first:]
        self.columns = np.concatenate([self.columns, columns])[first:]


def _together(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Two rounds of one group."""
    both = first.copy()
    trials = first["trials"] + second["trials"]
    both["num_tokens"] = (first["trials"] * first["num_tokens"] + second["trials"] * second["num_tokens"]) / trials
    both["trials"], both["successes"] = trials, first["successes"] + second["successes"]
    return both
