"""Selection from a pool of candidates, before they are sampled, by their predicted accept rates."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from gvm_ray.allocators.base import PromptStatesConfig, RunShape, SmallestGroup
from gvm_ray.allocators.predictive import PoolScore, PredictiveAllocator, PredictiveConfig, RateSource
from gvm_ray.maths.allocation import expected_samples, inclusion_weights, largest, select_groups
from gvm_ray.settings import Count, Probability
from gvm_ray.types import Float64Array, IndexArray

if TYPE_CHECKING:
    from gvm_ray.allocators.predictor import PromptEstimates

_CANDIDATES_PER_PROMPT = 2, 16  # for each prompt of prompts_per_step: at least, so that there is a choice, and at most
_FREE_CANDIDATES = 1024  # takes a few milliseconds to predict
_FREE_CANDIDATES_PER_GROUP = 4


class GVMPoolAllocatorConfig(PredictiveConfig):
    """Chooses among candidates, before they are sampled, by their predicted accept rate p.

    By default one sample each of the prompts with the largest -|p - 1/2|, as in Prompt Curriculum Learning (arXiv
    2510.01135), and with a baseline from the prompt's earlier samples. The paper samples groups, and learns a value
    model beside the policy to predict p. With the other scores a prompt's chance to be sampled is its share of the
    budget.
    """

    baseline_setting: ClassVar[str | None] = "predicted_baseline"

    type: Literal["gvm_pool"] = "gvm_pool"
    # "pcl" = -|p - 1/2|: the candidates with the largest score share the budget equally, as many as it makes groups,
    # but at most half of all. Others give a prompt its share of the budget, from p and the gradient norms G+ of its
    # accepted and G- of its rejected samples, all predicted: "norm_neyman" = G+ sqrt(p (1 - p)); "neyman" = sqrt(p (1 -
    # p)); "log_neyman" = sqrt((1 - p) / p); "gradient_deviation" = sqrt(p (1 - p) ((1 - p) G+^2 + p G-^2)), the root
    # mean square of a sample's term of the policy gradient; "gvm" = G+ / sqrt(p + alpha / p) with alpha = 1e-3 (arXiv
    # 2505.02391, Proposition 1, beta = 2).
    score: PoolScore = "pcl"
    uniform_share: Probability = 0.0  # share of the budget that is split evenly over all candidates
    # Number of candidates in a step, or the whole training set if it is smaller. None = 16 prompts_per_step, or fewer,
    # so that prefilling them costs no more than the step's samples (if all prompts and responses have max_tokens), but
    # at least 2 prompts_per_step. Without hidden states, as by default, candidates are free: at least 1024, and four
    # for each group.
    candidates_per_step: Count | None = None
    group_size: Count = 1  # a prompt gets no samples, or at least this many
    max_samples: Count | None = None  # of a prompt; none = no bound
    # Advantage r - b with the predicted mean b of the reward, so that a group of one works too; with GRPO (r - b) / s
    # with its predicted deviation s: for rewards of 0 and 1, (r - p) / sqrt(p (1 - p)). None = if group_size is 1. RAFT
    # and RAFT++ take no baseline.
    predicted_baseline: bool | None = None
    predicted_scale: bool = True  # false: r - b with GRPO too
    # Prediction behind b and s: from the prompt's own earlier samples (decayed counts with a Beta(1/2, 1/2) prior, so
    # 1/2 without any), from its features, or from both, as p is.
    baseline_source: RateSource = "history"
    undo_selection: bool = False  # weight prompts by the inverse of their selection probability
    undo_selection_cap: Annotated[float, Field(ge=1)] = 5.0  # largest such weight

    @model_validator(mode="after")
    def _undoes_chances(self) -> "GVMPoolAllocatorConfig":
        if self.undo_selection and self.score == "pcl" and not self.uniform_share:
            raise ValueError(
                'undo_selection=true divides by chances, which score="pcl" with uniform_share=0 does not leave to all '
                'candidates; write score="norm_neyman" and uniform_share=0.1, or undo_selection=false'
            )
        return self

    @model_validator(mode="after")
    def _baseline_is_predicted(self) -> "GVMPoolAllocatorConfig":
        if not self.gives_baselines and (not self.predicted_scale or self.baseline_source != "history"):
            raise ValueError(
                f"predicted_scale={str(self.predicted_scale).lower()} and baseline_source={self.baseline_source!r} are "
                "of the predicted baseline; write predicted_baseline=true, or leave them out"
            )
        return self

    @property
    def gives_baselines(self) -> bool:
        """The value of `predicted_baseline`, or its default."""
        return self.group_size == 1 if self.predicted_baseline is None else self.predicted_baseline

    def expected_samples(self, scores: Float64Array, *, budget: int) -> Float64Array:
        """E[n] [C] of candidates with these scores [C]."""
        if self.score == "pcl":
            scores = largest(scores, count=max(min(budget // self.group_size, len(scores) // 2), 1))
        return expected_samples(scores, budget=budget, uniform_share=self.uniform_share)

    def num_candidates(self, run: RunShape) -> int:
        """The value of `candidates_per_step`, or its default for this run."""
        if self.candidates_per_step is not None:
            return self.candidates_per_step
        budget = run.prompts_per_step * run.samples_per_prompt
        fewest, most = (factor * run.prompts_per_step for factor in _CANDIDATES_PER_PROMPT)
        if not isinstance(self.states, PromptStatesConfig):
            return max(most, _FREE_CANDIDATES, _FREE_CANDIDATES_PER_GROUP * (budget // self.group_size))
        if not run.prefill_price:
            return most
        paid = budget * run.max_response_tokens / (run.max_prompt_tokens * run.prefill_price)
        return min(max(int(paid), fewest), most)

    def smallest_group(self, run: RunShape) -> SmallestGroup:
        """The group size: a prompt gets no samples, or at least this many."""
        return SmallestGroup(setting="allocator.group_size", value=self.group_size)

    def check_fits(self, run: RunShape) -> None:
        """Check that the budget makes at least one group."""
        budget = run.prompts_per_step * run.samples_per_prompt
        if self.group_size > budget:
            raise ValueError(
                f"allocator.group_size={self.group_size} is above the step's budget of {budget} samples; write "
                f"group_size={run.samples_per_prompt}"
            )
        if self.max_samples is not None and self.max_samples < self.group_size:
            raise ValueError(
                f"allocator.max_samples={self.max_samples} is below group_size={self.group_size}; write "
                f"max_samples={self.group_size} or more"
            )

    def build(self, *, accept_threshold: float, seed: int) -> "GVMPoolAllocator":
        """Create the strategy."""
        return GVMPoolAllocator(self, accept_threshold=accept_threshold, seed=seed)


class GVMPoolAllocator(PredictiveAllocator):
    """Give n_i in proportion to the score. If n_i is below `group_size`, give a group of that size with probability
    n_i / group_size. With PCL's rule n_i is the same for the candidates with the largest scores, and 0 for the others.

    Samples go where the predicted gradient is large, so the objective changes: an implicit curriculum toward prompts
    that are neither solved nor out of reach. `undo_selection` corrects this with (clipped) weights.
    """

    _settings: GVMPoolAllocatorConfig

    def _divide(
        self, scores: Float64Array, *, budget: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], Float64Array | None]:
        settings = self._settings
        expected = settings.expected_samples(scores, budget=budget)
        counts = select_groups(
            expected, budget=budget, group_size=settings.group_size, rng=rng, maximum=settings.max_samples
        )
        if not settings.undo_selection:
            return counts, None
        weights = inclusion_weights(
            expected, budget=budget, group_size=settings.group_size, cap=settings.undo_selection_cap
        )
        return counts, weights

    def _baselines(
        self, prompt_ids: Sequence[str], estimates: "PromptEstimates", *, rows: IndexArray
    ) -> tuple[Mapping[str, float], Mapping[str, float]]:
        settings = self._settings
        if not settings.gives_baselines:
            return {}, {}
        rates = estimates.rates_from(settings.baseline_source)[rows]
        means, deviations = self._levels.expected(rates.clip(0.02, 0.98))
        divisors = dict(zip(prompt_ids, deviations.tolist(), strict=True)) if settings.predicted_scale else {}
        return dict(zip(prompt_ids, means.tolist(), strict=True)), divisors
