"""What an allocator remembers of each prompt: over the run, and over one step or block of steps."""

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gvm_ray.allocators.prompt_table import PromptTable
from gvm_ray.functional.statistics import beta_posterior_mean
from gvm_ray.types import Allocation, Float64Array, GroupOutcome


class PromptHistory:
    """Counts and gradient norms by prompt since the run began, in `all`; `start_step` gives a step its own.

    The prior is that of a step's accept rates, Beta(prior_successes, prior_failures). At each new visit of a prompt its
    earlier counts in `all` are multiplied by `decay`: 1 forgets nothing, 0 all but the last visit.
    """

    def __init__(
        self, *, accept_threshold: float, prior_successes: float = 0.0, prior_failures: float = 0.0, decay: float = 1.0
    ) -> None:
        self._accept_threshold = accept_threshold
        self._prior_successes = prior_successes
        self._prior_failures = prior_failures
        self._decay = decay
        self.all = PromptTable()

    def accept_rates(
        self, prompt_ids: Sequence[str], *, prior_successes: float = 0.0, prior_failures: float = 0.0
    ) -> Float64Array:
        """Posterior means [P] of all that was seen of these prompts; NaN where neither samples nor the prior tell."""
        seen = self.all.look_up(prompt_ids)
        rates = beta_posterior_mean(
            seen["successes"], seen["trials"], prior_successes=prior_successes, prior_failures=prior_failures
        )
        rates[seen["trials"] + prior_successes + prior_failures == 0] = np.nan
        return rates

    def sample_once(self, counts: Mapping[str, int]) -> Generator[Allocation, Sequence[GroupOutcome], "StepHistory"]:
        """One round with these samples, prompt_id -> n; returns what it saw of them, in their order."""
        samples = self.start_step(list(counts))
        samples.fold((yield Allocation(counts=counts)))
        return samples

    def start_step(self, prompt_ids: Sequence[str]) -> "StepHistory":
        """An empty memory of these prompts, for one step or for a block of steps that shares one allocation."""
        return StepHistory(self, prompt_ids)

    def state_dict(self) -> dict[str, Any]:
        """`all`, as plain JSON values."""
        return {"prompts": self.all.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the memory."""
        self.all = PromptTable.from_state_dict(state["prompts"])

    def _posterior_means(self, table: PromptTable, rows: NDArray[np.int64]) -> Float64Array:
        return beta_posterior_mean(
            table.columns["successes"][rows],
            table.columns["trials"][rows],
            prior_successes=self._prior_successes,
            prior_failures=self._prior_failures,
        )


class StepHistory:
    """What one step (or block of steps) saw of its prompts. Steps that overlap have one each, so none disturbs another.

    Its arrays [P] are aligned with the `prompt_ids` it was started with; one that stands twice has its numbers twice.
    """

    def __init__(self, history: PromptHistory, prompt_ids: Sequence[str]) -> None:
        self._history = history
        self._table = PromptTable()
        self._rows = self._table.rows(prompt_ids)

    def fold(self, outcomes: Sequence[GroupOutcome]) -> None:
        """Add a round, here and to the run's memory. Unscored samples don't count."""
        history = self._history
        seen = _count_round(outcomes, accept_threshold=history._accept_threshold)
        rows = self._table.rows(seen.prompt_ids)
        first_seen = (seen.columns["trials"] > 0) & (self._table.columns["trials"][rows] == 0)
        self._table.add(seen)
        history.all.add(seen, decay=np.where(first_seen, history._decay, 1.0))

    def counts(self) -> tuple[Float64Array, Float64Array]:
        """Successes [P] and scored samples [P]."""
        return self._table.columns["successes"][self._rows], self._table.columns["trials"][self._rows]

    def accept_rates(self) -> Float64Array:
        """Posterior means [P]; without samples, the prior's mean, or 0."""
        return self._history._posterior_means(self._table, self._rows)

    def gradient_norms(self) -> Float64Array:
        """G [P], the mean norm over a round's accepted samples; NaN where none was measured."""
        return self._table.columns["gradient_norm"][self._rows]


def sample_indices(outcomes: Sequence[GroupOutcome]) -> dict[str, tuple[int, ...]]:
    """prompt_id -> indices of its samples in a round."""
    indices: dict[str, tuple[int, ...]] = {}
    for outcome in outcomes:
        indices[outcome.prompt_id] = (*indices.get(outcome.prompt_id, ()), *outcome.sample_indices)
    return indices


def _count_round(outcomes: Sequence[GroupOutcome], *, accept_threshold: float) -> PromptTable:
    """One row for each prompt of the round; several outcomes of one prompt are one group."""
    table = PromptTable()
    if not outcomes:
        return table
    rows = np.repeat(table.rows(outcome.prompt_id for outcome in outcomes), [len(o.rewards) for o in outcomes])
    rewards = np.concatenate([outcome.rewards for outcome in outcomes])
    accepted = rewards >= accept_threshold  # False for an unscored NaN
    table.columns["trials"] = np.bincount(rows, np.isfinite(rewards), minlength=len(table))
    table.columns["successes"] = np.bincount(rows, accepted, minlength=len(table))
    versions = np.concatenate([outcome.policy_versions for outcome in outcomes])
    np.maximum.at(table.columns["policy_version"], rows, versions)
    norms = np.concatenate(
        [np.full(len(o.rewards), np.nan) if o.gradient_norms is None else o.gradient_norms for o in outcomes]
    )
    measured = np.flatnonzero(accepted & np.isfinite(norms))
    by_prompt = norms[measured[np.argsort(rows[measured], kind="stable")]]
    num_measured = np.bincount(rows[measured], minlength=len(table))
    for row, group in enumerate(np.split(by_prompt, np.cumsum(num_measured)[:-1])):
        if group.size:
            table.columns["gradient_norm"][row] = group.mean()
    return table
