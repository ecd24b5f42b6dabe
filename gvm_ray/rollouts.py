"""Book-keeping of a step's rollouts: which samples to ask for next, what came back, what it cost."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from gvm_ray.exceptions import SystemFailure
from gvm_ray.functional.seeds import sample_seed
from gvm_ray.types import Allocation, GroupOutcome, Prompt, SampleRequest


@dataclass(kw_only=True)
class RolloutLedger:
    """Outcomes by prompt until their step trains on them, and the cumulative cost, pilots included.

    A block's pilot round samples prompts of later steps too; their outcomes wait here.
    """

    run_seed: int
    max_unscored_fraction: float
    generated_samples: int = 0
    generated_tokens: int = 0
    num_samples: dict[str, int] = field(default_factory=dict)  # prompt_id -> samples so far, for seeds
    kept: dict[str, list[GroupOutcome]] = field(default_factory=dict)  # prompt_id -> outcomes to train on

    def requests(self, allocation: Allocation, *, prompts: Sequence[Prompt], step: int) -> list[SampleRequest]:
        """One request for each prompt with samples in this round; indices go on where the last round ended."""
        by_id = {prompt.prompt_id: prompt for prompt in prompts}
        requests: list[SampleRequest] = []
        for prompt_id, count in allocation.counts.items():
            if count == 0:
                continue
            first = self.num_samples.get(prompt_id, 0)
            indices = tuple(range(first, first + count))
            seeds = tuple(
                sample_seed(self.run_seed, step=step, prompt_id=prompt_id, sample_index=index) for index in indices
            )
            requests.append(SampleRequest(prompt=by_id[prompt_id], sample_indices=indices, seeds=seeds))
            self.num_samples[prompt_id] = first + count
        return requests

    def record(self, outcomes: Sequence[GroupOutcome], *, trained_on: bool) -> None:
        """Charge a round and keep what will be trained on.

        Raises:
            SystemFailure: more of the round than `max_unscored_fraction` has no reward.
        """
        self.generated_samples += sum(len(outcome.rewards) for outcome in outcomes)
        self.generated_tokens += sum(int(outcome.num_tokens.sum()) for outcome in outcomes)
        self._check_scored(outcomes)
        if trained_on:
            for outcome in outcomes:
                self.kept.setdefault(outcome.prompt_id, []).append(outcome)

    def take(self, prompts: Sequence[Prompt]) -> list[GroupOutcome]:
        """The outcomes to train on for these prompts, which then leave the ledger."""
        for prompt in prompts:
            self.num_samples.pop(prompt.prompt_id, None)
        return [outcome for prompt in prompts for outcome in self.kept.pop(prompt.prompt_id, [])]

    def _check_scored(self, outcomes: Sequence[GroupOutcome]) -> None:
        total = sum(len(outcome.rewards) for outcome in outcomes)
        unscored = total - sum(int(outcome.scored.sum()) for outcome in outcomes)
        if total and unscored / total > self.max_unscored_fraction:
            raise SystemFailure(
                f"{unscored} of {total} samples of one round could not be scored, above "
                f"max_unscored_fraction={self.max_unscored_fraction}: the reward hangs, crashes or needs longer; look "
                "at the reward actors' logs, give it longer with --set rewards.timeout_s=..., or allow more with "
                "--set max_unscored_fraction=..."
            )


def staleness_metrics(outcomes: Sequence[GroupOutcome], *, step: int, max_staleness: int) -> dict[str, float]:
    """`staleness/mean|max`: updates between sampling and training, over all samples of a step.

    Raises:
        SystemFailure: a sample is older than the bound.
    """
    if not outcomes:
        return {"staleness/mean": 0.0, "staleness/max": 0.0}
    staleness = step - np.concatenate([outcome.policy_versions for outcome in outcomes])
    if staleness.max() > max_staleness or staleness.min() < 0:
        raise SystemFailure(
            f"step {step} holds samples of policy versions {step - staleness.max()} to {step - staleness.min()}, "
            f"outside max_staleness={max_staleness}"
        )
    return {"staleness/mean": float(staleness.mean()), "staleness/max": float(staleness.max())}
