"""Bookkeeping of a step's rollouts: the next requests, the outcomes, and their costs."""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gvm_ray.exceptions import ActorFailure, DeadlineExceeded, SystemFailure
from gvm_ray.types import (
    Allocation,
    Float64Array,
    GroupOutcome,
    Histograms,
    Prompt,
    RolloutGroup,
    SampleRank,
    SampleRequest,
    SampleText,
    TrainBatch,
    TrainedNorms,
    UpdateResult,
    sample_seed,
)

logger = logging.getLogger(__name__)

Fetch = Callable[[Sequence[GroupOutcome]], Awaitable[list[RolloutGroup]]]
_UNSCORED = {  # reason -> what happened, and what to do
    "timeout": "the reward took too long; give it longer with --set rewards.timeout_s=...",
    "memory": "the reward needed too much memory; give it more with --set rewards.memory_mb=...",
    "crash": "the reward's process died; correct the reward",
    "error": "the reward raised an error, or returned no finite number; correct it",
}
_DECILES = np.linspace(0, 1, 11)


@dataclass(kw_only=True)
class RolloutLedger:
    """Outcomes of a block of steps, by prompt, until they are trained on; and their costs, including pilots.

    A block's pilot round also samples prompts of later steps; their outcomes wait here.
    """

    run_seed: int
    max_unscored_fraction: float
    costs: Counter[str] = field(default_factory=Counter)  # since the last take_costs
    num_samples: dict[str, int] = field(default_factory=dict)  # prompt_id -> number of samples so far, for seeds
    kept: dict[str, list[GroupOutcome]] = field(default_factory=dict)  # prompt_id -> outcomes to train on

    def requests(self, allocation: Allocation, *, prompts: Sequence[Prompt], step: int) -> list[SampleRequest]:
        """One request for each prompt with samples in this round; indices continue from the last round."""
        by_id = {prompt.prompt_id: prompt for prompt in prompts}
        return [self._request(by_id[prompt_id], count=count, step=step) for prompt_id, count in allocation.sampled()]

    def refill(
        self, outcomes: Sequence[GroupOutcome], requests: Sequence[SampleRequest], *, step: int
    ) -> list[SampleRequest]:
        """Requests that replace the samples without a reward, which are charged and dropped; once per round.

        Raises:
            SystemFailure: the fraction of the round without a reward is above `max_unscored_fraction`.
        """
        self._check_scored(outcomes)
        prompts = {request.prompt.prompt_id: request.prompt for request in requests}
        dropped: Counter[str] = Counter()
        for outcome in outcomes:
            dropped[outcome.prompt_id] += int((~outcome.scored).sum())
        self.costs["cost/refilled_samples"] += dropped.total()
        return [
            self._request(prompts[prompt_id], count=count, step=step) for prompt_id, count in dropped.items() if count
        ]

    def record(self, outcomes: Sequence[GroupOutcome], allocation: Allocation) -> None:
        """Charge a round, and keep its outcomes if they will be trained on."""
        num_tokens = sum(int(outcome.num_tokens.sum()) for outcome in outcomes)
        self.costs["cost/generated_samples"] += sum(len(outcome.rewards) for outcome in outcomes)
        self.costs["cost/generated_tokens"] += num_tokens
        if allocation.is_pilot:
            self.costs["cost/pilot_tokens"] += num_tokens
        if allocation.trained_on:
            for outcome in outcomes:
                self.kept.setdefault(outcome.prompt_id, []).append(outcome)

    def charge_prefill(self, num_tokens: int) -> None:
        """Charge prompt tokens that were run through the model only for the allocator."""
        if num_tokens:
            self.costs["cost/prefill_tokens"] += num_tokens

    def take(self, prompts: Sequence[Prompt]) -> list[GroupOutcome]:
        """Remove and return the outcomes to train on for these prompts."""
        for prompt in prompts:
            self.num_samples.pop(prompt.prompt_id, None)
        outcomes = [outcome for prompt in prompts for outcome in self.kept.pop(prompt.prompt_id, [])]
        self.costs["cost/trained_tokens"] += sum(int(outcome.num_tokens.sum()) for outcome in outcomes)
        return outcomes

    def take_costs(self) -> dict[str, float]:
        """The costs since the last call: `cost/generated_samples|generated_tokens|pilot_tokens|refilled_samples|
        prefill_tokens|prompt_tokens|trained_tokens`; a request's samples share their prompt's tokens."""
        costs, self.costs = self.costs, Counter()
        return {name: float(value) for name, value in costs.items()}

    def _request(self, prompt: Prompt, *, count: int, step: int) -> SampleRequest:
        """A request for `count` more samples of a prompt."""
        first = self.num_samples.get(prompt.prompt_id, 0)
        self.num_samples[prompt.prompt_id] = first + count
        self.costs["cost/prompt_tokens"] += len(prompt.token_ids)
        indices = tuple(range(first, first + count))
        seeds = tuple(
            sample_seed(self.run_seed, step=step, prompt_id=prompt.prompt_id, sample_index=index) for index in indices
        )
        return SampleRequest(prompt=prompt, sample_indices=indices, seeds=seeds)

    def _check_scored(self, outcomes: Sequence[GroupOutcome]) -> None:
        total = sum(len(outcome.rewards) for outcome in outcomes)
        unscored = total - sum(int(outcome.scored.sum()) for outcome in outcomes)
        if total and unscored / total > self.max_unscored_fraction:
            raise SystemFailure(
                f"{unscored} of {total} samples of one round could not be scored, above "
                f"max_unscored_fraction={self.max_unscored_fraction}: {_why_unscored(outcomes)}; the reward actors' "
                "logs have the details; or allow more with --set max_unscored_fraction=..."
            )


def _why_unscored(outcomes: Sequence[GroupOutcome]) -> str:
    """The most frequent reason, and its remedy."""
    reasons = sum((Counter(outcome.unscored) for outcome in outcomes), Counter[str]())
    if not reasons:
        return "the reward fails"
    ((reason, count),) = reasons.most_common(1)
    return f"{_UNSCORED[reason]} ({count} of them)"


def trained_norms(batch: TrainBatch, result: UpdateResult) -> list[TrainedNorms]:
    """The gradient norms measured in training, by prompt; empty if they weren't measured."""
    if not result.gradient_norms:
        return []
    trained = []
    for group, measured in zip(batch.groups, result.gradient_norms, strict=True):
        sizes = np.abs(group.advantages)
        norms = np.divide(measured, sizes, out=np.full_like(measured, np.nan), where=sizes > 0)
        trained.append(TrainedNorms(prompt_id=group.prompt_id, positive=group.advantages > 0, norms=norms))
    return trained


def staleness_metrics(outcomes: Sequence[GroupOutcome], *, step: int, max_staleness: int) -> dict[str, float]:
    """`staleness/mean|max`: updates between sampling and training of a step's samples, by their oldest tokens.

    Raises:
        SystemFailure: a token is older than `max_staleness`.
    """
    if not outcomes:
        return {"staleness/mean": 0.0, "staleness/max": 0.0}
    staleness = step - np.concatenate([outcome.policy_versions for outcome in outcomes])
    if staleness.max() > max_staleness or staleness.min() < 0:
        raise SystemFailure(
            f"step {step} holds tokens of policy versions {step - staleness.max()} to {step - staleness.min()}, "
            f"outside max_staleness={max_staleness}"
        )
    return {"staleness/mean": float(staleness.mean()), "staleness/max": float(staleness.max())}


def turn_metrics(outcomes: Sequence[GroupOutcome]) -> dict[str, float]:
    """`turns/mean|max`: turns of the policy in a step's samples; empty if all have one."""
    turns = [outcome.num_turns for outcome in outcomes if outcome.num_turns is not None]
    if not turns:
        return {}
    num_samples = sum(len(outcome.rewards) for outcome in outcomes)
    more = sum(int((t - 1).sum()) for t in turns)
    return {"turns/mean": 1 + more / num_samples, "turns/max": float(max(t.max() for t in turns))}


def sample_histograms(outcomes: Sequence[GroupOutcome]) -> Histograms:
    """`reward_deciles` and `length_deciles` of a step's samples: minimum, nine deciles and maximum [11], each a value
    that occurs.

    Their size doesn't grow with the step's. Empty if no sample has a reward.
    """
    rewards = np.concatenate([np.zeros(0), *(outcome.rewards[outcome.scored] for outcome in outcomes)])
    if not rewards.size:
        return {}
    lengths: Float64Array = np.concatenate([outcome.num_tokens for outcome in outcomes]).astype(np.float64)
    samples = {"reward_deciles": rewards, "length_deciles": lengths}
    return {
        name: np.quantile(values, _DECILES, method="inverted_cdf").astype(np.float64)
        for name, values in samples.items()
    }


@dataclass(frozen=True, kw_only=True)
class SampleTexts:
    """Texts of the best and the worst response, every `every_steps` steps."""

    every_steps: int = 0  # 0 = none
    fetch: Fetch | None = None

    async def of(self, outcomes: Sequence[GroupOutcome], *, step: int) -> tuple[SampleText, ...]:
        """The texts of a step's best and worst sample by reward; with equal rewards, of the first and the last.

        Empty if the step isn't due, or if the data is lost: texts aren't worth the recovery that training does.
        """
        if not self.every_steps or step % self.every_steps or self.fetch is None:
            return ()
        chosen = _best_and_worst(outcomes)
        try:
            groups = await self.fetch([outcome for _, outcome, _ in chosen])
        except (ActorFailure, DeadlineExceeded) as error:
            logger.warning("step %d has no sample texts: %s", step, error)
            return ()
        return tuple(
            _sample_text(rank, outcome, group, index)
            for (rank, outcome, index), group in zip(chosen, groups, strict=True)
        )


def _best_and_worst(outcomes: Sequence[GroupOutcome]) -> list[tuple[SampleRank, GroupOutcome, int]]:
    """The best and the worst sample, with their indices in the outcomes; one or none if fewer have a reward."""
    scored = [(outcome, index) for outcome in outcomes for index in np.flatnonzero(outcome.scored).tolist()]
    if not scored:
        return []
    best = max(scored, key=lambda sample: sample[0].rewards[sample[1]])
    worst = min(reversed(scored), key=lambda sample: sample[0].rewards[sample[1]])
    return [("best", *best)] if len(scored) == 1 else [("best", *best), ("worst", *worst)]


def _sample_text(rank: SampleRank, outcome: GroupOutcome, group: RolloutGroup, index: int) -> SampleText:
    return SampleText(
        rank=rank,
        prompt_id=outcome.prompt_id,
        prompt=group.prompt.text,
        completion=group.texts[index],
        answer=group.prompt.answer,
        reward=float(outcome.rewards[index]),
        num_tokens=int(outcome.num_tokens[index]),
        truncated=bool(outcome.truncated[index]),
        policy_version=int(outcome.policy_versions[index]),
    )
