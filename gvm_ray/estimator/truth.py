"""What the pool knows exactly: the target gradient, and how good a split of the budget is in expectation."""

from dataclasses import dataclass

import numpy as np

from gvm_ray.algorithms import create_algorithm
from gvm_ray.config import RunConfig
from gvm_ray.config.strategy import CustomAlgorithmConfig, ReinforcePlusPlusConfig
from gvm_ray.estimator.pool import SamplePool
from gvm_ray.estimator.repeats import batch_coefficients
from gvm_ray.exceptions import DataError
from gvm_ray.functional.group_moments import GroupCoefficients, GroupMoments, PromptGradients
from gvm_ray.types import EstimatorTerms, Float64Array, GroupOutcome, GroupRef


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptTruth:
    """What an allocator would like to know of the T target prompts."""

    accept_rates: Float64Array  # [T]
    pilot_norms: Float64Array  # [T] mean over the accepted samples, as pilots estimate it
    accepted_norms: Float64Array  # [T] root mean square, as predictors learn it from training
    rejected_norms: Float64Array  # [T] likewise


def prompt_truth(config: RunConfig, pool: SamplePool, *, pilot_norms: Float64Array) -> PromptTruth:
    """Accept rates and gradient norms of the target prompts; a norm is 0 where a prompt has no such sample."""
    accepted = pool.rewards >= config.rewards.accept_threshold
    squares = pool.training_norms**2
    return PromptTruth(
        accept_rates=pool.mean_by_target(accepted.astype(np.float64), np.isfinite(pool.rewards)),
        pilot_norms=pool.mean_by_target(pilot_norms, accepted),
        accepted_norms=np.sqrt(pool.mean_by_target(squares, accepted)),
        rejected_norms=np.sqrt(pool.mean_by_target(squares, ~accepted)),
    )


def target_gradient(config: RunConfig, pool: SamplePool) -> Float64Array:
    """[D] the algorithm's own estimate from all samples of all target prompts: its limit for large uniform n.

    RAFT with `prompt_mean` gives (1/T) sum_i E[gradient of ln pi | accepted], where a prompt without an accepted sample
    counts as 0.

    Raises:
        DataError: it is 0, so nothing can be compared with it.
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
            f"{len(rewards)} samples of {pool.num_targets} prompts; measure a policy that solves some of them and not "
            "all (another warm start, easier prompts), or write more num_prompts and num_samples"
        )
    return target


def exact_moments(
    config: RunConfig, pool: SamplePool, *, target: Float64Array, max_samples: int
) -> GroupMoments | None:
    """Moments of the algorithm's groups on the pool; None where its estimate isn't a sum over prompts that depends on
    how many samples of a prompt are accepted alone: other weightings than `prompt_mean`, normalisation over the batch,
    rewards of more than two values, an algorithm of the user's own.

    Args:
        config: the algorithm's run.
        pool: the policy.
        target: [D].
        max_samples: largest n.
    """
    values = _binary_rewards(config, pool)
    whole_batch = isinstance(config.algorithm, ReinforcePlusPlusConfig | CustomAlgorithmConfig)
    if values is None or whole_batch or config.algorithm.weighting != "prompt_mean":
        return None
    return GroupMoments(
        group_coefficients(config, max_samples=max_samples, rewards=values),
        prompt_gradients(config, pool),
        target=target,
    )


def prompt_gradients(config: RunConfig, pool: SamplePool) -> PromptGradients:
    """Mean and spread of the gradients of each target's accepted and rejected samples."""
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
    """What the algorithm makes of groups of every size up to `max_samples` with every number of accepted samples.

    Args:
        config: the algorithm's run.
        max_samples: largest n.
        rewards: of an accepted and of a rejected sample.
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
    """The reward of accepted and that of rejected samples, where each has but one."""
    used = np.unique(np.concatenate(pool.samples[: pool.num_targets]))
    rewards = np.unique(pool.rewards[used])
    accepted = rewards >= config.rewards.accept_threshold
    if accepted.sum() > 1 or (~accepted).sum() > 1:
        return None
    good, bad = rewards[accepted], rewards[~accepted]
    return float(good[0]) if good.size else 1.0, float(bad[0]) if bad.size else 0.0
