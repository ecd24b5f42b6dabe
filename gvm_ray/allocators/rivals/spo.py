"""SPO (arXiv 2509.13232) as SPO++ (arXiv 2608.24870): one sample a prompt, with a tracked value as its baseline."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from gvm_ray.allocators.base import Allocator, AllocatorConfig, Needs, Report, Rounds, RunShape, Step
from gvm_ray.allocators.selection import even_counts, rewards_by_prompt
from gvm_ray.maths.rival_rules import draw_by_uncertainty
from gvm_ray.settings import Count, NonNegative, NonNegativeCount
from gvm_ray.types import Allocation, Float64Array, GroupOutcome, IndexArray

_WHOLE_SET = 2**14  # prompts that are all shown in every step, in a few milliseconds
_COLD = (0.5, 0.5)  # alpha and beta of a prompt without samples


class SPOAllocatorConfig(AllocatorConfig):
    """SPO (arXiv 2509.13232) as SPO++ (arXiv 2608.24870): one sample a prompt, whose tracked value is the baseline.

    Each prompt has alpha and beta, which begin at 1/2, and the value v = alpha / (alpha + beta). Prompts are drawn
    without replacement, with probability ~ sqrt(v (1 - v)) + exploration, and the advantage is r - v. Then alpha is set
    to decay alpha + r, and beta to decay beta + 1 - r, for rewards in [0, 1]; several samples in one step decay them
    once. Published with `algorithm.advantage_normalization`: "samples" is SPO's, "tokens" SPO++'s.

    SPO's decay follows the KL divergence of the prompt's last response, for which it takes further passes; SPO++'s is
    constant. Without `offline_samples` all values begin at 1/2. With them a prompt is measured when it is first drawn,
    within the step's budget and not for training: from the sum s of n rewards, alpha = n (s + 1/2) / (n + 1) and beta =
    n (n - s + 1/2) / (n + 1). SPO draws 8 of every prompt before training, and doesn't count them.
    """

    type: Literal["spo"] = "spo"
    # Prompts to draw from; none = the whole training set, up to 16,384 prompts, at no charge. As many as samples in a
    # step: every prompt of the step gets one, a uniform choice with tracked baselines.
    candidates_per_step: Count | None = None
    decay: Annotated[float, Field(gt=0, le=1)] = 0.875  # rho, at each visit; 1 forgets nothing
    exploration: NonNegative = 0.05  # added to each prompt's weight in the draw
    offline_samples: NonNegativeCount = 0  # n of the first measurement, 8 in SPO; 0 = none

    def needs(self, run: RunShape) -> Needs:
        """Prompts to draw from."""
        return Needs(
            candidates=self.candidates_per_step or max(_WHOLE_SET, run.prompts_per_step * run.samples_per_prompt)
        )

    def smallest_group(self, run: RunShape) -> None:
        """None: a single sample has the tracked value to compare with."""
        return

    def check_fits(self, run: RunShape) -> None:
        """Check that there is a prompt for every sample, and that a step can measure and sample a prompt."""
        budget = run.prompts_per_step * run.samples_per_prompt
        if self.candidates_per_step is not None and self.candidates_per_step < budget:
            raise ValueError(
                f"allocator.candidates_per_step={self.candidates_per_step} is below the step's budget of {budget} "
                f"samples, one a prompt; write {budget} or more, or leave it out"
            )
        if self.offline_samples >= budget:
            raise ValueError(
                f"allocator.offline_samples={self.offline_samples} leaves nothing of the step's budget of {budget} "
                f"samples to train on; write {min(8, budget - 1)} or less"
            )

    def build(self, *, accept_threshold: float, seed: int) -> "SPOAllocator":
        """Create the strategy."""
        return SPOAllocator(self)


class SPOAllocator(Allocator):
    """Draw prompts by the uncertainty of their tracked values; a prompt drawn for the first time is measured first.

    A value is read before the step's samples of its prompt are drawn. If the budget is larger than the number of
    prompts, or the rest of it too small to measure another one, prompts get further samples, evenly.
    """

    def __init__(self, settings: SPOAllocatorConfig) -> None:
        self._settings = settings
        self.memory_decay = settings.decay
        self._tracked: dict[str, tuple[float, float]] = {}  # prompt_id -> alpha, beta

    def rounds(self, step: Step) -> Rounds:
        """Measure new prompts in a first round, if asked to, and spend the rest of the budget in a second."""
        ids, offline = step.ids, self._settings.offline_samples
        order = draw_by_uncertainty(self._values(ids), floor=self._settings.exploration, rng=step.rng)
        new = np.array([prompt_id not in self._tracked for prompt_id in ids])
        chosen = order[_affordable(1 + offline * new[order], budget=step.budget)]
        drawn = [ids[row] for row in chosen.tolist()]
        measured = dict.fromkeys([ids[row] for row in chosen[new[chosen]].tolist()] if offline else [], offline)
        self._start((yield Allocation(counts=measured, trained_on=False)))
        values = self._values(drawn)
        outcomes = yield even_counts(drawn, step.budget - sum(measured.values()))
        self._track(outcomes)
        return Report(
            baselines=dict(zip(drawn, values.tolist(), strict=True)),
            metrics={
                "allocation/prompts": float(len(drawn)),
                "allocation/measured": float(len(measured)),
                "allocation/value_mean": float(values.mean()),
            },
        )

    def state_dict(self) -> dict[str, Any]:
        """Alpha and beta of every prompt that was sampled."""
        return {"tracked": {prompt_id: list(pair) for prompt_id, pair in self._tracked.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the memory that `state_dict` returned."""
        self._tracked = {prompt_id: (alpha, beta) for prompt_id, (alpha, beta) in state["tracked"].items()}

    def _values(self, prompt_ids: Sequence[str]) -> Float64Array:
        """v [P]; 1/2 for a prompt without samples."""
        alpha, beta = np.array([self._tracked.get(prompt_id, _COLD) for prompt_id in prompt_ids]).T
        return alpha / (alpha + beta)

    def _start(self, outcomes: Sequence[GroupOutcome]) -> None:
        """Begin with the measured values; a prompt that an overlapping step has begun stays as it is."""
        for prompt_id, rewards in rewards_by_prompt(outcomes).items():
            total, n = float(rewards.sum()), len(rewards)
            weight = n / (n + 1)
            self._tracked.setdefault(prompt_id, (weight * (total + 0.5), weight * (n - total + 0.5)))

    def _track(self, outcomes: Sequence[GroupOutcome]) -> None:
        decay = self._settings.decay
        for prompt_id, rewards in rewards_by_prompt(outcomes).items():
            total, n = float(rewards.sum()), len(rewards)
            alpha, beta = self._tracked.get(prompt_id, _COLD)
            self._tracked[prompt_id] = (decay * alpha + total, decay * beta + n - total)


def _affordable(costs: IndexArray, *, budget: int) -> IndexArray:
    """The first indices whose costs the budget covers, and after them those of cost 1 that its rest still covers."""
    spent = np.cumsum(costs)
    num_first = int(np.searchsorted(spent, budget, side="right"))
    left = budget - int(costs[:num_first].sum())
    later = num_first + np.flatnonzero(costs[num_first:] == 1)
    return np.concatenate([np.arange(num_first), later[:left]])
