"""Gradient variance minimization (arXiv 2505.02391, Algorithm 2): pilots, then samples where they cut variance most."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gvm_ray.allocators.counts import count_metrics, sum_by_prompt
from gvm_ray.allocators.history import PromptHistory
from gvm_ray.config.strategy import GVMAllocatorConfig
from gvm_ray.exceptions import ConfigError
from gvm_ray.functional.allocation import apportion, gvm_weights
from gvm_ray.types import Allocation, Float64Array, GroupOutcome, Metrics, Prompt


@dataclass(frozen=True, kw_only=True)
class _Decision:
    """What was decided for one prompt of a block."""

    prompt_id: str
    num_samples: int  # n_i, the samples to train on: pilots included where they are reused
    remaining: int  # of them, not drawn yet
    accept_rate: float  # p-hat of the pilots
    gradient_norm: float  # G-hat of the pilots


class GVMAllocator:
    """Pilots for a block of steps in its first round; then n_i ~ G_i / sqrt(p_i + alpha / p_i^(beta - 1)).

    The pilots are charged: all that is drawn in a block sums to the steps' budgets. Prompts of the block's later steps
    are decided with the first step, kept in memory, and answered when their step is planned. The split is uniform where
    the pilots say nothing: no accepted one with a gradient norm, or every prompt filtered out.
    """

    def __init__(self, config: GVMAllocatorConfig, *, accept_threshold: float) -> None:
        self._config = config
        self._history = PromptHistory(
            accept_threshold=accept_threshold,
            prior_successes=config.prior_successes,
            prior_failures=config.prior_failures,
        )
        self._block: list[str] = []  # ids of the block's prompts, the present step's first
        self._block_budget = 0
        self._pilots_for = 0  # prompts of the step that waits for the block's pilots; 0 when none does
        self._reserved: dict[str, list[_Decision]] = {}  # for the block's later steps
        self._step: list[_Decision] = []

    def plan(self, prompts: Sequence[Prompt], *, budget: int, upcoming: Sequence[Prompt] = ()) -> Allocation:
        """Pilots for a new block, or what was reserved for these prompts when their block began.

        Raises:
            ConfigError: the budget is too small for the pilots and minima, or too large for the maxima.
        """
        assert prompts, "a step needs at least one prompt"
        ids = [prompt.prompt_id for prompt in prompts]
        if all(len(self._reserved.get(id_, ())) >= count for id_, count in Counter(ids).items()):
            return self._answer([self._reserved[id_].pop(0) for id_ in ids])
        self._block = ids + [prompt.prompt_id for prompt in upcoming]
        self._block_budget = budget * len(self._block) // len(ids)
        self._check_budget()
        self._history.start_block()
        self._pilots_for = len(ids)
        self._reserved = {}
        self._step = []
        pilots = [self._config.pilot_samples] * len(self._block)
        return Allocation(
            counts=sum_by_prompt(self._block, pilots),
            needs_gradient_norms=True,
            trained_on=self._config.reuse_pilots,
        )

    def observe(self, outcomes: Sequence[GroupOutcome]) -> Allocation:
        """After the pilots, the rest of the present step's samples; after those, nothing."""
        self._history.fold(outcomes)
        if not self._pilots_for:
            return Allocation.empty()
        decisions = self._decide()
        for decision in decisions[self._pilots_for :]:
            self._reserved.setdefault(decision.prompt_id, []).append(decision)
        now = decisions[: self._pilots_for]
        self._pilots_for = 0
        return self._answer(now)

    def accept_rates(self, prompt_ids: Sequence[str]) -> dict[str, float]:
        """Posterior means from the pilots and everything seen since, where above 0."""
        return self._history.known_accept_rates(prompt_ids)

    def metrics(self) -> Metrics:
        """`allocation/min|max|zero|total` of the step's n_i, and the means of the pilots' estimates behind them."""
        if not self._step:
            return {}
        return {
            **count_metrics(self._num_samples().values()),
            "allocation/p_hat_mean": float(np.mean([decision.accept_rate for decision in self._step])),
            "allocation/gradient_norm_mean": float(np.mean([decision.gradient_norm for decision in self._step])),
        }

    def histograms(self) -> dict[str, Float64Array]:
        """samples_per_prompt [P] (n_i) and accept_rate [P] (posterior means) of the last step."""
        counts = self._num_samples()
        return {
            "samples_per_prompt": np.array(list(counts.values()), dtype=np.float64),
            "accept_rate": self._history.accept_rates(list(counts)),
        }

    def state_dict(self) -> dict[str, Any]:
        """The memory of every prompt. A block under way isn't part of it: a resumed run begins with new pilots."""
        return self._history.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`'s memory, at the beginning of a block."""
        self._history.load_state_dict(state)
        self._pilots_for = 0
        self._reserved = {}
        self._step = []

    def _decide(self) -> list[_Decision]:
        """The block's allocation from its pilots."""
        config = self._config
        rates = self._history.accept_rates(self._block)
        norms = _fill_unmeasured(self._history.gradient_norms(self._block))
        weights = gvm_weights(rates, norms, alpha=config.alpha, beta=config.beta)
        if config.filter_threshold is not None:
            weights[rates > config.filter_threshold] = 0
        counts = self._split(weights)
        too_few = rates * counts < config.min_expected_accepted
        if too_few.any():
            weights[too_few] = 0
            counts = self._split(weights)
        drawn = config.pilot_samples if config.reuse_pilots else 0
        return [
            _Decision(
                prompt_id=prompt_id,
                num_samples=int(counts[row]),
                remaining=int(counts[row]) - drawn,
                accept_rate=float(rates[row]),
                gradient_norm=float(norms[row]),
            )
            for row, prompt_id in enumerate(self._block)
        ]

    def _split(self, weights: Float64Array) -> np.ndarray:
        """n [P] of the block: all of its budget where the pilots count toward n, what they left of it where not."""
        config = self._config
        if config.reuse_pilots:
            budget, minimum = self._block_budget, max(config.min_samples, config.pilot_samples)
        else:
            budget, minimum = self._block_budget - config.pilot_samples * len(self._block), config.min_samples
        return apportion(weights, budget=budget, minimum=minimum, maximum=config.max_samples)

    def _answer(self, decisions: list[_Decision]) -> Allocation:
        self._step = decisions
        ids = [decision.prompt_id for decision in decisions]
        return Allocation(counts=sum_by_prompt(ids, [decision.remaining for decision in decisions]))

    def _num_samples(self) -> dict[str, int]:
        ids = [decision.prompt_id for decision in self._step]
        return sum_by_prompt(ids, [decision.num_samples for decision in self._step])

    def _check_budget(self) -> None:
        """Refuse before the pilots are paid for."""
        config, num_prompts, budget = self._config, len(self._block), self._block_budget
        pilots = 0 if config.reuse_pilots else config.pilot_samples  # drawn on top of n_i
        least = max(config.min_samples, config.pilot_samples) if config.reuse_pilots else config.min_samples
        if budget < num_prompts * (least + pilots):
            raise ConfigError(
                f"a budget of {budget} samples for {num_prompts} prompts is below the {num_prompts * (least + pilots)} "
                f"that allocator.pilot_samples={config.pilot_samples} and min_samples={config.min_samples} need; "
                "write fewer of them, or a larger samples_per_prompt"
            )
        if config.max_samples is not None and budget > num_prompts * (config.max_samples + pilots):
            raise ConfigError(
                f"a budget of {budget} samples for {num_prompts} prompts can't be spent with "
                f"allocator.max_samples={config.max_samples}; write max_samples={-(-budget // num_prompts)} or more"
            )


def _fill_unmeasured(norms: Float64Array) -> Float64Array:
    """G [P] with the mean of the measured ones where there is none; all 0, which is no signal, if none was measured."""
    measured = np.isfinite(norms)
    return np.where(measured, norms, norms[measured].mean() if measured.any() else 0.0)
