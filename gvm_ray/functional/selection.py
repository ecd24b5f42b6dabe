"""Choosing and sizing groups out of many candidates: few prompts, each with enough samples to learn from."""

import numpy as np
from numpy.typing import NDArray

from gvm_ray.functional.allocation import apportion


def expected_samples(scores: NDArray[np.float64], *, budget: int, uniform_share: float) -> NDArray[np.float64]:
    """E[n] [C] in proportion to `scores`, mixed with an even split of a `uniform_share` of the budget; sums to it.

    Without any positive score the whole split is even.

    Args:
        scores: [C] >= 0.
        budget: samples in all.
        uniform_share: in [0, 1], so that no candidate is given up for good.

    Raises:
        ValueError: a score is negative or not finite.
    """
    bad = ~np.isfinite(scores) | (scores < 0)
    if bad.any():
        index = int(np.argmax(bad))
        raise ValueError(f"scores[{index}] = {scores[index]} is not a finite number >= 0")
    total = scores.sum()
    even = np.full(len(scores), 1 / len(scores))
    shares = (1 - uniform_share) * scores / total + uniform_share * even if total > 0 else even
    return budget * shares


def select_groups(
    expected: NDArray[np.float64],
    *,
    budget: int,
    group_size: int,
    rng: np.random.Generator,
    maximum: int | None = None,
) -> NDArray[np.int64]:
    """Integers n [C] that sum to `budget`, each 0 or at least `group_size`, with E[n] close to `expected`.

    A candidate with an expected n below `group_size` becomes a group of that size with probability n / group_size, by
    systematic sampling, so that their number is as even as it can be; the others get their n. What rounding leaves over
    is split over the chosen ones in proportion to their n.

    Args:
        expected: [C] >= 0, summing to `budget`.
        budget: samples in all; below `group_size` they go to one candidate.
        group_size: smallest group.
        rng: of the draws.
        maximum: ceiling on n, at least `group_size`; it gives way where the chosen ones could not take the budget.
    """
    num_groups = budget // group_size
    if num_groups == 0:
        counts = np.zeros(len(expected), dtype=np.int64)
        counts[rng.choice(len(expected), p=expected / expected.sum())] = budget
        return counts
    large = expected >= group_size
    room = max(num_groups - int(np.floor(expected[large].sum() / group_size)), 0)
    chosen = large.copy()
    small = np.flatnonzero(~large & (expected > 0))
    chosen[small[_systematic(expected[small], num=min(room, len(small)), rng=rng)]] = True
    rows = np.flatnonzero(chosen)
    if len(rows) > num_groups:  # many groups barely above the smallest size round to more than there is room for
        rows = rows[np.argsort(-expected[rows], kind="stable")[:num_groups]]
    ceiling = None if maximum is None else max(maximum, -(-budget // len(rows)))
    counts = np.zeros(len(expected), dtype=np.int64)
    sizes = np.maximum(expected[rows], group_size)
    counts[rows] = apportion(sizes, budget=budget, minimum=group_size, maximum=ceiling)
    return counts


def inclusion_weights(expected: NDArray[np.float64], *, group_size: int, cap: float) -> NDArray[np.float64]:
    """Weights [C] that undo a selection: the inverse of each candidate's chance to be sampled, relative to an even one.

    A mean over the chosen prompts with these weights is, up to the cap, that over all candidates (Horvitz and Thompson
    1952). With chances pi_i = min(expected_i / group_size, 1) the weight is mean(pi) / pi_i, at most `cap`.
    """
    chances = np.minimum(expected / group_size, 1.0)
    return np.minimum(chances.mean() / np.maximum(chances, 1e-12), cap)


def _systematic(sizes: NDArray[np.float64], *, num: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`num` indices without repetition, each with a chance in proportion to its size (at most 1)."""
    if num == 0:
        return np.zeros(0, dtype=np.int64)
    if num >= len(sizes):
        return np.arange(len(sizes))
    chances = _chances(sizes, num=num)
    order = rng.permutation(len(sizes))  # neighbours must not exclude each other
    ends = np.cumsum(chances[order])
    points = rng.uniform() + np.arange(num)
    return order[np.minimum(np.searchsorted(ends, points, side="right"), len(sizes) - 1)]


def _chances(sizes: NDArray[np.float64], *, num: int) -> NDArray[np.float64]:
    """[N] in proportion to sizes, none above 1, summing to `num`."""
    certain = np.zeros(len(sizes), dtype=np.bool_)
    while True:
        left = num - certain.sum()
        chances = np.where(certain, 1.0, sizes * left / sizes[~certain].sum())
        above = chances > 1
        if not above.any():
            return chances
        certain |= above
