"""Time stretch between learning curves: how many times as fast one of them is."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

NUM_POINTS = 101
MAX_STRETCH = 8.0
_LOG_STEP = np.log(MAX_STRETCH) / 80
_LOGS = _LOG_STEP * np.arange(-80, 81)


def on_grid(
    costs: Sequence[ArrayLike], accuracies: Sequence[ArrayLike], *, up_to: float, num_points: int = NUM_POINTS
) -> NDArray[np.float64]:
    """Interpolate S curves linearly at equally spaced costs from 0 to `up_to`: [S, K].

    Args:
        costs: [E] of each curve, cumulative and non-decreasing.
        accuracies: [E] of each curve.
        up_to: a cost that every curve reaches.
        num_points: K.
    """
    grid = np.linspace(0, up_to, num_points)
    return np.stack([np.interp(grid, np.asarray(c), np.asarray(a)) for c, a in zip(costs, accuracies, strict=True)])


def log_stretch(arms: NDArray[np.float64], baselines: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit the logarithm of c in arm(t) = baseline(c t) to pairs of curves on the same grid: [B, K] each to [B].

    Least squares over the part where both curves are known, each point of the slower one weighing the same. Exchanging
    arm and baseline exchanges the sign. c lies within 1 / MAX_STRETCH and MAX_STRETCH. Curves that don't rise hold no
    stretch, and the fit to their noise means nothing.
    """
    errors = np.concatenate([_errors(baselines, arms)[:0:-1], _errors(arms, baselines)])
    best = np.argmin(errors, axis=0)
    inner = np.clip(best, 1, len(_LOGS) - 2)
    columns = np.arange(arms.shape[0])
    before, at, after = (errors[inner + shift, columns] for shift in (-1, 0, 1))
    curvature = before - 2 * at + after
    shift = np.divide(before - after, 2 * curvature, out=np.zeros_like(at), where=curvature > 0)
    return np.where(best == inner, _LOGS[inner] + _LOG_STEP * np.clip(shift, -0.5, 0.5), _LOGS[best])


def jackknife_log_stretch(arms: NDArray[np.float64], baselines: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the log stretch of the mean curves over paired seeds, and its jackknife's pseudo-values: [1 + S].

    A pseudo-value is S times the log stretch of all seeds minus (S - 1) times that without one (Tukey, 1958); their
    mean's Student-t interval is the jackknife's. With a single seed there is the stretch alone: [1].

    Args:
        arms: [..., S, K] curves on a common grid; leading dimensions are comparisons, and come first in the result.
        baselines: [..., S, K] with the same seeds.
    """
    num_seeds, num_points = arms.shape[-2:]

    def means(curves: NDArray[np.float64]) -> NDArray[np.float64]:
        total = curves.sum(axis=-2, keepdims=True)
        left_out = (total - curves) / max(num_seeds - 1, 1)
        return np.concatenate([total / num_seeds, left_out] if num_seeds > 1 else [total], axis=-2)

    arm_means, baseline_means = means(arms), means(baselines)
    fits = log_stretch(arm_means.reshape(-1, num_points), baseline_means.reshape(-1, num_points))
    logs = fits.reshape(arm_means.shape[:-1])
    return np.concatenate([logs[..., :1], num_seeds * logs[..., :1] - (num_seeds - 1) * logs[..., 1:]], axis=-1)


def _errors(fast: NDArray[np.float64], slow: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean squared error of fast(t) = slow(c t) for each c >= 1: [C, B]."""
    num_points = fast.shape[-1]
    errors = []
    for log in _LOGS[_LOGS >= 0]:
        at = np.arange(num_points) / np.exp(log)
        low = np.minimum(at.astype(int), num_points - 2)
        share = at - low
        squeezed = fast[:, low] * (1 - share) + fast[:, low + 1] * share
        errors.append(np.mean((squeezed - slow) ** 2, axis=-1))
    return np.stack(errors)
