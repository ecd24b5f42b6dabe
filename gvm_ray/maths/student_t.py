"""Student-t intervals of means over seeds or prompts, pooled over settings as Welch and Satterthwaite do.

Values come as strata: name of a setting -> seed -> value. A value already compares two runs of one seed (as their
difference, say), so pairing is in the values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student_t

MIN_SEEDS = 3
_CONFIDENCE = 0.95

Strata = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over settings and seeds."""

    value: float
    interval: tuple[float, float] | None  # None if a setting has fewer than MIN_SEEDS seeds

    def excludes(self, value: float) -> bool:
        """True if there is an interval, and the value lies outside it."""
        return self.interval is not None and not self.interval[0] <= value <= self.interval[1]

    def exponential(self) -> "Estimate":
        """The estimate of a ratio from that of its logarithm."""
        ends = None if self.interval is None else (float(np.exp(self.interval[0])), float(np.exp(self.interval[1])))
        return Estimate(value=float(np.exp(self.value)), interval=ends)


def stratified_mean(strata: Strata) -> float:
    """Compute the mean over settings, equally weighted, of the mean over each setting's seeds.

    Raises:
        ValueError: there is no setting, or a setting has no seeds.
    """
    return float(np.mean([values.mean() for values in _arrays(strata)]))


def estimate_mean(strata: Strata) -> Estimate:
    """Compute the stratified mean with its 95 % Student-t interval.

    Raises:
        ValueError: there is no setting, or a setting has no seeds.
    """
    samples = _arrays(strata)
    value = stratified_mean(strata)
    if min(map(len, samples)) < MIN_SEEDS:
        return Estimate(value=value, interval=None)
    half = float(half_width(samples))
    return Estimate(value=value, interval=(value - half, value + half))


def half_width(samples: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Compute half the width of the 95 % interval of the mean of means [...], from M samples [..., S_m] with S_m >= 2.

    Degrees of freedom are those of Welch (1947) and Satterthwaite (1946): S - 1 for one sample, and up to the sum of
    them for several. Samples without variance give 0.
    """
    parts = [values.var(axis=-1, ddof=1) / values.shape[-1] / len(samples) ** 2 for values in samples]
    variance = np.sum(parts, axis=0)
    squares = np.sum([part**2 / (values.shape[-1] - 1) for part, values in zip(parts, samples, strict=True)], axis=0)
    freedom = np.divide(variance**2, squares, out=np.ones_like(variance), where=squares > 0)
    return student_t.ppf((1 + _CONFIDENCE) / 2, freedom) * np.sqrt(variance)


def pointwise_interval(curves: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the 95 % interval of the mean curve at each point: S seeds at X points [S, X] to [X], [X].

    Raises:
        ValueError: fewer than MIN_SEEDS curves.
    """
    if len(curves) < MIN_SEEDS:
        raise ValueError(f"an interval needs at least {MIN_SEEDS} seeds, got {len(curves)} curves; run more seeds")
    half = half_width([np.moveaxis(curves, 0, -1)])
    mean = curves.mean(axis=0)
    return mean - half, mean + half


def _arrays(strata: Strata) -> Sequence[NDArray[np.float64]]:
    if not strata:
        raise ValueError("there is no setting to take a mean over; give at least one")
    for name, values in strata.items():
        if not values:
            raise ValueError(f"setting {name!r} has no seeds; leave it out, or run it")
    return [_array(list(values.values())) for values in strata.values()]


def _array(values: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)
