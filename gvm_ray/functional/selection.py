"""Choosing and sizing groups out of many candidates: few prompts, each with enough samples to learn from."""

import numpy as np
from numpy.typing import NDArray

from gvm_ray.functional.allocation import apportion

_ROUNDING = 1e-9  # of chances that add up to a whole number of groups


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

    A candidate with an expected n below `group_size` becomes a group of that size with the chance of
    `inclusion_chances`, by systematic sampling (Madow 1949), so that the number of groups is as even as it can be; the
    others get their n. What rounding leaves over is split over the chosen ones in proportion to their n.

    Args:
        expected: [C] >= 0, summing to `budget`.
        budget: samples in all, > 0; below `group_size` they go to one candidate.
        group_size: smallest group.
        rng: of the draws.
        maximum: ceiling on n, at least `group_size`; it gives way where the chosen ones could not take the budget.
    """
    group_size = min(group_size, budget)
    chances = inclusion_chances(expected, budget=budget, group_size=group_size)
    chosen = chances == 1
    small = np.flatnonzero(~chosen)
    most = budget // group_size - int(np.count_nonzero(chosen))
    chosen[small[_systematic(chances[small], most=most, rng=rng)]] = True
    rows = np.flatnonzero(chosen)
    ceiling = None if maximum is None else max(maximum, -(-budget // len(rows)))
    counts = np.zeros(len(expected), dtype=np.int64)
    sizes = np.maximum(expected[rows], group_size)
    counts[rows] = apportion(sizes, budget=budget, minimum=group_size, maximum=ceiling)
    return counts


def inclusion_chances(expected: NDArray[np.float64], *, budget: int, group_size: int) -> NDArray[np.float64]:
    """Chance [C] of each candidate to be sampled by `select_groups`: n / group_size, at most 1.

    The chances below 1 shrink together where they add up to more groups than the budget makes besides the others.
    """
    chances = np.minimum(expected / group_size, 1.0)
    small = chances < 1
    room = budget // group_size - np.count_nonzero(~small)
    wanted = chances[small].sum()
    if wanted > room:
        chances[small] *= room / wanted
    return chances


def inclusion_weights(
    expected: NDArray[np.float64], *, budget: int, group_size: int, cap: float
) -> NDArray[np.float64]:
    """Weights [C] that undo a selection: the inverse of each candidate's chance to be sampled, relative to an even one.

    A mean over the chosen prompts with these weights is, up to the cap, that over all candidates (Horvitz and Thompson
    1952). With the chances pi_i of `inclusion_chances` the weight is mean(pi) / pi_i, at most `cap`.
    """
    chances = inclusion_chances(expected, budget=budget, group_size=group_size)
    return np.minimum(chances.mean() / np.maximum(chances, 1e-12), cap)


def _systematic(chances: NDArray[np.float64], *, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices without repetition, each with its chance (below 1); as many as the chances add up to, `most` at most."""
    order = rng.permutation(len(chances))  # neighbours must not exclude each other
    ends = np.cumsum(chances[order])
    total = ends[-1] if len(ends) else 0.0
    points = np.arange(rng.uniform(), total + _ROUNDING)[:most]
    return order[np.minimum(np.searchsorted(ends, points, side="right"), len(ends) - 1)]
