"""Gradient variance minimization (arXiv 2505.02391, Algorithm 2): pilots first, then the allocation from them."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from gvm_ray.allocators.base import (
    Allocator,
    AllocatorConfig,
    Needs,
    Report,
    Rounds,
    RunShape,
    SmallestGroup,
    Step,
    check_bounds,
)
from gvm_ray.allocators.memory import PromptMemory
from gvm_ray.allocators.selection import sample_indices
from gvm_ray.exceptions import ConfigError
from gvm_ray.maths.allocation import apportion, gvm_weights
from gvm_ray.maths.statistics import divisible_rates
from gvm_ray.settings import Count, NonNegative, NonNegativeCount, Positive
from gvm_ray.types import Allocation, Counts, Float64Array

_MAX_OPEN_BLOCKS = 16


class GVMAllocatorConfig(AllocatorConfig):
    """Gradient variance minimization (arXiv 2505.02391): pilots, then n ~ G / sqrt(p + alpha / p^(beta - 1)).

    With weighting = "inverse", pilots only estimate p and are left out of the sum, so a prompt whose n_i samples are
    all pilots adds nothing. Set min_samples above pilot_samples (above 0 with reuse_pilots = false) to give every
    prompt a sample in the sum.
    """

    type: Literal["gvm"] = "gvm"
    pilot_samples: Count = 4  # N', drawn for every prompt first; part of the budget
    alpha: Positive = 1e-3  # larger: fewer samples for prompts that are hardly ever solved
    beta: Annotated[float, Field(ge=2)] = 2.0  # larger: the same, more sharply as p falls
    block_steps: Count = 1  # k steps share one pilot round
    reuse_pilots: bool = True  # train on the pilots too; false = as published
    gradient_parameters: Literal["embed_tokens", "lm_head"] = "embed_tokens"  # either means the shared matrix, if tied
    prior_successes: NonNegative = 0.5  # Beta prior of the accept rate; 0 and 0 = as published (p=0 gives n=0)
    prior_failures: NonNegative = 0.5  # as prior_successes, of rejected samples
    min_samples: NonNegativeCount = 0  # of every prompt, also of those that would get none
    max_samples: Count | None = None  # of a prompt, at least samples_per_prompt; none = no bound
    filter_threshold: Annotated[float, Field(gt=0, le=1)] | None = None  # a prompt with a higher accept rate gets none
    min_expected_accepted: NonNegative = 0.0  # a prompt expected to yield fewer accepted samples gets none

    @model_validator(mode="after")
    def _bounds(self) -> "GVMAllocatorConfig":
        if self.max_samples is not None and self.max_samples < self.min_samples:
            raise ValueError(
                f"max_samples={self.max_samples} is below min_samples={self.min_samples}; "
                f"write max_samples={self.min_samples} or more"
            )
        return self

    @property
    def knows_accept_rates(self) -> bool:
        """True: the pilots estimate them."""
        return True

    def needs(self, run: RunShape) -> Needs:
        """The step's prompts, gradient norms of pilots, and blocks of steps."""
        return Needs(
            candidates=run.prompts_per_step, pilot_norms=self.gradient_parameters, block_steps=self.block_steps
        )

    def smallest_group(self, run: RunShape) -> SmallestGroup:
        """The larger of min_samples and the pilots, if pilots are reused; else min_samples."""
        if self.reuse_pilots and self.pilot_samples >= self.min_samples:
            return SmallestGroup(setting="allocator.pilot_samples", value=self.pilot_samples)
        return SmallestGroup(setting="allocator.min_samples", value=self.min_samples)

    def check_fits(self, run: RunShape) -> None:
        """Check that pilots leave samples to allocate, that the bounds admit the mean, and that pilots stay fresh."""
        n = run.samples_per_prompt
        if self.pilot_samples >= n:
            raise ValueError(
                f"allocator.pilot_samples={self.pilot_samples} leaves nothing of samples_per_prompt={n} to allocate; "
                f"write pilot_samples={max(1, n // 2)} or a larger samples_per_prompt"
            )
        check_bounds(self.min_samples, self.max_samples, run)
        if self.reuse_pilots and self.block_steps - 1 > run.max_staleness:
            raise ValueError(
                f"allocator.block_steps={self.block_steps} with reuse_pilots trains on pilots up to "
                f"{self.block_steps - 1} updates old, but max_staleness={run.max_staleness}; "
                f"write max_staleness={self.block_steps - 1}, or reuse_pilots=false"
            )
        if run.checkpoint_every_steps % self.block_steps:
            raise ValueError(
                f"checkpoint.every_steps={run.checkpoint_every_steps} is not a multiple of "
                f"allocator.block_steps={self.block_steps}; write e.g. {self.block_steps * 10}"
            )

    def build(self, *, accept_threshold: float, seed: int) -> "GVMAllocator":
        """Create the strategy."""
        return GVMAllocator(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Shares:
    """The allocation of Q prompts of a block, each [Q]."""

    num_samples: NDArray[np.int64]  # n_i, the samples to train on, including reused pilots
    remaining: NDArray[np.int64]  # samples of n_i still to be drawn after the pilots
    accept_rates: Float64Array  # p-hat of the pilots
    gradient_norms: Float64Array  # G-hat of the pilots

    def at(self, rows: slice | list[int]) -> "_Shares":
        """The shares in some rows."""
        return _Shares(
            num_samples=self.num_samples[rows],
            remaining=self.remaining[rows],
            accept_rates=self.accept_rates[rows],
            gradient_norms=self.gradient_norms[rows],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Block:
    """Pilots and shares of a block, made by its first step for the later ones."""

    pilots: PromptMemory
    indices: dict[str, tuple[int, ...]]  # prompt_id -> sample indices of its pilots
    shares: _Shares  # of all its prompts
    waiting: dict[str, int]  # prompt_id -> its row in the shares, until a step takes it


class GVMAllocator(Allocator):
    """Draw pilots for a block of steps in its first round; then give n_i ~ G_i / sqrt(p_i + alpha / p_i^(beta - 1)).

    Pilots are charged: all samples drawn in a block sum to the budgets of its steps. The first step decides the shares
    of the whole block; later steps take theirs when they are planned. The split is uniform if the pilots carry no
    signal: no accepted pilot has a gradient norm, or every prompt is filtered out.

    Blocks may overlap: another block may begin before the last step of this one is planned. The 16 latest unfinished
    blocks are kept; prompts of a dropped block begin with pilots again.
    """

    def __init__(self, settings: GVMAllocatorConfig) -> None:
        self._settings = settings
        self._open_blocks: deque[_Block] = deque(maxlen=_MAX_OPEN_BLOCKS)

    def rounds(self, step: Step) -> Rounds:
        """Draw pilots if the step begins a block, then the samples that its block allotted to the step's prompts.

        Raises:
            ConfigError: the budget is too small for the pilots and minima, or too large for the maxima.
        """
        block = self._waiting_block(step.ids)
        if block is None:
            own = set(step.ids) if step.upcoming else ()
            later = [prompt.prompt_id for prompt in step.upcoming if prompt.prompt_id not in own]
            ids = step.ids + later
            budget = step.budget * len(ids) // len(step.ids)
            self._check_budget(budget, num_prompts=len(ids))
            outcomes = yield Allocation(
                counts=Counts(ids, np.full(len(ids), self._settings.pilot_samples)),
                needs_gradient_norms=True,
                trained_on=self._settings.reuse_pilots,
            )
            shares = self._decide(ids, step.samples, budget)
            waiting = dict(zip(later, range(len(step.ids), len(ids)), strict=True))
            block = _Block(pilots=step.samples, indices=sample_indices(outcomes), shares=shares, waiting=waiting)
            self._open_blocks.append(block)
            shares = shares.at(slice(len(step.ids)))
        else:
            step.samples.add(block.pilots)
            shares = block.shares.at([block.waiting.pop(prompt_id) for prompt_id in step.ids])
        if not block.waiting:
            self._open_blocks.remove(block)
        yield step.counts(shares.remaining)
        return Report(
            counts=step.counts(shares.num_samples),
            num_prompts=len(step.ids),
            accept_rates=dict(zip(step.ids, self._divisors(shares), strict=True)),
            pilots={prompt_id: block.indices.get(prompt_id, ()) for prompt_id in step.ids},
            histograms={"accept_rate": self._accept_rates(step.ids, step.samples)},
            metrics={
                "allocation/p_hat_mean": float(np.mean(shares.accept_rates)),
                "allocation/gradient_norm_mean": float(np.mean(shares.gradient_norms)),
            },
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Drop all blocks: checkpoints don't hold blocks under way, and a resumed run begins with new pilots."""
        self._open_blocks.clear()

    def _waiting_block(self, prompt_ids: Sequence[str]) -> _Block | None:
        """The oldest block that still holds shares for all these prompts."""
        return next((block for block in self._open_blocks if block.waiting.keys() >= set(prompt_ids)), None)

    def _accept_rates(self, prompt_ids: Sequence[str], samples: PromptMemory) -> Float64Array:
        """Posterior means [P]; without samples the prior's mean, and without a prior 0."""
        settings = self._settings
        rates = samples.accept_rates(
            prompt_ids, prior_successes=settings.prior_successes, prior_failures=settings.prior_failures
        )
        return np.nan_to_num(rates, nan=0.0)

    def _divisors(self, shares: _Shares) -> list[float]:
        """p-hat of the pilots, raised above 0 to divide by."""
        return divisible_rates(shares.accept_rates, self._settings.pilot_samples).tolist()

    def _decide(self, prompt_ids: Sequence[str], pilots: PromptMemory, budget: int) -> _Shares:
        """Compute the block's allocation from its pilots."""
        settings = self._settings
        rates = self._accept_rates(prompt_ids, pilots)
        norms = _fill_unmeasured(pilots.gradient_norms(prompt_ids))
        weights = gvm_weights(rates, norms, alpha=settings.alpha, beta=settings.beta)
        if settings.filter_threshold is not None:
            weights[rates > settings.filter_threshold] = 0
        sizes = self._split(weights, budget)
        too_few = rates * sizes < settings.min_expected_accepted
        if too_few.any():
            weights[too_few] = 0
            sizes = self._split(weights, budget)
        remaining = sizes - settings.pilot_samples if settings.reuse_pilots else sizes
        return _Shares(num_samples=sizes, remaining=remaining, accept_rates=rates, gradient_norms=norms)

    def _split(self, weights: Float64Array, budget: int) -> NDArray[np.int64]:
        """Compute n [P] of the block from its whole budget if pilots count toward n, else from what they left of it."""
        settings = self._settings
        if settings.reuse_pilots:
            minimum = max(settings.min_samples, settings.pilot_samples)
        else:
            budget, minimum = budget - settings.pilot_samples * len(weights), settings.min_samples
        return apportion(weights, budget=budget, minimum=minimum, maximum=settings.max_samples)

    def _check_budget(self, budget: int, *, num_prompts: int) -> None:
        """Reject an impossible budget before pilots are paid for."""
        settings = self._settings
        pilots = 0 if settings.reuse_pilots else settings.pilot_samples  # drawn on top of n_i
        least = max(settings.min_samples, settings.pilot_samples) if settings.reuse_pilots else settings.min_samples
        if budget < num_prompts * (least + pilots):
            raise ConfigError(
                f"a budget of {budget} samples for {num_prompts} prompts is below the {num_prompts * (least + pilots)} "
                f"that allocator.pilot_samples={settings.pilot_samples} and min_samples={settings.min_samples} need; "
                "lower them, or write a larger samples_per_prompt"
            )
        if settings.max_samples is not None and budget > num_prompts * (settings.max_samples + pilots):
            raise ConfigError(
                f"a budget of {budget} samples for {num_prompts} prompts can't be spent with "
                f"allocator.max_samples={settings.max_samples}; write max_samples={-(-budget // num_prompts)} or more"
            )


def _fill_unmeasured(norms: Float64Array) -> Float64Array:
    """G [P], with the measured prompts' mean for unmeasured prompts; all 0, meaning no signal, if none was measured."""
    measured = np.isfinite(norms)
    return np.where(measured, norms, norms[measured].mean() if measured.any() else 0.0)
