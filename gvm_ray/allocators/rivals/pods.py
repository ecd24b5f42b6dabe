"""PODS (arXiv 2504.13818): many samples of every prompt; training keeps those with the most varied rewards."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from gvm_ray.allocators.base import (
    Allocator,
    AllocatorConfig,
    GroupSize,
    Report,
    Rounds,
    RunShape,
    SmallestGroup,
    Step,
)
from gvm_ray.allocators.selection import even_counts
from gvm_ray.maths.rival_rules import max_variance_subset
from gvm_ray.types import GroupOutcome


class PODSAllocatorConfig(AllocatorConfig):
    """PODS (arXiv 2504.13818): equal groups, trained on the subset of each whose rewards have the largest variance.

    All samples are charged. Advantages are computed within the kept subset, as if the other samples didn't exist.
    """

    type: Literal["pods"] = "pods"
    kept_samples: GroupSize = 4  # m

    def smallest_group(self, run: RunShape) -> SmallestGroup:
        """The number of samples kept of a group."""
        return SmallestGroup(setting="allocator.kept_samples", value=self.kept_samples)

    def check_fits(self, run: RunShape) -> None:
        """Check that fewer samples are kept than drawn."""
        if self.kept_samples >= run.samples_per_prompt:
            raise ValueError(
                f"allocator.kept_samples={self.kept_samples} keeps all of samples_per_prompt={run.samples_per_prompt}; "
                f"write fewer, or samples_per_prompt={4 * self.kept_samples}"
            )

    def build(self, *, accept_threshold: float, seed: int) -> "PODSAllocator":
        """Create the strategy."""
        return PODSAllocator(self)


class PODSAllocator(Allocator):
    """Draw equal groups, and keep `kept_samples` of each: the subset with the largest reward variance."""

    def __init__(self, settings: PODSAllocatorConfig) -> None:
        self._settings = settings

    def rounds(self, step: Step) -> Rounds:
        """Spend the whole budget in one round."""
        outcomes = yield even_counts(step.ids, step.budget)
        return Report(kept=self._kept(outcomes))

    def _kept(self, outcomes: Sequence[GroupOutcome]) -> dict[str, tuple[int, ...]]:
        """prompt_id -> indices of the samples to train on, for prompts with more than `kept_samples` scored samples."""
        scored: defaultdict[str, dict[int, float]] = defaultdict(dict)  # prompt_id -> sample index -> reward
        for outcome in outcomes:
            rewards = zip(outcome.sample_indices, outcome.rewards.tolist(), strict=True)
            scored[outcome.prompt_id] |= {index: reward for index, reward in rewards if np.isfinite(reward)}
        return {
            prompt_id: tuple(list(rewards)[row] for row in self._subset(rewards))
            for prompt_id, rewards in scored.items()
            if len(rewards) > self._settings.kept_samples
        }

    def _subset(self, rewards: Mapping[int, float]) -> Sequence[int]:
        return max_variance_subset(list(rewards.values()), size=self._settings.kept_samples).tolist()
