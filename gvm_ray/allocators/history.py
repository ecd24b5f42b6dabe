"""What an allocator remembers of each prompt: over the run, and over the present block of steps."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from gvm_ray.functional.statistics import beta_posterior_mean
from gvm_ray.types import Float64Array, GroupOutcome, PromptStats

_UNSEEN = PromptStats()


class PromptHistory:
    """Counts and gradient norms by prompt: `recent` since the last `start_block`, `all` since the run began.

    The prior is that of the accept rate, Beta(prior_successes, prior_failures).
    """

    def __init__(self, *, accept_threshold: float, prior_successes: float = 0.0, prior_failures: float = 0.0) -> None:
        self._accept_threshold = accept_threshold
        self._prior_successes = prior_successes
        self._prior_failures = prior_failures
        self.recent: dict[str, PromptStats] = {}
        self.all: dict[str, PromptStats] = {}

    def start_block(self) -> None:
        """Forget `recent`."""
        self.recent = {}

    def fold(self, outcomes: Sequence[GroupOutcome]) -> None:
        """Add a round. Several outcomes of one prompt count as one; unscored samples don't count."""
        by_prompt: dict[str, list[GroupOutcome]] = {}
        for outcome in outcomes:
            by_prompt.setdefault(outcome.prompt_id, []).append(outcome)
        for prompt_id, group in by_prompt.items():
            for memory in (self.recent, self.all):
                memory[prompt_id] = self._add(memory.get(prompt_id, _UNSEEN), group)

    def accept_rates(self, prompt_ids: Sequence[str]) -> Float64Array:
        """Posterior means [P] from the block's samples; without any, the prior's mean, or 0."""
        stats = [self.recent.get(prompt_id, _UNSEEN) for prompt_id in prompt_ids]
        return beta_posterior_mean(
            [s.successes for s in stats],
            [s.trials for s in stats],
            prior_successes=self._prior_successes,
            prior_failures=self._prior_failures,
        )

    def known_accept_rates(self, prompt_ids: Sequence[str]) -> dict[str, float]:
        """The accept rates above 0 of the prompts with scored samples in the block."""
        rates = zip(prompt_ids, self.accept_rates(prompt_ids), strict=True)
        return {prompt_id: float(p) for prompt_id, p in rates if p > 0 and self._trials(prompt_id) > 0}

    def gradient_norms(self, prompt_ids: Sequence[str]) -> Float64Array:
        """G [P], the mean norm over accepted samples; NaN where none was measured in the block."""
        norms = [self.recent.get(prompt_id, _UNSEEN).gradient_norm for prompt_id in prompt_ids]
        return np.array([np.nan if norm is None else norm for norm in norms], dtype=np.float64)

    def state_dict(self) -> dict[str, Any]:
        """`all`, as plain JSON values."""
        return {"prompts": {prompt_id: asdict(stats) for prompt_id, stats in self.all.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the memory; what was `recent` is forgotten."""
        self.recent = {}
        self.all = {prompt_id: PromptStats(**stats) for prompt_id, stats in state["prompts"].items()}

    def _trials(self, prompt_id: str) -> float:
        return self.recent.get(prompt_id, _UNSEEN).trials

    def _add(self, stats: PromptStats, group: Sequence[GroupOutcome]) -> PromptStats:
        rewards = np.concatenate([outcome.rewards for outcome in group])
        accepted = rewards >= self._accept_threshold  # False for an unscored NaN
        norms = np.concatenate(
            [np.full(len(o.rewards), np.nan) if o.gradient_norms is None else o.gradient_norms for o in group]
        )
        measured = norms[accepted & np.isfinite(norms)]
        versions = np.concatenate([outcome.policy_versions for outcome in group])
        return PromptStats(
            trials=stats.trials + int(np.isfinite(rewards).sum()),
            successes=stats.successes + int(accepted.sum()),
            gradient_norm=float(measured.mean()) if measured.size else stats.gradient_norm,
            policy_version=max(stats.policy_version, int(versions.max(initial=-1))),
        )
