"""An allocator's rule with the true accept rates and gradient norms in place of its estimates of them."""

from collections.abc import Callable, Mapping

import numpy as np

from gvm_ray.allocators.gvm import GVMAllocatorConfig
from gvm_ray.allocators.gvm_pool import GVMOnlineAllocatorConfig, GVMPoolAllocatorConfig, NeymanAllocatorConfig, score
from gvm_ray.allocators.predictor import PromptEstimates
from gvm_ray.config import RunConfig
from gvm_ray.estimator.pool import IndexArray
from gvm_ray.estimator.truth import PromptTruth
from gvm_ray.functional.allocation import apportion, gvm_weights
from gvm_ray.functional.group_moments import SampleSizes
from gvm_ray.functional.selection import expected_samples, inclusion_weights, select_groups
from gvm_ray.types import Float64Array

_PARTS = 1000  # of a sample, to which a real-valued split is computed
_NUM_DRAWS = 200  # of prompts or groups, where chance has a say

# The split of a budget over some of the target prompts: (rows [Q], budget, rng) -> counts [Q], factors [Q].
Rule = Callable[[IndexArray, int, np.random.Generator], tuple[Float64Array, Float64Array]]


def true_sizes(config: RunConfig, truth: PromptTruth, *, seed: int) -> dict[str, SampleSizes]:
    """The allocator's sample sizes for the target prompts, by what is left out of its difficulties.

    - "true p, G": the rule without estimates, and without pilots.
    - "true p, G, real n": nor is n rounded to integers (a fraction is a chance). For rules that don't select.
    - "true p, G, undone": weights undo a selection without a cap. For rules that select.

    None for an allocator whose rule isn't known here.
    """
    num_targets = len(truth.accept_rates)
    shown = min(config.candidates_per_step, num_targets)
    budget = min(config.prompts_per_step, num_targets) * config.samples_per_prompt
    rng = np.random.default_rng(seed)
    sizes = {}
    for name, rule in _rules(config, truth).items():
        random = shown < num_targets or isinstance(config.allocator, GVMPoolAllocatorConfig)
        num_draws = _NUM_DRAWS if random else 1
        counts, factors = np.zeros((num_draws, num_targets)), np.zeros((num_draws, num_targets))
        for draw in range(num_draws):
            rows = np.sort(rng.choice(num_targets, size=shown, replace=False))
            counts[draw, rows], factors[draw, rows] = rule(rows, budget, rng)
        sizes[name] = SampleSizes(counts=counts, factors=factors)
    return sizes


def _rules(config: RunConfig, truth: PromptTruth) -> Mapping[str, Rule]:
    allocator = config.allocator
    match allocator:
        case GVMAllocatorConfig():
            rates = truth.accept_rates
            weights = gvm_weights(rates, truth.pilot_norms, alpha=allocator.alpha, beta=allocator.beta)
            if allocator.filter_threshold is not None:
                weights[rates > allocator.filter_threshold] = 0
            return _divisions(weights, minimum=allocator.min_samples, maximum=allocator.max_samples)
        case GVMOnlineAllocatorConfig() | NeymanAllocatorConfig():
            return _divisions(
                _scores(allocator, truth),
                uniform_share=allocator.uniform_share,
                minimum=allocator.min_samples,
                maximum=allocator.max_samples,
            )
        case GVMPoolAllocatorConfig(predicted_baseline=False):
            scores = _scores(allocator, truth)
            return {
                "true p, G": _selected(allocator, scores, undo=allocator.undo_selection_cap * allocator.undo_selection),
                "true p, G, undone": _selected(allocator, scores, undo=np.inf),
            }
        case _:
            return {}


def _scores(
    allocator: GVMPoolAllocatorConfig | GVMOnlineAllocatorConfig | NeymanAllocatorConfig, truth: PromptTruth
) -> Float64Array:
    zeros = np.zeros(len(truth.accept_rates))
    estimates = PromptEstimates(
        accept_rates=truth.accept_rates,
        deviations=zeros,
        accepted_norms=truth.accepted_norms,
        rejected_norms=truth.rejected_norms,
        learned=True,
    )
    return score(allocator.score, truth.accept_rates, estimates) ** allocator.sharpness


def _divisions(
    weights: Float64Array, *, uniform_share: float = 0.0, minimum: int, maximum: int | None
) -> Mapping[str, Rule]:
    return {
        name: _divided(weights, uniform_share=uniform_share, minimum=minimum, maximum=maximum, parts=parts)
        for name, parts in (("true p, G", 1), ("true p, G, real n", _PARTS))
    }


def _divided(weights: Float64Array, *, uniform_share: float, minimum: int, maximum: int | None, parts: int) -> Rule:
    """n in proportion to the weights within the bounds, in parts of a sample."""

    def rule(rows: IndexArray, budget: int, rng: np.random.Generator) -> tuple[Float64Array, Float64Array]:
        shares = expected_samples(weights[rows], budget=budget, uniform_share=uniform_share)
        ceiling = None if maximum is None else maximum * parts
        counts = apportion(shares, budget=budget * parts, minimum=minimum * parts, maximum=ceiling) / parts
        return counts, np.full(len(rows), 1 / len(rows))

    return rule


def _selected(allocator: GVMPoolAllocatorConfig, scores: Float64Array, *, undo: float) -> Rule:
    """Groups of at least `group_size`; `undo` is the cap on the weights that undo the selection, 0 for none."""

    def rule(rows: IndexArray, budget: int, rng: np.random.Generator) -> tuple[Float64Array, Float64Array]:
        expected = expected_samples(scores[rows], budget=budget, uniform_share=allocator.uniform_share)
        size = allocator.group_size
        counts = select_groups(expected, budget=budget, group_size=size, rng=rng, maximum=allocator.max_samples)
        factors = np.full(len(rows), 1 / max(int((counts > 0).sum()), 1))
        if undo:
            factors = factors * inclusion_weights(expected, budget=budget, group_size=size, cap=undo)
        return counts.astype(np.float64), factors

    return rule
