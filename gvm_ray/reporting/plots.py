"""The two plots of a run: accuracy against generated tokens, and samples against estimated accept rates."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gvm_ray.maths.statistics import binned_mean
from gvm_ray.reporting.progress import short_count
from gvm_ray.reporting.run_folder import RunFolder, read_rows, read_steps
from gvm_ray.types import Float64Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE = "#2a6fb0", "#d1661b"


def write_plots(folder: RunFolder, *, base_accuracy: float | None = None) -> list[Path]:
    """Draw the plots for which the run's files have data into its report folder; returns the written files."""
    rows = read_steps(folder.metrics)
    written: list[Path] = []
    if base_accuracy is not None or any(row.get("eval/accuracy") is not None for row in rows):
        written.append(folder.report / "accuracy.png")
        plot_accuracy(rows, written[-1], base_accuracy=base_accuracy)
    arrays = [row for row in read_rows(folder.histograms) if {"accept_rate", "samples_per_prompt"} <= row.keys()]
    if arrays:
        written.append(folder.report / "allocation.png")
        plot_allocation(_joined(arrays, "accept_rate"), _joined(arrays, "samples_per_prompt"), written[-1])
    return written


def plot_accuracy(rows: Sequence[Mapping[str, Any]], path: Path, *, base_accuracy: float | None = None) -> None:
    """Plot held-out accuracy against cumulative generated tokens, one point per evaluated row of metrics.jsonl.

    Args:
        rows: rows of metrics.jsonl; rows without `eval/accuracy` are skipped.
        path: the PNG to write.
        base_accuracy: accuracy before the first step, drawn at 0 tokens.
    """
    evaluated = [row for row in rows if row.get("eval/accuracy") is not None]
    tokens = [float(row["cost/generated_tokens"]) for row in evaluated]
    accuracies = [float(row["eval/accuracy"]) for row in evaluated]
    if base_accuracy is not None:
        tokens, accuracies = [0.0, *tokens], [base_accuracy, *accuracies]
    figure = new_figure()
    axes = add_axes(figure)
    axes.plot(tokens, accuracies, color=BLUE, marker="o", markersize=5, linewidth=2, clip_on=False, zorder=3)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: short_count(value))
    axes.set_xlabel("generated tokens (cumulative, pilots included)", fontsize=13)
    axes.set_ylabel("held-out accuracy", fontsize=13)
    save_figure(figure, path)


def plot_allocation(p_hat: Float64Array, counts: Float64Array, path: Path) -> None:
    """Plot samples n_i against the estimated accept rate of each prompt, with the mean over bins of 0.1.

    Args:
        p_hat: [M] estimates in [0, 1]; prompts without an estimate, NaN, are left out.
        counts: [M] numbers of samples of the same prompts.
        path: the PNG to write.
    """
    known = np.isfinite(p_hat)
    p_hat, counts = p_hat[known], counts[known]
    figure = new_figure()
    axes = add_axes(figure)
    # Both are discrete, so points would hide each other.
    jitter = np.random.default_rng(0)
    axes.scatter(
        p_hat + jitter.uniform(-0.02, 0.02, p_hat.size),
        counts + jitter.uniform(-0.3, 0.3, counts.size),
        s=12,
        alpha=min(0.6, max(0.2, 150 / max(p_hat.size, 1))),
        color=BLUE,
        linewidths=0,
        label="one prompt in one step",
    )
    centres, means, _ = binned_mean(p_hat, counts, num_bins=10)
    axes.plot(centres, means, color=ORANGE, marker="o", markersize=6, linewidth=2, label="mean of a bin")
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.5, 1.05 * float(counts.max(initial=1.0)) + 0.5)
    axes.set_xlabel("estimated accept rate of the prompt", fontsize=13)
    axes.set_ylabel("samples of the prompt", fontsize=13)
    legend = axes.legend(frameon=False, fontsize=12, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1.0)
    save_figure(figure, path)


def _joined(rows: Sequence[Mapping[str, Any]], name: str) -> Float64Array:
    return np.concatenate([np.array(row[name], dtype=np.float64) for row in rows])  # null becomes NaN


def new_figure(*, width: float = 7, height: float = 4.5) -> "Figure":
    """Create a figure without axes; width and height in inches."""
    # Without pyplot there is no display, no global state, and no leak over many plots.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def add_axes(figure: "Figure", *position: int) -> "Axes":
    """Add axes at a position of :meth:`Figure.add_subplot`, in the common style of all figures."""
    axes = figure.add_subplot(*position)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=12)
    return axes


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a PNG, creating its folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
