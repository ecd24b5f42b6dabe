"""Reinforce-Ada-Seq (arXiv 2510.04996): rounds of samples; a prompt continues until it has enough of each class."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gvm_ray.allocators.base import (
    Allocator,
    AllocatorConfig,
    Report,
    Rounds,
    RunShape,
    SmallestGroup,
    Step,
)
from gvm_ray.exceptions import ConfigError
from gvm_ray.maths.allocation import apportion
from gvm_ray.maths.rival_rules import half_of_each_class
from gvm_ray.settings import Count, NonNegativeCount
from gvm_ray.types import BoolArray, GroupOutcome


class ReinforceAdaSeqAllocatorConfig(AllocatorConfig):
    """Reinforce-Ada-Seq (arXiv 2510.04996): rounds of samples; a prompt continues until it has enough of each class.

    enough_negatives = 0 is the paper's "positive" rule; both above 0 is "balance". In the paper, a prompt draws up to
    max_rounds * round_samples samples, and the cost of a step varies. Here a step costs its budget: the last round is
    cut to the remaining budget. If budget remains after the last round, or when every prompt has stopped, it goes
    evenly to the prompts that have not stopped, or else to all. So the samples that a stopped prompt saves go to
    others. Set round_samples below samples_per_prompt to leave room for this (the paper has 8).
    """

    type: Literal["reinforce_ada_seq"] = "reinforce_ada_seq"
    round_samples: Count = 4  # of each prompt that continues, in a round
    max_rounds: Count = 4  # then what is left of the budget is drawn at once
    enough_positives: Count = 2  # accepted samples with which a prompt may stop
    enough_negatives: NonNegativeCount = 2  # rejected samples that it must have too; 0 = none
    kept_samples: Count | None = 4  # samples of a prompt to train on, half of each class; none = all
    pool_baseline: bool = True  # the advantage is r minus the mean reward of all the prompt's samples, kept or not

    def smallest_group(self, run: RunShape) -> SmallestGroup:
        """The first round, after which a prompt may stop; or kept_samples, if only kept samples form the baseline."""
        if self.pool_baseline or self.kept_samples is None or self.round_samples <= self.kept_samples:
            return SmallestGroup(setting="allocator.round_samples", value=self.round_samples)
        return SmallestGroup(setting="allocator.kept_samples", value=self.kept_samples)

    def check_fits(self, run: RunShape) -> None:
        """Check that the first round leaves samples to allocate."""
        if self.round_samples >= run.samples_per_prompt:
            raise ValueError(
                f"allocator.round_samples={self.round_samples} leaves nothing of "
                f"samples_per_prompt={run.samples_per_prompt} to allocate; write "
                f"round_samples={max(1, run.samples_per_prompt // 2)} or a larger samples_per_prompt"
            )

    def build(self, *, accept_threshold: float, seed: int) -> "ReinforceAdaSeqAllocator":
        """Create the strategy."""
        return ReinforceAdaSeqAllocator(self, accept_threshold=accept_threshold)


class ReinforceAdaSeqAllocator(Allocator):
    """Draw `round_samples` of each prompt, and again of each that lacks positives or negatives, within the budget."""

    def __init__(self, settings: ReinforceAdaSeqAllocatorConfig, *, accept_threshold: float) -> None:
        self._settings = settings
        self._accept_threshold = accept_threshold

    def rounds(self, step: Step) -> Rounds:
        """Draw up to `max_rounds` rounds, and one more for the remaining budget.

        Raises:
            ConfigError: the first round exceeds the budget.
        """
        settings = self._settings
        self._check_budget(step.budget, num_prompts=len(step.ids))
        pool = _Pool(accept_threshold=self._accept_threshold)
        left = step.budget
        for number in range(settings.max_rounds + 1):
            drawn = self._next_round(self._unsatisfied(step), left=left, is_last=number == settings.max_rounds)
            left -= int(drawn.sum())
            pool.add((yield step.counts(drawn)))
        return Report(
            baselines=pool.mean_rewards() if settings.pool_baseline else {},
            kept=pool.keep(settings.kept_samples) if settings.kept_samples is not None else None,
            metrics={"allocation/unsatisfied": float(self._unsatisfied(step).sum())},
        )

    def _unsatisfied(self, step: Step) -> BoolArray:
        """[P] True for prompts that lack positives or negatives."""
        successes, trials = step.samples.counts(step.ids)
        settings = self._settings
        return (successes < settings.enough_positives) | (trials - successes < settings.enough_negatives)

    def _next_round(self, unsatisfied: BoolArray, *, left: int, is_last: bool) -> NDArray[np.int64]:
        """Compute n [P] of the next round: all that is left if it is the last, or if every prompt has enough."""
        if is_last or not unsatisfied.any():
            return apportion(unsatisfied, budget=left)
        each = self._settings.round_samples
        return apportion(unsatisfied, budget=min(left, each * int(unsatisfied.sum())), maximum=each)

    def _check_budget(self, budget: int, *, num_prompts: int) -> None:
        each = self._settings.round_samples
        if budget < num_prompts * each:
            raise ConfigError(
                f"a budget of {budget} samples for {num_prompts} prompts is below the {num_prompts * each} of the "
                f"first round; write allocator.round_samples={max(1, budget // num_prompts)} or less"
            )


class _Pool:
    """All scored samples of a step, by prompt."""

    def __init__(self, *, accept_threshold: float) -> None:
        self._accept_threshold = accept_threshold
        self._indices: defaultdict[str, list[int]] = defaultdict(list)
        self._rewards: defaultdict[str, list[float]] = defaultdict(list)

    def add(self, outcomes: Sequence[GroupOutcome]) -> None:
        for outcome in outcomes:
            for row in np.flatnonzero(outcome.scored):
                self._indices[outcome.prompt_id].append(outcome.sample_indices[row])
                self._rewards[outcome.prompt_id].append(float(outcome.rewards[row]))

    def mean_rewards(self) -> dict[str, float]:
        """prompt_id -> mean reward."""
        return {prompt_id: float(np.mean(rewards)) for prompt_id, rewards in self._rewards.items()}

    def keep(self, num_kept: int) -> dict[str, tuple[int, ...]]:
        """prompt_id -> indices of `num_kept` samples, half of each class."""
        return {
            prompt_id: tuple(self._indices[prompt_id][row] for row in self._rows(rewards, num_kept))
            for prompt_id, rewards in self._rewards.items()
        }

    def _rows(self, rewards: Sequence[float], num_kept: int) -> NDArray[np.int64]:
        return half_of_each_class(np.array(rewards) >= self._accept_threshold, num_kept=num_kept)
