"""GVM's sample sizes are those of the paper and of its released code, where that code is defined.

The reference follows Proposition 1 of arXiv 2505.02391 prompt by prompt, and rounds as the released code does: to the
nearest integer, then one more or one less for those that lost or gained most by it until the sum is right.
"""

import math

import numpy as np
import pytest

from gvm_ray.allocators import AllocationDriver
from gvm_ray.allocators.gvm import GVMAllocatorConfig
from gvm_ray.maths.allocation import apportion, gvm_weights
from tests.builders import outcome, prompts

ALPHA, BETA = 1e-3, 2.0


def published_shares(rates: np.ndarray, norms: np.ndarray, *, alpha: float = ALPHA, beta: float = BETA) -> list[float]:
    weights = [
        0.0 if g == 0 or p == 0 else g / math.sqrt(p + alpha / p ** (beta - 1))
        for p, g in zip(rates.tolist(), norms.tolist(), strict=True)
    ]
    return [weight / math.fsum(weights) for weight in weights]


def released_counts(shares: list[float], num_samples: int) -> list[int]:
    exact = [share * num_samples for share in shares]
    counts = [round(each) for each in exact]
    missing = num_samples - sum(counts)
    sign = 1 if missing > 0 else -1
    by_error = sorted(range(len(counts)), key=lambda i: sign * (counts[i] - exact[i]))
    for index in by_error[: abs(missing)]:
        counts[index] += sign
    return counts


@pytest.mark.parametrize(("alpha", "beta"), [(1e-3, 2.0), (1e-1, 2.0), (1e-4, 3.5)])
def test_shares_are_proposition_1_to_nine_digits(alpha: float, beta: float) -> None:
    rng = np.random.default_rng(0)
    rates, norms = rng.uniform(size=1000), rng.lognormal(sigma=2, size=1000)
    rates[:100], norms[100:150] = 0, 0
    weights = gvm_weights(rates, norms, alpha=alpha, beta=beta)
    np.testing.assert_allclose(
        weights / weights.sum(), published_shares(rates, norms, alpha=alpha, beta=beta), rtol=1e-9, atol=0
    )


def test_shares_minimise_the_regularised_bound_of_the_variance() -> None:
    """Proposition 1: sum_i G_i^2 / (n_i p_i) / (1 + alpha / p_i^beta) over splits of one budget."""
    rng = np.random.default_rng(1)
    rates, norms = rng.uniform(0.05, 1, size=30), rng.lognormal(size=30)
    shares = np.array(published_shares(rates, norms))

    def bound(split: np.ndarray) -> float:
        return float((norms**2 / (split * rates * (1 + ALPHA / rates**BETA))).sum())

    for _ in range(200):
        other = shares * np.exp(0.1 * rng.normal(size=30))
        assert bound(other / other.sum()) > bound(shares)


@pytest.mark.parametrize("size", [1, 7, 300])
def test_counts_are_the_released_codes_integers(size: int) -> None:
    rng = np.random.default_rng(size)
    for _ in range(100):
        rates, norms = rng.uniform(1e-3, 1, size=size), rng.lognormal(sigma=rng.choice([0.1, 1.0, 3.0]), size=size)
        rates[1:][rng.random(size - 1) < 0.3] = 0
        num_samples = int(rng.integers(1, 9 * size))
        ours = apportion(gvm_weights(rates, norms, alpha=ALPHA, beta=BETA), budget=num_samples)
        assert ours.tolist() == released_counts(published_shares(rates, norms), num_samples)


def test_an_allocator_set_as_published_draws_those_counts() -> None:
    """Pilots that only inform, p and G of the accepted pilots alone: the mean of their norms, and no prior."""
    rng = np.random.default_rng(5)
    config = GVMAllocatorConfig(pilot_samples=8, reuse_pilots=False, prior_successes=0, prior_failures=0)
    steps = AllocationDriver.of(config, accept_threshold=0.5)
    ids = [str(index) for index in range(60)]
    steps.plan(prompts(ids), step=0, budget=60 * 16)
    rewards = (rng.random((60, 8)) < rng.uniform(size=(60, 1))).astype(np.float64)
    norms = np.where(rewards > 0, rng.lognormal(size=(60, 8)), np.nan)
    pilots = [outcome(id_, rewards[index], gradient_norms=norms[index]) for index, id_ in enumerate(ids)]
    counts = steps.observe(pilots, step=0).counts
    num_accepted = rewards.sum(axis=1)
    mean_norms = np.nansum(norms, axis=1) / np.maximum(num_accepted, 1)
    assert 0 < np.count_nonzero(num_accepted == 0) < 60
    shares = published_shares(num_accepted / 8, mean_norms)
    assert [counts[id_] for id_ in ids] == released_counts(shares, 60 * 8)
