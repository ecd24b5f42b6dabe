"""Panels of numbers over time: learning curves, phases, lengths and rewards, staleness, optimization."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gvm_ray.phase_clock import PHASES
from gvm_ray.reporting.console import short_count
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
from gvm_ray.types import Float64Array

_MAX_POINTS = 240  # of a line: more can't be seen, and make the page heavy
_MAX_BARS = 60
_REWARD_BINS = 10
_FLAT = 1e-6  # relative to its size, a difference that says nothing
_SMOOTHED = 0.05  # of a run's steps in one running mean


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a curve is drawn against."""

    metric: str
    label: str
    unit: str = ""
    scale: float = 1.0  # of the unit

    @property
    def name(self) -> str:
        """Of files."""
        return self.label.split()[-1]

    @property
    def axis_label(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def of(self, run: RunData) -> Float64Array:
        """[S] step by step."""
        return run.column(self.metric) / self.scale


def wall_time(runs: Sequence[RunData]) -> Progress:
    """In the unit that fits the longest run."""
    longest = max((run.last("time_s") or 0.0 for run in runs), default=0.0)
    unit, scale = next(((unit, scale) for unit, scale in _UNITS if longest >= 2 * scale), ("s", 1.0))
    return Progress(metric="time_s", label="wall time", unit=unit, scale=scale)


_UNITS = (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0))
STEPS = Progress(metric="step", label="steps")
TOKENS = Progress(metric="cost/generated_tokens", label="generated tokens")
UPDATES = Progress(metric="cost/optimizer_updates", label="optimizer updates")


def accuracy_panels(runs: Sequence[RunData]) -> list[Panel]:
    """Held-out accuracy against tokens, updates and time; the base policy's at 0."""
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
    """A metric of every step: each value faint, their running mean on top. Empty where no run has a value."""
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
        elif np.ptp(values) <= _FLAT * max(1.0, abs(values[0])):  # not a picture of rounding errors
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
    """The lengths of each step's responses: median, the middle 40 %, 80 % and all. Empty without their deciles."""
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
    """Share of the samples at each reward, to a tenth of all of them. Empty without the rewards' deciles."""
    _, deciles = _deciles(run, "reward_deciles")
    if not deciles.size:
        return []
    low, high = float(deciles.min()), float(deciles.max())
    span = (low, high) if high > low else (low - 0.5, low + 0.5)
    amounts = np.array([np.histogram(each, bins=_REWARD_BINS, range=span)[0] for each in deciles], dtype=np.float64)
    title = f"Rewards of {run.name}"
    return [heat_panel(amounts, name=f"rewards-{index}", title=title, label="reward", steps=run.num_steps, span=span)]


def phase_panel(run: RunData, index: int) -> list[Panel]:
    """Seconds a step in which each phase was under way, on top of one another, and the seconds of the step."""
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
        axes.set_ylim(0, 1.5 * usual or None)  # the first step may have waited long for the system
        axes.set(xlabel="steps", ylabel="seconds a step")
        add_legend(figure, axes)
    return [Panel(name=f"phases-{index}", title=f"Phases of {run.name}", figure=figure)]


def running_mean(values: Float64Array) -> Float64Array:
    """[S] mean of the values around each step, fewer of them at the ends."""
    window = np.ones(2 * int(len(values) * _SMOOTHED / 2) + 1)
    sums, counts = (np.convolve(each, window, "full") for each in (values, np.ones(len(values))))
    half = len(window) // 2
    return (sums / counts)[half : half + len(values)]


def _deciles(run: RunData, name: str) -> tuple[Float64Array, Float64Array]:
    """[S] steps and their [S, 11] deciles."""
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
    """Means of neighbours, so that at most so many points are left."""
    bins = _bins(len(x), limit)
    return _bin_means(x, bins), _bin_means(y, bins)


def _bins(size: int, limit: int) -> list[slice]:
    edges = np.linspace(0, size, min(size, limit) + 1).astype(int)
    return [slice(start, end) for start, end in itertools.pairwise(edges)]


def _bin_means(values: Float64Array, bins: Sequence[slice]) -> Float64Array:
    return np.array([values[each].mean() for each in bins])


def _number_tick(value: float, _: float) -> str:
    return short_count(value) if abs(value) >= 1000 else f"{value:g}"
