"""Sample-size formulas: how much each prompt deserves, and a budget split into integers that sum exactly.

Kept apart from the allocators so that a formula is tested with hand-made numbers and no bookkeeping around it.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Positive weights further than this below the largest count as equal to it: they change no share by a whole sample at
# any real budget, and the breakpoints bound/weight stay finite.
_SMALLEST_RELATIVE_WEIGHT = 1e-18


def gvm_weights(
    accept_rates: ArrayLike, gradient_norms: ArrayLike, *, alpha: float, beta: float
) -> NDArray[np.float64]:
    """GVM's weights [P]: G / sqrt(p + alpha / p^(beta - 1)), and 0 where p or G is 0.

    Sample sizes in proportion to them minimise sum_i G_i^2 / (n_i p_i), each term scaled by 1 / (1 + alpha / p_i^beta)
    (arXiv 2505.02391, Proposition 1).

    Args:
        accept_rates: p [P] in [0, 1].
        gradient_norms: G [P] >= 0.
        alpha: regulariser, > 0: how early prompts with a small p are given up.
        beta: regulariser's exponent, >= 2.

    Raises:
        ValueError: an entry is NaN, infinite, negative, or an accept rate above 1.
    """
    p = _finite_non_negative(accept_rates, name="accept_rates")
    norms = _finite_non_negative(gradient_norms, name="gradient_norms")
    if p.shape != norms.shape:
        raise ValueError(f"accept_rates has shape {p.shape}, gradient_norms {norms.shape}; give one of each per prompt")
    if p.size and p.max() > 1:
        index = int(np.argmax(p > 1))
        raise ValueError(f"accept_rates[{index}] = {p[index]} is above 1; it is a probability")
    weights = np.zeros_like(p)
    signal = (p > 0) & (norms > 0)
    with np.errstate(over="ignore", divide="ignore"):  # a vanishing p gives G / inf = 0, which is the limit
        weights[signal] = norms[signal] / np.sqrt(p[signal] + alpha / p[signal] ** (beta - 1))
    return weights


def apportion(
    weights: ArrayLike, *, budget: int, minimum: ArrayLike = 0, maximum: ArrayLike | None = None
) -> NDArray[np.int64]:
    """Integers n [P] that sum to `budget`, in proportion to `weights` as far as minimum <= n <= maximum allows.

    The real-valued shares are clip(level * w, minimum, maximum) at the level where they sum to the budget
    (water-filling); they are rounded by largest remainder, ties to the earlier index. A prompt of weight 0 gets its
    minimum, and more only when every other one is at its maximum. If all weights are 0 the split is as even as the
    bounds allow.

    Args:
        weights: [P] >= 0, of any scale.
        budget: the sum, >= 0.
        minimum: floor on n (not an addition to it), an integer or one per prompt [P].
        maximum: ceiling on n, likewise; None is no ceiling.

    Raises:
        ValueError: a weight is NaN, infinite or negative; the bounds are no non-negative integers, cross, or admit no
            split of the budget.
    """
    w = _finite_non_negative(weights, name="weights")
    low = _integer_bounds(minimum, name="minimum", size=w.size)
    high = _integer_bounds(budget if maximum is None else maximum, name="maximum", size=w.size)
    if maximum is None:
        high = np.maximum(high, low)  # an infeasible minimum is reported below, against the budget
    _check_feasible(low, high, budget)
    if not w.size:
        return np.zeros(0, dtype=np.int64)
    w = w / w.max() if w.max() > 0 else w
    positive = w > 0
    w[positive] = np.maximum(w[positive], _SMALLEST_RELATIVE_WEIGHT)
    shares = low.astype(np.float64)
    for_weighted = min(budget - int(low[~positive].sum()), int(high[positive].sum()))
    shares[positive] = _water_fill(w[positive], low[positive], high[positive], for_weighted)
    even = np.ones(w.size - int(positive.sum()))
    shares[~positive] = _water_fill(even, low[~positive], high[~positive], budget - for_weighted)
    return _round_to_sum(shares, high, budget)


def _water_fill(
    weights: NDArray[np.float64], low: NDArray[np.int64], high: NDArray[np.int64], total: int
) -> NDArray[np.float64]:
    """clip(level * weights, low, high) with the level at which it sums to `total`; low.sum() <= total <= high.sum()."""
    if total <= low.sum():
        return low.astype(np.float64)
    if total >= high.sum():
        return high.astype(np.float64)
    # The sum rises with the level, linearly between the levels at which a prompt leaves its floor or meets its ceiling.
    levels = np.unique(np.concatenate([low / weights, high / weights]))
    below, above = 0, len(levels) - 1
    while above - below > 1:
        middle = (below + above) // 2
        if np.clip(levels[middle] * weights, low, high).sum() <= total:
            below = middle
        else:
            above = middle
    free = (low / weights <= levels[below]) & (high / weights >= levels[above])
    shares = np.where(high / weights <= levels[below], high, low).astype(np.float64)
    shares[free] = (total - shares[~free].sum()) * (weights[free] / weights[free].sum())
    return np.clip(shares, low, high)


def _round_to_sum(shares: NDArray[np.float64], high: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Largest-remainder rounding of shares that sum to `total`, never above `high`."""
    counts = np.floor(shares).astype(np.int64)
    remainders = np.where(counts < high, shares - counts, -1.0)
    missing = total - int(counts.sum())
    counts[np.argsort(-remainders, kind="stable")[:missing]] += 1
    assert counts.sum() == total, f"rounded to {counts.sum()} instead of {total}"
    return counts


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
