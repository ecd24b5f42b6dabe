"""Panels of the report: learning curves, the distribution of the budget, calibration, lengths, rewards and phases."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gvm_ray.maths.statistics import binned_mean, brier_score, rank_correlation, reliability_bins
from gvm_ray.phase_clock import PHASES
from gvm_ray.reporting.html_report.figures import (
    INK,
    MUTED,
    SERIES,
    Panel,
    add_legend,
    drawing,
    heat_panel,
    series_style,
)
from gvm_ray.reporting.html_report.run_data import RunData
from gvm_ray.reporting.progress import short_count
from gvm_ray.types import Float64Array

_NUM_BINS = 10  # of accept rates in [0, 1]
_THIRDS = ("first third", "second third", "last third")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Accept rates that an allocator predicted, compared with those then observed."""

    brier: float  # mean squared error
    rank_correlation: float  # Spearman's; NaN if there is nothing to rank
    num_prompts: int
    expected: Float64Array  # [B] means of non-empty bins
    seen: Float64Array  # [B]
    counts: Float64Array  # [B]

    @classmethod
    def of(cls, run: RunData) -> "Calibration | None":
        """Compute the calibration over all steps; None if the allocator predicts nothing before it samples."""
        rows = run.rows_of("predicted_accept_rate", "observed_accept_rate")
        if not rows or not sum(row[0].size for row in rows):
            return None
        p, y = (np.concatenate(column) for column in _columns(rows))
        expected, seen, counts = reliability_bins(p, y, num_bins=_NUM_BINS)
        return cls(
            brier=brier_score(p, y),
            rank_correlation=rank_correlation(p, y) if p.size > 1 else float("nan"),
            num_prompts=p.size,
            expected=expected,
            seen=seen,
            counts=counts.astype(np.float64),
        )


def flow_panel(run: RunData, index: int) -> list[Panel]:
    """Shares of the samples by estimated accept rate of the prompt, over the steps."""
    rows = run.rows_of("accept_rate", "samples_per_prompt")
    spent = np.array([_samples_by_rate(rates, counts) for rates, counts in rows])
    if not spent.sum():
        return []
    return [
        heat_panel(
            spent,
            name=f"flow-{index}",
            title=f"Where the samples of {run.name} went",
            label="estimated accept rate",
            steps=run.num_steps,
        )
    ]


def thirds_panel(run: RunData, index: int) -> list[Panel]:
    """Mean number of samples of a prompt by its estimated accept rate, in the first, second and last third of a run."""
    rows = run.rows_of("accept_rate", "samples_per_prompt")
    edges = np.linspace(0, len(rows), len(_THIRDS) + 1).astype(int)
    curves: dict[str, tuple[Float64Array, Float64Array]] = {}
    for (start, end), third in zip(itertools.pairwise(edges), _THIRDS, strict=True):
        rates, counts = (np.concatenate([np.zeros(0), *column]) for column in _columns(rows[start:end]))
        known = np.isfinite(rates)
        if known.any():
            curves[third] = binned_mean(rates[known], counts[known], num_bins=_NUM_BINS)[:2]
    if not curves:
        return []
    with drawing() as (figure, axes):
        for number, (third, (rates, counts)) in enumerate(curves.items()):
            axes.plot(rates, counts, marker="o", markersize=3.5, linewidth=1.6, color=SERIES[number], label=third)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(bottom=0)
        axes.set(xlabel="estimated accept rate", ylabel="samples of a prompt")
        add_legend(figure, axes)
    return [Panel(name=f"samples-{index}", title=f"Samples of a prompt in {run.name}", figure=figure)]


def calibration_panel(runs: Sequence[RunData]) -> list[Panel]:
    """Observed accept rates against predicted ones, in bins of 0.1; larger points mean more prompts in the bin."""
    found = [(index, run, Calibration.of(run)) for index, run in enumerate(runs)]
    if not any(calibration for _, _, calibration in found):
        return []
    with drawing() as (figure, axes):
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="dotted")
        for index, run, calibration in found:
            if calibration is None:
                continue
            sizes = 8 + 60 * calibration.counts / calibration.counts.max()
            style = series_style(index)
            axes.plot(calibration.expected, calibration.seen, linewidth=1.2, label=run.name, **style)
            axes.scatter(calibration.expected, calibration.seen, s=sizes, color=style["color"], linewidths=0)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set(xlabel="expected accept rate", ylabel="accept rate seen")
        add_legend(figure, axes)
    return [Panel(name="calibration", title="Expected and seen accept rates", figure=figure)]


def _columns(rows: Sequence[Sequence[Float64Array]]) -> list[list[Float64Array]]:
    return [[row[0] for row in rows], [row[1] for row in rows]]


def _samples_by_rate(rates: Float64Array, counts: Float64Array) -> Float64Array:
    """The number of samples [B] by bin of the prompt's estimated accept rate, without prompts that have no estimate."""
    known = np.isfinite(rates)
    bins = np.clip((rates[known] * _NUM_BINS).astype(int), 0, _NUM_BINS - 1)
    return np.bincount(bins, weights=counts[known], minlength=_NUM_BINS).astype(np.float64)


_MAX_POINTS = 240  # of a line: more can't be seen, and would bloat the page
_MAX_BARS = 60
_REWARD_BINS = 10
_FLAT = 1e-6  # relative range below which a curve is drawn as flat
_SMOOTHED = 0.05  # share of a run's steps in one running mean


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The horizontal axis of a curve."""

    metric: str
    label: str
    unit: str = ""
    scale: float = 1.0  # the metric's value of one unit

    @property
    def name(self) -> str:
        """The name in file names."""
        return self.label.split()[-1]

    @property
    def axis_label(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def of(self, run: RunData) -> Float64Array:
        """Values [S] by step."""
        return run.column(self.metric) / self.scale


def wall_time(runs: Sequence[RunData]) -> Progress:
    """Wall time, in the unit that fits the longest run."""
    longest = max((run.last("time_s") or 0.0 for run in runs), default=0.0)
    unit, scale = next(((unit, scale) for unit, scale in _UNITS if longest >= 2 * scale), ("s", 1.0))
    return Progress(metric="time_s", label="wall time", unit=unit, scale=scale)


_UNITS = (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0))
STEPS = Progress(metric="step", label="steps")
TOKENS = Progress(metric="cost/generated_tokens", label="generated tokens")
UPDATES = Progress(metric="cost/optimizer_updates", label="optimizer updates")


def accuracy_panels(runs: Sequence[RunData]) -> list[Panel]:
    """Held-out accuracy against tokens, updates and time; the base policy is at 0."""
    panels = []
    for progress in (TOKENS, UPDATES, wall_time(runs)):
        curves = [_evaluations(run, progress) for run in runs]
        if not any(x.size for x, _ in curves):
            return []
        with drawing() as (figure, axes):
            for index, (run, (x, y)) in enumerate(zip(runs, curves, strict=True)):
                if x.size:
                    axes.plot(x, y, label=run.name, marker="o", markersize=3, linewidth=1.6, **series_style(index))
            axes.set_xlim(left=0)
            axes.set(xlabel=progress.axis_label, ylabel="held-out accuracy")
            axes.xaxis.set_major_formatter(_number_tick)
            add_legend(figure, axes)
        panels.append(
            Panel(name=f"accuracy-{progress.name}", title=f"Accuracy against {progress.label}", figure=figure)
        )
    return panels


def metric_panel(
    runs: Sequence[RunData], metric: str, *, title: str, progress: Progress = STEPS, log: bool = False
) -> list[Panel]:
    """A metric of every step: faint values under their running mean. Empty if no run has a value."""
    curves = [_known(progress.of(run), run.column(metric)) for run in runs]
    if not any(x.size for x, _ in curves):
        return []
    with drawing() as (figure, axes):
        for index, (run, (x, y)) in enumerate(zip(runs, curves, strict=True)):
            if not x.size:
                continue
            style = series_style(index)
            axes.plot(*_thinned(x, y, _MAX_POINTS), linewidth=0.8, alpha=0.35, **style)
            axes.plot(*_thinned(x, running_mean(y), _MAX_POINTS), linewidth=1.6, label=run.name, **style)
        values = np.concatenate([y for _, y in curves])
        if log and values.min() > 0:
            axes.set_yscale("log")
        elif np.ptp(values) <= _FLAT * max(1.0, abs(values[0])):  # don't magnify rounding errors
            axes.set_ylim(min(0.0, 1.2 * values[0]), max(1.0, 1.2 * values[0]))
        axes.set(xlabel=progress.axis_label)
        axes.xaxis.set_major_formatter(_number_tick)
        add_legend(figure, axes)
    name = metric.replace("/", "-") + ("" if progress is STEPS else f"-{progress.name}")
    return [Panel(name=name, title=title, figure=figure)]


def reward_panels(runs: Sequence[RunData]) -> list[Panel]:
    """Mean reward against tokens, updates and time."""
    return [
        panel
        for progress in (TOKENS, UPDATES, wall_time(runs))
        for panel in metric_panel(runs, "reward/mean", title=f"Reward against {progress.label}", progress=progress)
    ]


def length_panel(run: RunData, index: int) -> list[Panel]:
    """Response lengths of each step: median, the middle 40 % and 80 %, and all. Empty if no step has their deciles."""
    steps, deciles = _deciles(run, "length_deciles")
    if not steps.size:
        return []
    bins = _bins(len(steps), _MAX_POINTS)
    steps, deciles = _bin_means(steps, bins), [_bin_means(column, bins) for column in deciles.T]
    colour = SERIES[index % len(SERIES)]
    with drawing() as (figure, axes):
        for low, high, label in ((0, 10, "all"), (1, 9, "middle 80 %"), (3, 7, "middle 40 %")):
            axes.fill_between(steps, deciles[low], deciles[high], color=colour, alpha=0.22, linewidth=0, label=label)
        axes.plot(steps, deciles[5], color=colour, linewidth=1.6, label="median")
        axes.set(xlabel="steps", ylabel="tokens")
        axes.yaxis.set_major_formatter(_number_tick)
        add_legend(figure, axes)
    return [Panel(name=f"lengths-{index}", title=f"Response lengths of {run.name}", figure=figure)]


def reward_distribution_panel(run: RunData, index: int) -> list[Panel]:
    """Shares of the samples by reward, with a resolution of a tenth. Empty if no step has the deciles of rewards."""
    _, deciles = _deciles(run, "reward_deciles")
    if not deciles.size:
        return []
    low, high = float(deciles.min()), float(deciles.max())
    span = (low, high) if high > low else (low - 0.5, low + 0.5)
    amounts = np.array([np.histogram(each, bins=_REWARD_BINS, range=span)[0] for each in deciles], dtype=np.float64)
    title = f"Rewards of {run.name}"
    return [heat_panel(amounts, name=f"rewards-{index}", title=title, label="reward", steps=run.num_steps, span=span)]


def phase_panel(run: RunData, index: int) -> list[Panel]:
    """Seconds of each phase per step, stacked, and the seconds of the whole step."""
    seconds = {name: run.column(f"time/{name}_s") for name in (*PHASES, "idle")}
    seconds = {name: np.nan_to_num(values) for name, values in seconds.items() if np.nansum(values) > 0}
    if not seconds:
        return []
    bins = _bins(len(run.rows), _MAX_BARS)
    steps = _bin_means(run.column("step"), bins)
    with drawing() as (figure, axes):
        colours = [MUTED if name == "idle" else SERIES[i % len(SERIES)] for i, name in enumerate(seconds)]
        stacked = [_bin_means(values, bins) for values in seconds.values()]
        axes.stackplot(steps, stacked, labels=[name.replace("_", " ") for name in seconds], colors=colours, alpha=0.85)
        passed = _bin_means(np.diff(run.column("time_s"), prepend=0.0), bins)
        axes.plot(steps, passed, color=INK, linewidth=1.2, label="whole step")
        usual = max(float(np.quantile(each, 0.95)) for each in (passed, np.sum(stacked, axis=0)))
        axes.set_ylim(0, 1.5 * usual or None)  # the first step may have waited long for the start of the system
        axes.set(xlabel="steps", ylabel="seconds per step")
        add_legend(figure, axes)
    return [Panel(name=f"phases-{index}", title=f"Phases of {run.name}", figure=figure)]


def running_mean(values: Float64Array) -> Float64Array:
    """Mean [S] of the values around each step, of fewer values at the ends."""
    window = np.ones(2 * int(len(values) * _SMOOTHED / 2) + 1)
    sums, counts = (np.convolve(each, window, "full") for each in (values, np.ones(len(values))))
    half = len(window) // 2
    return (sums / counts)[half : half + len(values)]


def _deciles(run: RunData, name: str) -> tuple[Float64Array, Float64Array]:
    """Steps [S] and their deciles [S, 11]."""
    rows = [(row["step"], row[name]) for row in run.arrays if name in row]
    return np.array([step for step, _ in rows], dtype=np.float64), np.array(
        [each for _, each in rows], dtype=np.float64
    )


def _evaluations(run: RunData, progress: Progress) -> tuple[Float64Array, Float64Array]:
    x, y = _known(progress.of(run), run.column("eval/accuracy"))
    if run.base_accuracy is None:
        return x, y
    return np.insert(x, 0, 0.0), np.insert(y, 0, run.base_accuracy)


def _known(x: Float64Array, y: Float64Array) -> tuple[Float64Array, Float64Array]:
    known = np.isfinite(x) & np.isfinite(y)
    return x[known], y[known]


def _thinned(x: Float64Array, y: Float64Array, limit: int) -> tuple[Float64Array, Float64Array]:
    """Average neighbours, so that at most `limit` points are left."""
    bins = _bins(len(x), limit)
    return _bin_means(x, bins), _bin_means(y, bins)


def _bins(size: int, limit: int) -> list[slice]:
    edges = np.linspace(0, size, min(size, limit) + 1).astype(int)
    return [slice(start, end) for start, end in itertools.pairwise(edges)]


def _bin_means(values: Float64Array, bins: Sequence[slice]) -> Float64Array:
    return np.array([values[each].mean() for each in bins])


def _number_tick(value: float, _: float) -> str:
    return short_count(value) if abs(value) >= 1000 else f"{value:g}"
