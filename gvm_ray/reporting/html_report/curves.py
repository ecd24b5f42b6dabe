"""Panels of numbers over time: learning curves, phases, lengths and rewards, staleness, optimization."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gvm_ray.phase_clock import PHASES
from gvm_ray.reporting.console import short_count, short_duration
from gvm_ray.reporting.html_report.figures import INK, MUTED, SERIES, Panel, add_legend, drawing, series_style
from gvm_ray.reporting.html_report.run_data import RunData
from gvm_ray.types import Float64Array

_MAX_POINTS = 240  # of a line: more can't be seen, and make the page heavy
_MAX_BARS = 60
_SMOOTHED = 0.05  # of a run's steps in one running mean


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a curve is drawn against."""

    metric: str
    label: str
    tick: Callable[[float], str] = short_count

    @property
    def slug(self) -> str:
        return self.label.split()[-1]


STEPS = Progress(metric="step", label="steps")
PROGRESS = (
    Progress(metric="cost/generated_tokens", label="generated tokens"),
    Progress(metric="cost/optimizer_updates", label="optimizer updates"),
    Progress(metric="time_s", label="wall time", tick=short_duration),
)


def accuracy_panels(runs: Sequence[RunData]) -> list[Panel]:
    """Held-out accuracy against tokens, updates and time; the base policy's at 0."""
    panels = []
    for progress in PROGRESS:
        curves = [_evaluations(run, progress) for run in runs]
        if not any(x.size for x, _ in curves):
            return []
        with drawing() as (figure, axes):
            for index, (run, (x, y)) in enumerate(zip(runs, curves, strict=True)):
                if x.size:
                    axes.plot(x, y, label=run.name, marker="o", markersize=3, linewidth=1.6, **series_style(index))
            axes.set_xlim(left=0)
            axes.set(xlabel=progress.label, ylabel="held-out accuracy")
            axes.xaxis.set_major_formatter(lambda value, _, tick=progress.tick: tick(value))
            add_legend(figure, axes)
        panels.append(
            Panel(name=f"accuracy-{progress.slug}", title=f"Accuracy against {progress.label}", figure=figure)
        )
    return panels


def metric_panel(
    runs: Sequence[RunData], metric: str, *, title: str, progress: Progress = STEPS, log: bool = False
) -> list[Panel]:
    """A metric of every step: each value faint, their running mean on top. Empty where no run has a value."""
    curves = [_known(run.column(progress.metric), run.column(metric)) for run in runs]
    if not any(x.size for x, _ in curves):
        return []
    with drawing() as (figure, axes):
        for index, (run, (x, y)) in enumerate(zip(runs, curves, strict=True)):
            if not x.size:
                continue
            style = series_style(index)
            axes.plot(*_thinned(x, y, _MAX_POINTS), linewidth=0.8, alpha=0.35, **style)
            axes.plot(*_thinned(x, running_mean(y), _MAX_POINTS), linewidth=1.6, label=run.name, **style)
        if log and any((y > 0).any() for _, y in curves):
            axes.set_yscale("log", nonpositive="mask")
        axes.set(xlabel=progress.label)
        axes.xaxis.set_major_formatter(lambda value, _: progress.tick(value))
        add_legend(figure, axes)
    name = metric.replace("/", "-") + ("" if progress is STEPS else f"-{progress.slug}")
    return [Panel(name=name, title=title, figure=figure)]


def reward_panels(runs: Sequence[RunData]) -> list[Panel]:
    """Mean reward against tokens, updates and time."""
    return [
        panel
        for progress in PROGRESS
        for panel in metric_panel(runs, "reward/mean", title=f"Reward against {progress.label}", progress=progress)
    ]


def decile_panel(run: RunData, index: int, name: str, *, title: str) -> list[Panel]:
    """The distribution of a step's samples over time: median, the middle 40 %, 80 % and all of them.

    Empty where the run has no deciles of it, or they are all of one or two values, whose mean says the same.
    """
    rows = [(row["step"], row[name]) for row in run.arrays if name in row]
    if not rows:
        return []
    steps, deciles = np.array([row[0] for row in rows], float), np.array([row[1] for row in rows], float)
    if np.unique(deciles).size <= 2:
        return []
    bins = _bins(len(steps), _MAX_POINTS)
    steps, deciles = _bin_means(steps, bins), np.stack([_bin_means(column, bins) for column in deciles.T])
    colour = SERIES[index % len(SERIES)]
    with drawing() as (figure, axes):
        for low, high, label in ((0, 10, "all"), (1, 9, "middle 80 %"), (3, 7, "middle 40 %")):
            axes.fill_between(steps, deciles[low], deciles[high], color=colour, alpha=0.22, linewidth=0, label=label)
        axes.plot(steps, deciles[5], color=colour, linewidth=1.6, label="median")
        axes.set(xlabel="steps")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        add_legend(figure, axes, columns=4)
    return [Panel(name=f"{name}-{index}", title=title, figure=figure)]


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
        axes.set(xlabel="steps", ylabel="seconds a step")
        add_legend(figure, axes)
    return [Panel(name=f"phases-{index}", title=f"Phases of {run.name}", figure=figure)]


def running_mean(values: Float64Array) -> Float64Array:
    """[S] mean of the values around each step, fewer of them at the ends."""
    half = int(len(values) * _SMOOTHED / 2)
    window = np.ones(2 * half + 1)
    return (
        np.convolve(values, window, "full")[half : half + len(values)]
        / np.convolve(np.ones(len(values)), window, "full")[half : half + len(values)]
    )


def _evaluations(run: RunData, progress: Progress) -> tuple[Float64Array, Float64Array]:
    x, y = _known(run.column(progress.metric), run.column("eval/accuracy"))
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
    return [slice(start, end) for start, end in zip(edges[:-1], edges[1:], strict=True)]


def _bin_means(values: Float64Array, bins: Sequence[slice]) -> Float64Array:
    return np.array([values[each].mean() for each in bins])
