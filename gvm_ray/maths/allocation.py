"""Sample sizes: allocation weights, their apportionment to integers, and selection from a pool of prompts."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Positive weights are raised to at least this fraction of the largest: no share changes by a whole sample at any real
# budget, and the breakpoints bound/weight stay finite.
_SMALLEST_RELATIVE_WEIGHT = 1e-18
_MAX_SECANT_SUMS = 12


def gvm_weights(
    accept_rates: ArrayLike, gradient_norms: ArrayLike, *, alpha: float, beta: float
) -> NDArray[np.float64]:
    """Compute GVM's weights [P]: G / sqrt(p + alpha / p^(beta - 1)), and 0 where p or G is 0.

    Sample sizes in proportion to these weights minimise sum_i G_i^2 / (n_i p_i), with each term scaled by
    1 / (1 + alpha / p_i^beta) (arXiv 2505.02391, Proposition 1).

    Args:
        accept_rates: p [P] in [0, 1].
        gradient_norms: G [P] >= 0.
        alpha: regulariser, > 0; with a larger alpha, prompts with a small p are given up earlier.
        beta: exponent of the regulariser, >= 2.

    Raises:
        ValueError: an entry is NaN, infinite, negative, or an accept rate above 1.
    """
    p = _probabilities(accept_rates)
    norms = _finite_non_negative(gradient_norms, name="gradient_norms")
    if p.shape != norms.shape:
        raise ValueError(f"accept_rates has shape {p.shape}, gradient_norms {norms.shape}; give one of each per prompt")
    weights = np.zeros_like(p)
    signal = (p > 0) & (norms > 0)
    with np.errstate(over="ignore", divide="ignore"):  # a vanishing p gives G / inf = 0, which is the limit
        weights[signal] = norms[signal] / np.sqrt(p[signal] + alpha / p[signal] ** (beta - 1))
    return weights


def neyman_weights(accept_rates: ArrayLike, *, objective: Literal["linear", "log"] = "linear") -> NDArray[np.float64]:
    """Compute the weights [P] that minimise the variance of a policy gradient with the mean reward as baseline.

    They are sqrt(p (1 - p)) for the mean reward ("linear") and sqrt((1 - p) / p) for the log pass rate ("log", arXiv
    2510.04996, appendix B); 0 where p is 0 or 1.

    Args:
        accept_rates: p [P] in [0, 1].
        objective: "linear" or "log".

    Raises:
        ValueError: an entry is NaN or outside [0, 1].
    """
    p = _probabilities(accept_rates)
    signal = (p > 0) & (p < 1)
    inside = np.where(signal, p, 0.5)
    weights = np.sqrt(inside * (1 - inside)) if objective == "linear" else np.sqrt((1 - inside) / inside)
    return np.where(signal, weights, 0.0)


def gradient_deviation(
    accept_rates: ArrayLike, accepted_norms: ArrayLike, rejected_norms: ArrayLike
) -> NDArray[np.float64]:
    """Root mean square [P] of one sample's term (r - p) grad ln pi(y) of the policy gradient.

    It is sqrt(p (1 - p) ((1 - p) G+^2 + p G-^2)), where G+ and G- are the root mean square norms of grad ln pi over
    accepted and rejected samples. So at p near 1, a rare failure counts with the gradient norm of failures.

    Args:
        accept_rates: p [P] in [0, 1].
        accepted_norms: G+ [P] >= 0.
        rejected_norms: G- [P] >= 0.

    Raises:
        ValueError: an entry is NaN, infinite, negative, or an accept rate above 1.
    """
    p = _probabilities(accept_rates)
    accepted = _finite_non_negative(accepted_norms, name="accepted_norms")
    rejected = _finite_non_negative(rejected_norms, name="rejected_norms")
    return np.sqrt(p * (1 - p) * ((1 - p) * accepted**2 + p * rejected**2))


def apportion(
    weights: ArrayLike, *, budget: int, minimum: ArrayLike = 0, maximum: ArrayLike | None = None
) -> NDArray[np.int64]:
    """Split `budget` into integers n [P] in proportion to `weights`, as far as minimum <= n <= maximum allows.

    The real-valued shares are clip(level * w, minimum, maximum) at the level where they sum to the budget
    (water-filling). They are rounded by largest remainder, ties to the earlier index. A prompt of weight 0 gets its
    minimum, and more only if all other prompts are at their maximum. If all weights are 0, the split is as even as the
    bounds allow.

    Args:
        weights: [P] >= 0, of any scale.
        budget: sum of n, >= 0.
        minimum: floor on n (not an addition to it): one integer, or one per prompt [P].
        maximum: ceiling on n: one integer, or one per prompt [P]; None for no ceiling.

    Raises:
        ValueError: a weight is NaN, infinite or negative; bounds aren't non-negative integers, cross, or don't admit
            the budget.
    """
    w = _finite_non_negative(weights, name="weights")
    low = _integer_bounds(minimum, name="minimum", size=w.size)
    high = _integer_bounds(budget if maximum is None else maximum, name="maximum", size=w.size)
    if maximum is None:
        high = np.maximum(high, low)  # so that an infeasible minimum is reported against the budget
    _check_feasible(low, high, budget)
    if not w.size:
        return np.zeros(0, dtype=np.int64)
    positive = w > 0
    if not positive.any():
        return _round_to_sum(_water_fill(np.ones(w.size), low, high, budget), high, budget)
    w = np.where(positive, np.maximum(w / w.max(), _SMALLEST_RELATIVE_WEIGHT), 0.0)
    if positive.all():
        return _round_to_sum(_water_fill(w, low, high, budget), high, budget)
    for_weighted = min(budget - int(low[~positive].sum()), int(high[positive].sum()))
    shares = np.empty(w.size)
    shares[positive] = _water_fill(w[positive], low[positive], high[positive], for_weighted)
    even = np.ones(np.count_nonzero(~positive))
    shares[~positive] = _water_fill(even, low[~positive], high[~positive], budget - for_weighted)
    return _round_to_sum(shares, high, budget)


def _water_fill(
    weights: NDArray[np.float64], low: NDArray[np.int64], high: NDArray[np.int64], total: int
) -> NDArray[np.float64]:
    """Compute clip(level * weights, low, high) at the level where the sum is `total`, in [low.sum(), high.sum()]."""
    floor, ceiling = low.astype(np.float64), high.astype(np.float64)
    if total <= low.sum():
        return floor
    if total >= high.sum():
        return ceiling
    shares = total * (weights / weights.sum())
    if (shares > floor).all() and (shares < ceiling).all():
        return shares
    leaves_floor, meets_ceiling = floor / weights, ceiling / weights
    levels = np.concatenate([leaves_floor, meets_ceiling])
    below, above = _linear_piece(weights, floor, ceiling, levels, total)
    free = (leaves_floor <= below) & (meets_ceiling >= above)
    shares = np.where(meets_ceiling <= below, ceiling, floor)
    left = total - shares @ ~free
    np.copyto(shares, left * (weights / weights[free].sum()), where=free)
    return np.clip(shares, floor, ceiling)


def _linear_piece(
    weights: NDArray[np.float64],
    floor: NDArray[np.float64],
    ceiling: NDArray[np.float64],
    levels: NDArray[np.float64],
    total: int,
) -> tuple[float, float]:
    """Find the neighbours in `levels` between which clip(level * weights, floor, ceiling) sums to `total`.

    The sum rises with the level, and is linear between the `levels`, at which prompts leave their floor or meet their
    ceiling. The secant method finds the piece in about six sums, whatever their number, and looks again only at levels
    that may still lie in it, so that nothing is sorted. If it converges slowly, for example on a plateau that is flat
    up to rounding, bisection takes over.
    """
    below, above = levels.min(), levels.max()
    inside = levels[(levels > below) & (levels < above)]
    level, last_level, last_missing = total / weights.sum(), below, total - floor.sum()
    num_sums = 0
    while inside.size:
        level = np.clip(level, inside.min(), inside.max())
        missing = total - np.clip(level * weights, floor, ceiling).sum()
        num_sums += 1
        if missing >= 0:
            below = inside[inside <= level].max()
            inside = inside[inside > level]
        else:
            above = inside[inside >= level].min()
            inside = inside[inside < level]
        rise = last_missing - missing
        if num_sums < _MAX_SECANT_SUMS and rise != 0:
            next_level = level + missing * ((level - last_level) / rise)
        else:
            middle = (inside.size - 1) // 2
            next_level = np.partition(inside, middle)[middle] if inside.size else level
        level, last_level, last_missing = next_level, level, missing
    return float(below), float(above)


def _round_to_sum(shares: NDArray[np.float64], high: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Round shares that sum to `total` by largest remainder, never above `high`; ties to the earlier index."""
    counts = shares.astype(np.int64)
    missing = total - int(counts.sum())
    if missing > 0:
        remainders = shares - counts
        np.copyto(remainders, -1.0, where=counts >= high)
        fractions = remainders[remainders > 0]  # a partition is ten times slower if half of the values are the same 0
        candidates = fractions if fractions.size >= missing else remainders
        smallest = np.partition(candidates, -missing)[-missing]  # the last remainder that is rounded up
        ties = np.flatnonzero(remainders == smallest)
        larger = remainders > smallest
        counts += larger
        counts[ties[: missing - np.count_nonzero(larger)]] += 1
    assert counts.sum() == total, f"rounded to {counts.sum()} instead of {total}"
    return counts


def _probabilities(accept_rates: ArrayLike) -> NDArray[np.float64]:
    p = _finite_non_negative(accept_rates, name="accept_rates")
    if p.size and p.max() > 1:
        index = int(np.argmax(p > 1))
        raise ValueError(f"accept_rates[{index}] = {p[index]} is above 1; it is a probability")
    return p


def _finite_non_negative(values: ArrayLike, *, name: str) -> NDArray[np.float64]:
    array = np.array(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}; give a vector with one entry per prompt")
    bad = ~np.isfinite(array) | (array < 0)
    if bad.any():
        index = int(np.argmax(bad))
        raise ValueError(f"{name}[{index}] = {array[index]} is not a finite number >= 0")
    return array


def _integer_bounds(values: ArrayLike, *, name: str, size: int) -> NDArray[np.int64]:
    array = np.asarray(values)
    if not np.issubdtype(array.dtype, np.integer) or (array < 0).any():
        raise ValueError(f"{name} = {values} must hold integers >= 0")
    if array.ndim and array.shape != (size,):
        raise ValueError(f"{name} has shape {array.shape}; give one integer, or one for each of {size} prompts")
    return np.broadcast_to(array, (size,)).astype(np.int64)


def _check_feasible(low: NDArray[np.int64], high: NDArray[np.int64], budget: int) -> None:
    if (low > high).any():
        index = int(np.argmax(low > high))
        raise ValueError(f"minimum {low[index]} is above maximum {high[index]} for prompt {index}")
    if not low.sum() <= budget <= high.sum():
        raise ValueError(
            f"a budget of {budget} can't be split over {len(low)} prompts whose minimum sums to {low.sum()} "
            f"and whose maximum sums to {high.sum()}"
        )


_ROUNDING = 1e-9  # rounding error of chances that add up to a whole number of groups


def expected_samples(scores: NDArray[np.float64], *, budget: int, uniform_share: float) -> NDArray[np.float64]:
    """Compute E[n] [C]: `uniform_share` of the budget is split evenly, the rest in proportion to `scores`.

    Without a positive score the whole budget is split evenly.

    Args:
        scores: [C] >= 0.
        budget: total number of samples.
        uniform_share: in [0, 1]; above 0, no candidate is given up for good.

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


def largest(scores: NDArray[np.float64], *, count: int) -> NDArray[np.float64]:
    """Mark the `count` largest scores [C] by 1 and the others by 0; of equal scores the earlier are taken."""
    marks = np.zeros(len(scores))
    marks[np.argsort(-scores, kind="stable")[:count]] = 1.0
    return marks


def select_groups(
    expected: NDArray[np.float64],
    *,
    budget: int,
    group_size: int,
    rng: np.random.Generator,
    maximum: int | None = None,
) -> NDArray[np.int64]:
    """Draw integers n [C] that sum to `budget`, each 0 or at least `group_size`, with E[n] close to `expected`.

    A candidate whose expected n is below `group_size` becomes a group of that size with its probability in
    `inclusion_chances`. Systematic sampling (Madow 1949) keeps the number of groups as constant as possible. All other
    candidates get their n. The remainder from rounding is split over the chosen candidates in proportion to their n.

    Args:
        expected: [C] >= 0, summing to `budget`.
        budget: total number of samples, > 0; a budget below `group_size` goes to one candidate.
        group_size: smallest group.
        rng: generator of the draws.
        maximum: ceiling on n, at least `group_size`; raised if the chosen candidates could not take the budget.
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
    """Compute the probability [C] that `select_groups` samples each candidate: n / group_size, at most 1.

    If the probabilities below 1 add up to more groups than the budget leaves room for, they are scaled down together.
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
    """Compute weights [C] that undo a selection: the inverse of each candidate's inclusion probability, normalised.

    The mean over the chosen prompts with these weights estimates, up to the cap, the mean over all candidates (Horvitz
    and Thompson 1952). With pi from `inclusion_chances` the weight is mean(pi) / pi_i, at most `cap`.
    """
    chances = inclusion_chances(expected, budget=budget, group_size=group_size)
    return np.minimum(chances.mean() / np.maximum(chances, 1e-12), cap)


def _systematic(chances: NDArray[np.float64], *, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw distinct indices, each with its probability (below 1); their number is the sum of these, at most `most`."""
    order = rng.permutation(len(chances))  # in a fixed order, neighbours would exclude each other
    ends = np.cumsum(chances[order])
    total = ends[-1] if len(ends) else 0.0
    points = np.arange(rng.uniform(), total + _ROUNDING)[:most]
    return order[np.minimum(np.searchsorted(ends, points, side="right"), len(ends) - 1)]
