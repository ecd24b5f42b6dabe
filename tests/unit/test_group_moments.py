"""Exact errors of split budgets: closed forms, agreement with sampling, and the best split of all."""

import itertools

import numpy as np
import pytest

from gvm_ray.lab.estimator.moments import GroupCoefficients, GroupMoments, PromptGradients, SampleSizes, oracle_counts


def raft(max_samples: int) -> GroupCoefficients:
    """The mean over the accepted samples, if there are any."""
    accepted = np.tril(np.ones((max_samples + 1, max_samples + 1)))
    accepted[:, 0] = 0
    return GroupCoefficients(accepted=accepted, rejected=np.zeros_like(accepted))


def linear(max_samples: int, baseline: float = 0.5) -> GroupCoefficients:
    """(1 / n) sum_j (r_j - baseline) g_j."""
    k, n = np.meshgrid(np.arange(max_samples + 1.0), np.arange(max_samples + 1.0))
    inside, size = k <= n, np.maximum(n, 1)
    accepted, rejected = (1 - baseline) * k / size, -baseline * (n - k) / size
    return GroupCoefficients(accepted=np.where(inside, accepted, 0), rejected=np.where(inside, rejected, 0))


def gradients(rates: list[float], *, spread: float = 1.0, seed: int = 0, dimensions: int = 4) -> PromptGradients:
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(2, len(rates), dimensions))
    return PromptGradients(accept_rates=np.array(rates), means=means, spreads=np.full((2, len(rates)), spread))


def sizes(counts: list[float]) -> SampleSizes:
    return SampleSizes(counts=np.array([counts]), factors=np.full((1, len(counts)), 1 / len(counts)))


def test_with_every_sample_accepted_the_variance_is_that_of_means() -> None:
    of_prompts = gradients([1.0] * 5, spread=3.0)
    moments = GroupMoments(raft(8), of_prompts, target=of_prompts.means[0].mean(axis=0))
    error = moments.expected_error(sizes([4] * 5))
    assert error.variance == pytest.approx(3.0 / (4 * 5))  # sigma^2 / (n m)
    assert error.bias_squared == pytest.approx(0, abs=1e-12)
    assert error.cosine == pytest.approx(1)
    assert moments.expected_error(sizes([2, 8, 4, 4, 4])).variance == pytest.approx(3 * (1 / 2 + 1 / 8 + 3 / 4) / 25)


def test_one_sample_of_a_prompt_that_is_seldom_solved_by_hand() -> None:
    of_prompts = gradients([0.25], spread=2.0)
    mean = of_prompts.means[0, 0]
    square = float(mean @ mean)
    moments = GroupMoments(raft(2), of_prompts, target=mean)
    error = moments.expected_error(sizes([1]))
    assert error.bias_squared == pytest.approx(0.75**2 * square)
    assert error.variance == pytest.approx(0.25 * 2 + 0.25 * 0.75 * square)
    nothing = moments.expected_error(sizes([0]))
    assert (nothing.variance, nothing.bias_squared) == pytest.approx((0, square))
    half = moments.expected_error(sizes([0.5]))  # a chance of one half to get the sample
    assert half.mean_squared_error == pytest.approx((error.mean_squared_error + square) / 2)


@pytest.mark.parametrize("coefficients", [raft(6), linear(6)])
def test_moments_agree_with_sampling(coefficients: GroupCoefficients) -> None:
    rng = np.random.default_rng(5)
    of_prompts = gradients([0.2, 0.7, 1.0], spread=4.0, dimensions=3)  # each coordinate has a variance of 4 / 3
    target, counts = np.array([1.0, -1.0, 0.5]), [6, 2, 3]
    estimates = np.zeros((20_000, 3))
    for i, n in enumerate(counts):
        accepted = rng.uniform(size=(len(estimates), n)) < of_prompts.accept_rates[i]
        samples = rng.normal(size=(len(estimates), n, 3)) * np.sqrt(4 / 3)
        samples += np.where(accepted[..., None], *of_prompts.means[:, i])
        k = accepted.sum(axis=1)
        for chosen, table, size in (
            (accepted, coefficients.accepted, k),
            (~accepted, coefficients.rejected, n - k),
        ):
            means = (samples * chosen[..., None]).sum(axis=1) / np.maximum(size, 1)[:, None]
            estimates += table[n, k][:, None] * means / len(counts)
    squares = ((estimates - target) ** 2).sum(axis=1)
    error = GroupMoments(coefficients, of_prompts, target=target).expected_error(sizes(counts))
    assert abs(squares.mean() - error.mean_squared_error) < 4 * squares.std() / np.sqrt(len(squares))
    assert estimates.var(axis=0).sum() == pytest.approx(error.variance, rel=0.05)


def test_a_random_choice_of_prompts_is_variance_and_no_bias() -> None:
    of_prompts = gradients([1.0, 1.0], spread=0.0)
    first, second = of_prompts.means[0]
    moments = GroupMoments(raft(2), of_prompts, target=(first + second) / 2)
    counts = np.random.default_rng(0).permuted(np.tile([2.0, 0.0], (4000, 1)), axis=1)
    error = moments.expected_error(SampleSizes(counts=counts, factors=np.ones_like(counts)))
    variance = ((first - second) ** 2).sum() / 4
    assert error.variance == pytest.approx(variance, rel=2e-3)
    assert abs(error.bias_squared) < 10 * variance / 4000


def test_a_count_beyond_the_moments_is_refused() -> None:
    moments = GroupMoments(raft(2), gradients([0.5]), target=np.ones(4))
    with pytest.raises(ValueError, match="a count of 3 is above the moments' max_samples=2"):
        moments.expected_error(sizes([3]))


@pytest.mark.parametrize("coefficients", [raft(9), linear(9)])
@pytest.mark.parametrize("seed", range(6))
def test_the_oracle_is_the_best_of_all_splits(coefficients: GroupCoefficients, seed: int) -> None:
    rates = np.random.default_rng(seed).uniform(0.02, 1, size=4).tolist()
    of_prompts = gradients(rates, spread=3.0, seed=seed)
    moments = GroupMoments(coefficients, of_prompts, target=of_prompts.means[0].mean(axis=0))
    splits = [split for split in itertools.product(range(10), repeat=4) if sum(split) == 9]
    errors = [moments.expected_error(sizes(list(split))).mean_squared_error for split in splits]
    counts = oracle_counts(moments, budget=9)
    assert counts.sum() == 9
    assert moments.expected_error(sizes(counts.tolist())).mean_squared_error == pytest.approx(min(errors), rel=1e-9)


def test_a_budget_that_cannot_be_spent_is_refused() -> None:
    moments = GroupMoments(raft(4), gradients([0.5, 0.5]), target=np.ones(4))
    assert oracle_counts(moments, budget=8).tolist() == [4, 4]
    with pytest.raises(ValueError, match="a budget of 9 samples is above 4 for each of 2 prompts"):
        oracle_counts(moments, budget=9)
