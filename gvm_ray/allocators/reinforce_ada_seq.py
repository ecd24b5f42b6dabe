"""Reinforce-Ada-Seq (arXiv 2510.04996): sample a prompt round after round until it has seen enough of each class."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gvm_ray.allocators.counts import report_counts
from gvm_ray.allocators.history import PromptHistory, StepHistory
from gvm_ray.config.history_allocators import ReinforceAdaSeqAllocatorConfig
from gvm_ray.exceptions import ConfigError
from gvm_ray.functional.allocation import apportion
from gvm_ray.functional.history_allocation import half_of_each_class
from gvm_ray.protocols import Rounds
from gvm_ray.types import Allocation, BoolArray, EstimatorTerms, FloatArray, GroupOutcome, Prompt


class ReinforceAdaSeqAllocator:
    """`round_samples` each, then as many again of every prompt that lacks positives or negatives, within the budget."""

    def __init__(self, config: ReinforceAdaSeqAllocatorConfig, *, accept_threshold: float) -> None:
        self._config = config
        self._accept_threshold = accept_threshold
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
        """Up to `max_rounds` rounds, and one more for what is left of the budget then.

        Raises:
            ConfigError: the first round is above the budget.
        """
        ids = list(dict.fromkeys(prompt.prompt_id for prompt in prompts))
        self._check_budget(budget, num_prompts=len(ids))
        samples = self._history.start_step(ids)
        pool = _Pool(accept_threshold=self._accept_threshold)
        num_samples = np.zeros(len(ids), dtype=np.int64)
        for number in range(self._config.max_rounds + 1):
            is_last = number == self._config.max_rounds
            drawn = self._next_round(self._unsatisfied(samples), left=budget - int(num_samples.sum()), is_last=is_last)
            outcomes = yield Allocation(counts=dict(zip(ids, drawn.tolist(), strict=True)))
            num_samples += drawn
            samples.fold(outcomes)
            pool.add(outcomes)
        config = self._config
        terms = EstimatorTerms(
            num_prompts=len(ids),
            baselines=pool.mean_rewards() if config.pool_baseline else {},
            kept=pool.keep(config.kept_samples) if config.kept_samples is not None else {},
        )
        counts = dict(zip(ids, num_samples.tolist(), strict=True))
        return report_counts(
            counts,
            accept_rates=samples.accept_rates(),
            estimator=terms,
            estimates={"allocation/unsatisfied": float(self._unsatisfied(samples).sum())},
        )

    def state_dict(self) -> dict[str, Any]:
        """The counts of every prompt seen; nothing is decided by them."""
        return self._history.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`'s memory."""
        self._history.load_state_dict(state)

    def _unsatisfied(self, samples: StepHistory) -> BoolArray:
        """[P] True where a prompt lacks positives or negatives."""
        successes, trials = samples.counts()
        config = self._config
        return (successes < config.enough_positives) | (trials - successes < config.enough_negatives)

    def _next_round(self, unsatisfied: BoolArray, *, left: int, is_last: bool) -> NDArray[np.int64]:
        """n [P] of the next round: all that is left where it is the last, or where no prompt needs another."""
        if is_last or not unsatisfied.any():
            return apportion(unsatisfied, budget=left)
        each = self._config.round_samples
        return apportion(unsatisfied, budget=min(left, each * int(unsatisfied.sum())), maximum=each)

    def _check_budget(self, budget: int, *, num_prompts: int) -> None:
        each = self._config.round_samples
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
        """prompt_id -> indices of that many samples, half of each class."""
        return {
            prompt_id: tuple(self._indices[prompt_id][row] for row in self._rows(rewards, num_kept))
            for prompt_id, rewards in self._rewards.items()
        }

    def _rows(self, rewards: Sequence[float], num_kept: int) -> NDArray[np.int64]:
        return half_of_each_class(np.array(rewards) >= self._accept_threshold, num_kept=num_kept)
