"""Exact values of a pool, and allocators' rules applied to them in place of estimates."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from gvm_ray.algorithms import create_algorithm
from gvm_ray.allocators.gvm import GVMAllocatorConfig
from gvm_ray.allocators.gvm_online import GVMOnlineAllocatorConfig, NeymanAllocatorConfig
from gvm_ray.allocators.gvm_pool import GVMPoolAllocatorConfig
from gvm_ray.allocators.predictive import score
from gvm_ray.allocators.predictor import PromptEstimates
from gvm_ray.config import RunConfig
from gvm_ray.exceptions import DataError
from gvm_ray.lab.estimator.moments import GroupCoefficients, GroupMoments, PromptGradients, SampleSizes
from gvm_ray.lab.estimator.pool import SamplePool
from gvm_ray.lab.estimator.repeats import batch_coefficients
from gvm_ray.maths.allocation import apportion, expected_samples, gvm_weights, inclusion_weights, select_groups
from gvm_ray.types import EstimatorTerms, Float64Array, GroupOutcome, GroupRef, IndexArray


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptTruth:
    """True values of the T target prompts that allocators estimate."""

    accept_rates: Float64Array  # [T]
    pilot_norms: Float64Array  # [T] mean over the accepted samples, as pilots estimate it
    accepted_norms: Float64Array  # [T] root mean square, as predictors learn it from training
    rejected_norms: Float64Array  # [T] the same for rejected samples


def prompt_truth(config: RunConfig, pool: SamplePool, *, pilot_norms: Float64Array) -> PromptTruth:
    """Compute accept rates and gradient norms of the target prompts; a norm is 0 if the prompt has no such sample."""
    accepted = pool.rewards >= config.rewards.accept_threshold
    squares = pool.training_norms**2
    return PromptTruth(
        accept_rates=pool.mean_by_target(accepted.astype(np.float64), np.isfinite(pool.rewards)),
        pilot_norms=pool.mean_by_target(pilot_norms, accepted),
        accepted_norms=np.sqrt(pool.mean_by_target(squares, accepted)),
        rejected_norms=np.sqrt(pool.mean_by_target(squares, ~accepted)),
    )


def target_gradient(config: RunConfig, pool: SamplePool) -> Float64Array:
    """Compute the target gradient [D]: the algorithm's estimate from all samples of all target prompts, its limit for
    large uniform n.

    RAFT with `prompt_mean` gives (1/T) sum_i E[gradient of ln pi | accepted], where a prompt without an accepted sample
    counts as 0.

    Raises:
        DataError: the target is 0, so nothing can be compared with it.
    """
    outcomes = [pool.outcome(index, pool.samples[index]) for index in range(pool.num_targets)]
    algorithm = create_algorithm(config.algorithm, accept_threshold=config.rewards.accept_threshold)
    batch = algorithm.build_batch(outcomes, step=0, terms=EstimatorTerms(num_prompts=pool.num_targets))
    target = batch_coefficients(batch, pool) @ pool.gradients.astype(np.float64)
    if not target.any():
        rewards = np.concatenate([outcome.rewards for outcome in outcomes])
        raise DataError(
            f"{config.algorithm.type} has no gradient on the pool: rewards.accept_threshold="
            f"{config.rewards.accept_threshold} is reached by {(rewards >= config.rewards.accept_threshold).sum()} of "
            f"{len(rewards)} samples of {pool.num_targets} prompts; measure a policy that solves some of them but not "
            "all (another warm start, easier prompts), or write a larger num_prompts or num_samples"
        )
    return target


def exact_moments(
    config: RunConfig, pool: SamplePool, *, target: Float64Array, max_samples: int
) -> GroupMoments | None:
    """Compute the moments of the algorithm's groups on the pool; None if they aren't known.

    They are known if the estimate is a sum over prompts whose terms depend only on the numbers of accepted and rejected
    samples. Excluded are weightings other than `prompt_mean`, normalisation over the batch, rewards with more than two
    values, and custom algorithms.

    Args:
        config: the algorithm's run.
        pool: the policy.
        target: [D].
        max_samples: largest n.
    """
    values = _binary_rewards(config, pool)
    if values is None or config.algorithm.mixes_prompts or config.algorithm.weighting != "prompt_mean":
        return None
    return GroupMoments(
        group_coefficients(config, max_samples=max_samples, rewards=values),
        prompt_gradients(config, pool),
        target=target,
    )


def baseline_moments(
    config: RunConfig, pool: SamplePool, *, target: Float64Array, max_samples: int
) -> GroupMoments | None:
    """Compute the moments of groups whose advantages have the true mean and deviation of the prompt's reward as their
    baseline; None if they aren't known, or if the algorithm has no baseline.

    Then a term is a mean over its samples, whatever their number. Accept rates are clipped as `gvm_pool` clips them.
    Arguments as for :func:`exact_moments`.
    """
    rewards = _binary_rewards(config, pool)
    mean_only = config.algorithm.weighting == "prompt_mean" and not config.algorithm.mixes_prompts
    if rewards is None or not mean_only or not config.algorithm.group_baseline:
        return None
    gradients = prompt_gradients(config, pool)
    rates = gradients.accept_rates.clip(_CLIP, 1 - _CLIP)
    spread = rewards[0] - rewards[1]
    means, deviations = rewards[1] + spread * rates, abs(spread) * np.sqrt(rates * (1 - rates))
    advantages = (np.array(rewards)[:, None] - means) / deviations  # [2, T]
    scaled = replace(
        gradients, means=advantages[..., None] * gradients.means, spreads=advantages**2 * gradients.spreads
    )
    n, k = np.arange(max_samples + 1)[:, None], np.arange(max_samples + 1)[None]
    inside = (k <= n) & (n > 0)
    shares = GroupCoefficients(
        accepted=np.where(inside, k / np.maximum(n, 1), 0.0), rejected=np.where(inside, (n - k) / np.maximum(n, 1), 0.0)
    )
    return GroupMoments(shares, scaled, target=target)


def prompt_gradients(config: RunConfig, pool: SamplePool) -> PromptGradients:
    """Compute the mean and spread of the gradients of each target's accepted and rejected samples."""
    accepted = pool.rewards >= config.rewards.accept_threshold
    means = np.zeros((2, pool.num_targets, pool.gradients.shape[1]))
    spreads = np.zeros((2, pool.num_targets))
    rates = np.zeros(pool.num_targets)
    for index, samples in enumerate(pool.samples[: pool.num_targets]):
        rates[index] = accepted[samples].mean()
        for row, own in enumerate((samples[accepted[samples]], samples[~accepted[samples]])):
            if own.size:
                responses, counts = np.unique(own, return_counts=True)
                gradients, shares = pool.gradients[responses].astype(np.float64), counts / own.size
                means[row, index] = shares @ gradients
                spreads[row, index] = shares @ np.square(gradients - means[row, index]).sum(axis=1)
    return PromptGradients(accept_rates=rates, means=means, spreads=spreads)


def group_coefficients(config: RunConfig, *, max_samples: int, rewards: tuple[float, float]) -> GroupCoefficients:
    """Compute the algorithm's coefficients for groups of every size up to `max_samples`, by number of accepted samples.

    Args:
        config: the algorithm's run.
        max_samples: largest n.
        rewards: rewards of an accepted and of a rejected sample.
    """
    algorithm = create_algorithm(config.algorithm, accept_threshold=config.rewards.accept_threshold)
    sums = np.zeros((2, max_samples + 1, max_samples + 1))
    for n in range(1, max_samples + 1):
        groups = [_group(np.repeat(rewards, [k, n - k]), name=str(k)) for k in range(n + 1)]
        batch = algorithm.build_batch(groups, step=0, terms=EstimatorTerms(num_prompts=1))
        for group in batch.groups:
            accepted = group.sample_indices < int(group.prompt_id)
            terms = group.weights * group.advantages
            sums[:, n, int(group.prompt_id)] = terms[accepted].sum(), terms[~accepted].sum()
    return GroupCoefficients(accepted=sums[0], rejected=sums[1])


def _group(rewards: Float64Array, *, name: str) -> GroupOutcome:
    n = len(rewards)
    return GroupOutcome(
        prompt_id=name,
        sample_indices=tuple(range(n)),
        rewards=rewards,
        num_tokens=np.ones(n, dtype=np.int32),
        policy_versions=np.zeros(n, dtype=np.int32),
        truncated=np.zeros(n, dtype=np.bool_),
        ref=GroupRef(ref=None, index=0),
    )


def _binary_rewards(config: RunConfig, pool: SamplePool) -> tuple[float, float] | None:
    """The rewards of accepted and of rejected samples; None if either class has more than one reward value."""
    used = np.unique(np.concatenate(pool.samples[: pool.num_targets]))
    rewards = np.unique(pool.rewards[used])
    accepted = rewards >= config.rewards.accept_threshold
    if accepted.sum() > 1 or (~accepted).sum() > 1:
        return None
    good, bad = rewards[accepted], rewards[~accepted]
    return float(good[0]) if good.size else 1.0, float(bad[0]) if bad.size else 0.0


_CLIP = 0.02  # of accept rates that a baseline is computed from
_PARTS = 1000  # a real-valued split is computed to this fraction of a sample
_NUM_DRAWS = 200  # of prompts or groups, if they are drawn at random

# The split of a budget over some of the target prompts: (rows [Q], budget, rng) -> counts [Q], factors [Q].
Rule = Callable[[IndexArray, int, np.random.Generator], tuple[Float64Array, Float64Array]]


def true_sizes(config: RunConfig, truth: PromptTruth, *, seed: int) -> dict[str, SampleSizes]:
    """Compute the allocator's sample sizes for the target prompts, in variants that remove some of its difficulties.

    - "true p, G": the rule with true values instead of estimates, and without pilots.
    - "true p, G, real n": additionally without rounding n (a fraction is a probability). For rules that don't select.
    - "true p, G, undone": weights undo the selection without a cap. For rules that select.

    Empty for an allocator whose rule isn't known here.
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


def predicts_baseline(config: RunConfig) -> bool:
    """True if the advantages are of baselines that `gvm_pool` predicts; RAFT takes none."""
    allocator = config.allocator
    takes = isinstance(allocator, GVMPoolAllocatorConfig) and config.algorithm.takes_baselines
    return takes and allocator.gives_baselines


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
        case GVMPoolAllocatorConfig() if not predicts_baseline(config):
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
        feature_rates=truth.accept_rates,
        history_rates=truth.accept_rates,
        deviations=zeros,
        accepted_norms=truth.accepted_norms,
        rejected_norms=truth.rejected_norms,
        history_trials=np.inf,
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
    """Build a rule: n in proportion to the weights within the bounds, in parts of a sample."""

    def rule(rows: IndexArray, budget: int, rng: np.random.Generator) -> tuple[Float64Array, Float64Array]:
        shares = expected_samples(weights[rows], budget=budget, uniform_share=uniform_share)
        ceiling = None if maximum is None else maximum * parts
        counts = apportion(shares, budget=budget * parts, minimum=minimum * parts, maximum=ceiling) / parts
        return counts, np.full(len(rows), 1 / len(rows))

    return rule


def _selected(allocator: GVMPoolAllocatorConfig, scores: Float64Array, *, undo: float) -> Rule:
    """Build a rule: groups of at least `group_size`; `undo` caps the weights that undo the selection, 0 for none."""

    def rule(rows: IndexArray, budget: int, rng: np.random.Generator) -> tuple[Float64Array, Float64Array]:
        expected = allocator.expected_samples(scores[rows], budget=budget)
        size = allocator.group_size
        counts = select_groups(expected, budget=budget, group_size=size, rng=rng, maximum=allocator.max_samples)
        factors = np.full(len(rows), 1 / max(int((counts > 0).sum()), 1))
        if undo:
            factors = factors * inclusion_weights(expected, budget=budget, group_size=size, cap=undo)
        return counts.astype(np.float64), factors

    return rule
