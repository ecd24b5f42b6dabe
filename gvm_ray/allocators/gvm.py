"""Gradient variance minimization (arXiv 2505.02391, Algorithm 2): pilots, then samples where they cut variance most."""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gvm_ray.allocators.counts import report_counts, sum_by_prompt
from gvm_ray.allocators.history import PromptHistory, StepHistory, sample_indices
from gvm_ray.config.allocators import GVMAllocatorConfig
from gvm_ray.exceptions import ConfigError
from gvm_ray.functional.allocation import apportion, gvm_weights
from gvm_ray.functional.statistics import divisible_rates
from gvm_ray.protocols import Rounds
from gvm_ray.types import Allocation, AllocationReport, EstimatorTerms, Float64Array, FloatArray, Prompt

_MAX_OPEN_BLOCKS = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class _Block:
    """What was decided for the prompts of a block [P], the first step's first."""

    samples: StepHistory
    num_samples: NDArray[np.int64]  # n_i, the samples to train on: pilots included where they are reused
    remaining: NDArray[np.int64]  # of them, not drawn with the pilots
    accept_rates: Float64Array  # p-hat of the pilots
    divisors: Float64Array  # p-hat, none of them 0
    gradient_norms: Float64Array  # G-hat of the pilots
    pilots: dict[str, tuple[int, ...]]  # prompt_id -> indices of its pilots, until a step trains on them
    reserved: dict[str, list[int]]  # prompt_id -> its rows that no step has taken yet

    def take(self, prompt_ids: Sequence[str]) -> list[int] | None:
        """The rows of a later step's prompts, which are then taken; None where they aren't all reserved here."""
        if any(len(self.reserved.get(id_, ())) < count for id_, count in Counter(prompt_ids).items()):
            return None
        return [self.reserved[id_].pop(0) for id_ in prompt_ids]


class GVMAllocator:
    """Pilots for a block of steps in its first round; then n_i ~ G_i / sqrt(p_i + alpha / p_i^(beta - 1)).

    The pilots are charged: all that is drawn in a block sums to the steps' budgets. Prompts of the block's later steps
    are decided with the first step, kept in memory, and answered when their step is planned. The split is uniform where
    the pilots say nothing: no accepted one with a gradient norm, or every prompt filtered out.

    Other blocks may begin before one's last step is planned. Of the blocks that wait for a later step, the 16 latest
    are kept; the prompts of one that is dropped begin with pilots again.
    """

    def __init__(self, config: GVMAllocatorConfig, *, accept_threshold: float) -> None:
        self._config = config
        self._history = PromptHistory(
            accept_threshold=accept_threshold,
            prior_successes=config.prior_successes,
            prior_failures=config.prior_failures,
        )
        self._open_blocks: deque[_Block] = deque(maxlen=_MAX_OPEN_BLOCKS)

    def rounds(
        self,
        prompts: Sequence[Prompt],
        *,
        step: int,
        budget: int,
        upcoming: Sequence[Prompt] = (),
        states: FloatArray | None = None,
    ) -> Rounds:
        """Pilots for a new block, then the step's n_i; at once what was reserved for these prompts by their block.

        Raises:
            ConfigError: the budget is too small for the pilots and minima, or too large for the maxima.
        """
        assert prompts, "a step needs at least one prompt"
        ids = [prompt.prompt_id for prompt in prompts]
        reserved = self._take_reserved(ids)
        if reserved is None:
            block_ids = ids + [prompt.prompt_id for prompt in upcoming]
            block_budget = budget * len(block_ids) // len(ids)
            self._check_budget(block_budget, num_prompts=len(block_ids))
            outcomes = yield Allocation(
                counts=sum_by_prompt(block_ids, np.full(len(block_ids), self._config.pilot_samples)),
                needs_gradient_norms=True,
                trained_on=self._config.reuse_pilots,
            )
            samples = self._history.start_step(block_ids)
            samples.fold(outcomes)
            block, rows = self._decide(samples, block_budget, pilots=sample_indices(outcomes)), np.arange(len(ids))
            self._reserve(block, block_ids, first=len(ids))
        else:
            block, rows = reserved
        outcomes = yield Allocation(counts=sum_by_prompt(ids, block.remaining[rows]))
        block.samples.fold(outcomes)
        return _report(block, ids, rows)

    def state_dict(self) -> dict[str, Any]:
        """The memory of every prompt. A block under way isn't part of it: a resumed run begins with new pilots."""
        return self._history.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`'s memory, at the beginning of a block."""
        self._history.load_state_dict(state)
        self._open_blocks.clear()

    def _decide(self, samples: StepHistory, budget: int, *, pilots: dict[str, tuple[int, ...]]) -> _Block:
        """The block's allocation from its pilots."""
        config = self._config
        rates = samples.accept_rates()
        norms = _fill_unmeasured(samples.gradient_norms())
        weights = gvm_weights(rates, norms, alpha=config.alpha, beta=config.beta)
        if config.filter_threshold is not None:
            weights[rates > config.filter_threshold] = 0
        counts = self._split(weights, budget)
        too_few = rates * counts < config.min_expected_accepted
        if too_few.any():
            weights[too_few] = 0
            counts = self._split(weights, budget)
        return _Block(
            samples=samples,
            num_samples=counts,
            remaining=counts - config.pilot_samples if config.reuse_pilots else counts,
            accept_rates=rates,
            divisors=divisible_rates(rates, config.pilot_samples),
            gradient_norms=norms,
            pilots=pilots,
            reserved={},
        )

    def _split(self, weights: Float64Array, budget: int) -> NDArray[np.int64]:
        """n [P] of the block: all of its budget where the pilots count toward n, what they left of it where not."""
        config = self._config
        if config.reuse_pilots:
            minimum = max(config.min_samples, config.pilot_samples)
        else:
            budget, minimum = budget - config.pilot_samples * len(weights), config.min_samples
        return apportion(weights, budget=budget, minimum=minimum, maximum=config.max_samples)

    def _reserve(self, block: _Block, prompt_ids: Sequence[str], *, first: int) -> None:
        """Keep the rows from `first` on for the block's later steps."""
        for row in range(first, len(prompt_ids)):
            block.reserved.setdefault(prompt_ids[row], []).append(row)
        if block.reserved:
            self._open_blocks.append(block)

    def _take_reserved(self, prompt_ids: Sequence[str]) -> tuple[_Block, NDArray[np.int64]] | None:
        """The block that reserved decisions for these prompts, and their rows in it; the oldest where several did."""
        for block in self._open_blocks:
            rows = block.take(prompt_ids)
            if rows is not None:
                if not any(block.reserved.values()):
                    self._open_blocks.remove(block)
                return block, np.array(rows)
        return None

    def _check_budget(self, budget: int, *, num_prompts: int) -> None:
        """Refuse before the pilots are paid for."""
        config = self._config
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


def _report(block: _Block, prompt_ids: Sequence[str], rows: NDArray[np.int64]) -> AllocationReport:
    """The step's n_i and posterior means, and the means of the pilots' estimates behind them."""
    rates = dict(zip(prompt_ids, block.samples.accept_rates()[rows], strict=True))  # one for each prompt
    return report_counts(
        sum_by_prompt(prompt_ids, block.num_samples[rows]),
        accept_rates=np.array(list(rates.values()), dtype=np.float64),
        estimator=EstimatorTerms(
            num_prompts=len(prompt_ids),
            accept_rates=dict(zip(prompt_ids, block.divisors[rows].tolist(), strict=True)),
            pilots={prompt_id: block.pilots.pop(prompt_id, ()) for prompt_id in rates},
        ),
        estimates={
            "allocation/p_hat_mean": float(block.accept_rates[rows].mean()),
            "allocation/gradient_norm_mean": float(block.gradient_norms[rows].mean()),
        },
    )


def _fill_unmeasured(norms: Float64Array) -> Float64Array:
    """G [P] with the mean of the measured ones where there is none; all 0, which is no signal, if none was measured."""
    measured = np.isfinite(norms)
    return np.where(measured, norms, norms[measured].mean() if measured.any() else 0.0)
