"""Accuracy over several samples of each prompt: avg@k, pass@k, maj@k, and how far to trust them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from gvm_ray.types import Float64Array


def average_at_k(correct: Sequence[ArrayLike]) -> Float64Array:
    """[P] share of each prompt's samples that are correct: avg@k.

    Args:
        correct: One sequence a prompt, of 0/1 or booleans, one a sample; at least one each. May be ragged.
    """
    return np.array([np.mean(np.asarray(samples, dtype=np.float64)) for samples in correct], dtype=np.float64)


def pass_at_k(num_samples: ArrayLike, num_correct: ArrayLike, k: int) -> Float64Array:
    """Unbiased estimate of the chance that at least one of k samples is correct (arXiv 2107.03374, equation 1).

    1 - C(n - c, k) / C(n, k), computed as a product of k ratios, so that nothing overflows. Elementwise over arrays
    that broadcast.

    Raises:
        ValueError: k isn't in [1, n], or c isn't in [0, n], for some element.
    """
    n, c = np.broadcast_arrays(np.asarray(num_samples, dtype=np.int64), np.asarray(num_correct, dtype=np.int64))
    if k < 1 or np.any(n < k):
        raise ValueError(f"pass@{k} needs at least {max(k, 1)} sample(s) of each prompt; the fewest are {n.min()}")
    if np.any((c < 0) | (c > n)):
        raise ValueError("num_correct must lie between 0 and num_samples")
    # C(n - c, k) / C(n, k) = prod over i < k of (n - c - i) / (n - i); a factor is 0 once n - c < k.
    drawn = np.arange(k)
    factors = np.maximum(n[..., None] - c[..., None] - drawn, 0) / (n[..., None] - drawn)
    return 1.0 - np.prod(factors, axis=-1)


def majority_at_k(answers: Sequence[Sequence[str | None]], correct: Sequence[ArrayLike]) -> Float64Array:
    """[P] whether the answer that most samples of a prompt give is correct: maj@k, in [0, 1].

    Samples vote by the text of their answer; equal answers need one spelling (`rewards.votes`). None is no vote; a
    prompt without votes scores 0. A tie is broken by a fair draw, of which the expectation is taken: two answers of
    equal count, one of them correct, score 1/2. Where samples with the same text differ in correctness, the answer
    counts by its mean.

    Raises:
        ValueError: the shapes of `answers` and `correct` differ.
    """
    return np.array([_majority(a, c) for a, c in zip(answers, correct, strict=True)], dtype=np.float64)


def bootstrap_interval(
    values: ArrayLike, *, confidence: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean, by resampling prompts with replacement (Efron, 1979).

    Args:
        values: [P] one number a prompt; at least one.
        confidence: Chance with which such an interval covers the mean.
        num_resamples: How many resamples.
        seed: Of the resampling; equal seeds give equal intervals.

    Raises:
        ValueError: there are no values, or confidence isn't in (0, 1).
    """
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0:
        raise ValueError("a bootstrap interval needs at least one value")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1; write e.g. 0.95")
    generator = np.random.default_rng(seed)
    means = [values[generator.integers(len(values), size=len(values))].mean() for _ in range(num_resamples)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _majority(answers: Sequence[str | None], correct: ArrayLike) -> float:
    votes: dict[str, list[float]] = {}
    for answer, is_correct in zip(answers, np.asarray(correct, dtype=np.float64), strict=True):
        if answer is not None:
            votes.setdefault(answer, []).append(float(is_correct))
    if not votes:
        return 0.0
    most = max(map(len, votes.values()))
    return float(np.mean([np.mean(group) for group in votes.values() if len(group) == most]))
