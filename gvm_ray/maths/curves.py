"""Learning curves: the accuracy for a budget, the cost of an accuracy, and how many times as fast one is as another."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression

NUM_FINAL_EVALUATIONS = 3
NUM_POINTS = 101  # of the grid on which curves are stretched
MAX_STRETCH = 8.0
# A fit and a target computed from the same accuracies differ by rounding; accuracies are multiples of 1 / samples.
_ROUNDING = 1e-9
_LOG_STEP = np.log(MAX_STRETCH) / 80
_LOGS = _LOG_STEP * np.arange(-80, 81)


@dataclass(frozen=True, kw_only=True)
class TokenRatio:
    """The ratio of a baseline's tokens to a run's tokens, both up to the baseline's final accuracy."""

    value: float  # baseline's tokens / run's tokens, > 0; above 1 the run is cheaper
    censored: bool  # the run never reached the target: its tokens are all that it spent, fewer than it needs


def final_accuracy(accuracy: ArrayLike) -> float:
    """Compute the mean of the last three evaluations of [E], or of all if there are fewer; one alone is noisy.

    Raises:
        ValueError: there are no evaluations, or an accuracy isn't in [0, 1].
    """
    return float(np.mean(_accuracies(accuracy)[-NUM_FINAL_EVALUATIONS:]))


def tokens_to_reach(tokens: ArrayLike, accuracy: ArrayLike, target: float) -> float | None:
    """Compute the tokens at which a curve first reaches a target; None if it never does.

    The crossing is that of the isotonic (non-decreasing least-squares) fit of the accuracies, linear between
    evaluations. A running maximum would cross at the first lucky evaluation, earlier with more and noisier evaluations;
    the fit averages them. It also gives no credit for an accuracy that the run loses again.

    Args:
        tokens: [E] cumulative, non-decreasing; any other cost works as well.
        accuracy: [E] in [0, 1].
        target: the accuracy to reach. A curve always reaches its own :func:`final_accuracy`.

    Raises:
        ValueError: the arrays are empty, differ in shape or are out of range.
    """
    x, y = _curve(tokens, accuracy)
    fit = isotonic_regression(y).x
    reached = fit >= target - _ROUNDING
    if not reached.any():
        return None
    after = int(np.argmax(reached))
    if after == 0:
        return float(x[0])
    share = min(1.0, (target - fit[after - 1]) / (fit[after] - fit[after - 1]))
    return float(x[after - 1] + share * (x[after] - x[after - 1]))


def token_ratio(
    tokens: ArrayLike, accuracy: ArrayLike, *, baseline_tokens: ArrayLike, baseline_accuracy: ArrayLike
) -> TokenRatio | None:
    """Compute the ratio of a baseline's tokens to a run's tokens, both up to the baseline's final accuracy.

    Tokens and accuracies are [E]. For equal arms the geometric mean lies a few percent above 1 (1.01 to 1.04 in
    simulated noisy curves), because the target is the baseline's own, including its noise.

    Returns None if the target isn't above the first evaluation of both, the base policy's: there is nothing to reach.

    Raises:
        ValueError: as :func:`tokens_to_reach`.
    """
    x, y = _curve(tokens, accuracy)
    reference_x, reference_y = _curve(baseline_tokens, baseline_accuracy)
    target = final_accuracy(reference_y)
    if target <= max(y[0], reference_y[0]) + _ROUNDING:
        return None
    needed_by_baseline = tokens_to_reach(reference_x, reference_y, target)
    assert needed_by_baseline is not None  # a non-decreasing fit ends at or above the mean of the last evaluations
    needed = tokens_to_reach(x, y, target)
    spent = x[-1] if needed is None else needed
    if needed_by_baseline <= 0 or spent <= 0:
        raise ValueError(f"tokens to the target are {needed_by_baseline:g} (baseline) and {spent:g}; both must be > 0")
    return TokenRatio(value=float(needed_by_baseline / spent), censored=needed is None)


def area_under_curve(tokens: ArrayLike, accuracy: ArrayLike, *, up_to: float) -> float:
    """Compute the mean accuracy over tokens from the first evaluation to `up_to`, by the trapezoid rule; in [0, 1].

    Args:
        tokens: [E] cumulative, non-decreasing.
        accuracy: [E] in [0, 1].
        up_to: common end of the compared curves; between evaluations a curve is linear.

    Raises:
        ValueError: `up_to` is not past the first evaluation, or past the last; or as :func:`tokens_to_reach`.
    """
    x, y = _curve(tokens, accuracy)
    if not x[0] < up_to <= x[-1]:
        raise ValueError(
            f"up_to={up_to:g} must lie past the first evaluation ({x[0]:g}) and within the last ({x[-1]:g})"
        )
    before = x < up_to
    cut_x, cut_y = np.append(x[before], up_to), np.append(y[before], np.interp(up_to, x, y))
    return float(np.trapezoid(cut_y, cut_x) / (up_to - x[0]))


def _curve(tokens: ArrayLike, accuracy: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.asarray(tokens, dtype=np.float64), _accuracies(accuracy)
    if x.shape != y.shape:
        raise ValueError(f"tokens have shape {x.shape}, accuracies {y.shape}; give one of each per evaluation")
    if not (np.isfinite(x).all() and (x >= 0).all() and (np.diff(x) >= 0).all()):
        raise ValueError(f"tokens must be finite, >= 0 and non-decreasing, as they are cumulative; got {x.tolist()}")
    return x, y


def _accuracies(accuracy: ArrayLike) -> NDArray[np.float64]:
    y = np.asarray(accuracy, dtype=np.float64)
    if y.ndim != 1 or y.size == 0:
        raise ValueError(f"accuracies have shape {y.shape}; give one per evaluation, at least one")
    bad = ~((y >= 0) & (y <= 1))
    if bad.any():
        index = int(np.argmax(bad))
        raise ValueError(f"accuracy[{index}] = {y[index]} is not in [0, 1]")
    return y


# --- time stretch between curves --------------------------------------------------------------------------------------
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
