"""PODS (arXiv 2504.13818): many samples of every prompt, of which those with the most varied rewards are trained on."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gvm_ray.allocators.history import PromptHistory
from gvm_ray.allocators.selection import even_counts, report_selection, unique_ids
from gvm_ray.config.selecting_allocators import PODSAllocatorConfig
from gvm_ray.functional.filtering import max_variance_subset
from gvm_ray.protocols import Rounds
from gvm_ray.types import Allocation, FloatArray, GroupOutcome, Prompt


class PODSAllocator:
    """Equal groups, and `kept_samples` of each: the subset of largest reward variance."""

    def __init__(self, config: PODSAllocatorConfig, *, accept_threshold: float) -> None:
        self._config = config
        self._history = PromptHistory(accept_threshold=accept_threshold)

    def rounds(
        self,
        prompts: Sequence[Prompt],
        *,
        step: int,
        budget: int,
        upcoming: Sequence[Prompt] = (),
        states: FloatArray | None = None,
    ) -> Rounds:
        """One round with the whole budget."""
        ids = unique_ids(prompts)
        counts = even_counts(ids, budget)
        outcomes = yield Allocation(counts=counts)
        samples = self._history.start_step(ids)
        samples.fold(outcomes)
        return report_selection(samples, ids, counts, kept=self._kept(outcomes))

    def state_dict(self) -> dict[str, Any]:
        """The counts of every prompt seen."""
        return self._history.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`'s memory."""
        self._history.load_state_dict(state)

    def _kept(self, outcomes: Sequence[GroupOutcome]) -> dict[str, tuple[int, ...]]:
        """prompt_id -> sample indices to train on, of the prompts with more scored samples than are kept."""
        scored: defaultdict[str, dict[int, float]] = defaultdict(dict)  # prompt_id -> sample index -> reward
        for outcome in outcomes:
            rewards = zip(outcome.sample_indices, outcome.rewards.tolist(), strict=True)
            scored[outcome.prompt_id] |= {index: reward for index, reward in rewards if np.isfinite(reward)}
        return {
            prompt_id: tuple(list(rewards)[row] for row in self._subset(rewards))
            for prompt_id, rewards in scored.items()
            if len(rewards) > self._config.kept_samples
        }

    def _subset(self, rewards: Mapping[int, float]) -> Sequence[int]:
        return max_variance_subset(list(rewards.values()), size=self._config.kept_samples).tolist()
