"""Advantages of whole responses, from their rewards and explicit group ids.

Groups are ragged (1, 8, 37 samples) and in any order, so ids define them, never a reshape. Standard deviations are
sample standard deviations (n - 1 in the denominator), as in verl and TRL (`torch.std`).
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def group_normalized(
    rewards: ArrayLike,
    group_ids: ArrayLike,
    *,
    normalize_std: bool = True,
    epsilon: float = 1e-6,
    tolerance: float = 0.0,
) -> NDArray[np.float64]:
    """Compute (r - mean) / (std + epsilon) within each group (GRPO, arXiv 2402.03300), or r - mean without
    `normalize_std` (Dr. GRPO, arXiv 2503.20783).

    A group of one sample, or of equal rewards, has advantage exactly 0.

    Args:
        rewards: [N], finite.
        group_ids: [N] integers; equal ids are one group.
        normalize_std: divide by the group's sample standard deviation.
        epsilon: added to the standard deviation.
        tolerance: rewards of a group whose largest and smallest differ by at most this are equal.

    Returns:
        [N] advantages.

    Raises:
        ValueError: a reward isn't finite, or the shapes differ.
    """
    values = _finite(rewards)
    centered, inverse, sizes = _center(values, group_ids, tolerance=tolerance)
    if not normalize_std:
        return centered
    squares = np.bincount(inverse, weights=centered**2, minlength=len(sizes))
    std = np.sqrt(squares / np.maximum(sizes - 1, 1))
    return centered / (std + epsilon)[inverse]


def leave_one_out(rewards: ArrayLike, group_ids: ArrayLike, *, tolerance: float = 0.0) -> NDArray[np.float64]:
    """Compute r minus the mean of the other rewards in its group (RLOO, arXiv 2402.14740); 0 in a group of one, or of
    equal rewards.

    Args:
        rewards: [N], finite.
        group_ids: [N] integers; equal ids are one group.
        tolerance: rewards of a group whose largest and smallest differ by at most this are equal.

    Raises:
        ValueError: a reward isn't finite, or the shapes differ.
    """
    values = _finite(rewards)
    centered, inverse, sizes = _center(values, group_ids, tolerance=tolerance)
    # r - (sum - r) / (n - 1) = (r - mean) * n / (n - 1)
    return centered * (sizes / np.maximum(sizes - 1, 1))[inverse]


def shrunk_leave_one_out(rewards: ArrayLike, group_ids: ArrayLike) -> NDArray[np.float64]:
    """Compute r minus the mean of the other rewards in its group, shrunk to the mean of the other groups (James-Stein,
    arXiv 2511.03710).

    The baseline of a sample of group g is (1 - lambda_g) (mean of the others in g) + lambda_g M_g with lambda_g =
    v_g / (v_g + s_g). M_g and s_g are the mean and the mean squared deviation of the other groups' means, and v_g is
    the mean of their var / n, with the sample variance of groups of at least two. The baseline doesn't depend on the
    sample itself, so the gradient stays unbiased. A group of one has the baseline M_g; in a batch of one group nothing
    is shrunk.

    Args:
        rewards: [N], finite.
        group_ids: [N] integers; equal ids are one group.

    Raises:
        ValueError: a reward isn't finite, or the shapes differ.
    """
    values = _finite(rewards)
    centered, inverse, sizes = _center(values, group_ids, tolerance=0.0)
    others = len(sizes) - 1
    if others < 1:
        return leave_one_out(values, group_ids)
    means = np.bincount(inverse, weights=values) / sizes
    deviations = means - means.mean()
    centre = means.mean() - deviations / others  # M_g
    spread = (deviations @ deviations - deviations**2 * (1 + 1 / others)).clip(min=0.0) / others  # s_g
    is_pair = sizes > 1
    noise = np.bincount(inverse, weights=centered**2) / (sizes * np.maximum(sizes - 1, 1))
    variance = (noise.sum() - noise).clip(min=0.0) / np.maximum(is_pair.sum() - is_pair, 1)  # v_g
    total = variance + spread
    shrinkage = np.divide(variance, total, out=np.zeros_like(total), where=total > 0)
    shrinkage = np.where(is_pair, shrinkage, 1.0)[inverse]
    mean_of_others = values - centered * (sizes / np.maximum(sizes - 1, 1))[inverse]
    return values - (1 - shrinkage) * mean_of_others - shrinkage * centre[inverse]


def batch_normalized(values: ArrayLike, *, epsilon: float, num_tokens: ArrayLike | None = None) -> NDArray[np.float64]:
    """Compute (x - mean) / (std + epsilon) over all samples. A single sample, or equal values, give exactly 0.

    Each sample counts once (REINFORCE++, arXiv 2501.03262; SPO, arXiv 2509.13232). With `num_tokens` it counts once for
    each token: mean = sum L x / sum L and std^2 = sum L (x - mean)^2 / (sum L - 1), the moments of a loss that sums
    over tokens (SPO++, arXiv 2608.24870).

    Args:
        values: x [N], rewards or advantages, finite.
        epsilon: added to the standard deviation.
        num_tokens: L [N], the trained tokens of each sample.

    Raises:
        ValueError: a value isn't finite, or the shapes differ.
    """
    x = _finite(values)
    if num_tokens is None:
        return group_normalized(x, np.zeros(len(x), dtype=np.int64), epsilon=epsilon)
    counts = np.asarray(num_tokens, dtype=np.float64)
    if counts.shape != x.shape:
        raise ValueError(f"num_tokens has shape {counts.shape}, values {x.shape}; give one number per sample")
    total = counts.sum()
    if not total or not has_signal(x.min(), x.max()):
        return np.zeros_like(x)
    centered = x - (counts @ x) / total
    return centered / (np.sqrt((counts @ centered**2) / max(total - 1, 1)) + epsilon)


def has_signal(lowest: Any, highest: Any, *, tolerance: float = 0.0) -> Any:
    """Whether rewards of groups with this smallest and largest one differ by more than the tolerance, elementwise.

    A difference that is above the tolerance by rounding alone, such as 0.8 - 0.7 above 0.1, is within it.
    """
    return highest - lowest > tolerance * (1 + 1e-9)


def _center(
    values: NDArray[np.float64], group_ids: ArrayLike, *, tolerance: float
) -> tuple[NDArray[np.float64], NDArray[np.intp], NDArray[np.intp]]:
    """Rewards minus their group's mean [N], the group of each sample [N] as 0..G-1, and the group sizes [G]."""
    ids = np.asarray(group_ids)
    if ids.shape != values.shape:
        raise ValueError(f"group_ids has shape {ids.shape}, rewards {values.shape}; give one group id per reward")
    _, inverse, sizes = np.unique(ids, return_inverse=True, return_counts=True)
    means = np.bincount(inverse, weights=values, minlength=len(sizes)) / np.maximum(sizes, 1)
    lowest = np.full(len(sizes), np.inf)
    np.minimum.at(lowest, inverse, values)
    highest = np.full(len(sizes), -np.inf)
    np.maximum.at(highest, inverse, values)
    # The mean of equal rewards can differ from them by a rounding error, which division by epsilon would blow up.
    return (
        np.where(has_signal(lowest, highest, tolerance=tolerance)[inverse], values - means[inverse], 0.0),
        inverse,
        sizes,
    )


def _finite(rewards: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(rewards, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"rewards has shape {values.shape}; give a vector with one entry per sample")
    if not np.isfinite(values).all():
        index = int(np.argmin(np.isfinite(values)))
        raise ValueError(f"rewards[{index}] = {values[index]} is not finite; leave unscored samples out")
    return values
