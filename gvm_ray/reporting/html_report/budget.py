"""Panels of the budget: which accept rates the samples went to, and whether the rates that were expected came true."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gvm_ray.functional.calibration import brier_score, rank_correlation, reliability_bins
from gvm_ray.functional.statistics import binned_mean
from gvm_ray.reporting.html_report.figures import MUTED, SERIES, Panel, add_legend, drawing, heat_panel, series_style
from gvm_ray.reporting.html_report.run_data import RunData
from gvm_ray.types import Float64Array

_NUM_BINS = 10  # of accept rates in [0, 1]
_THIRDS = ("first third", "second third", "last third")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How the accept rates that an allocator expected compare with those it then saw."""

    brier: float  # mean squared error
    rank_correlation: float  # Spearman's; NaN where there is nothing to rank
    num_prompts: int
    expected: Float64Array  # [B] means of bins that aren't empty
    seen: Float64Array  # [B]
    counts: Float64Array  # [B]

    @classmethod
    def of(cls, run: RunData) -> "Calibration | None":
        """Over all steps; None for an allocator that expects nothing before it samples."""
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
    """Share of the samples of each stretch of steps that went to prompts of each estimated accept rate."""
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
    """Mean samples of a prompt by its estimated accept rate, early, midway and late in the run."""
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
    """Accept rates seen against those expected, in bins of a tenth whose points are as large as the bin is full."""
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
    """[B] samples of the prompts in each bin of the estimated accept rate; those without an estimate are left out."""
    known = np.isfinite(rates)
    bins = np.clip((rates[known] * _NUM_BINS).astype(int), 0, _NUM_BINS - 1)
    return np.bincount(bins, weights=counts[known], minlength=_NUM_BINS).astype(np.float64)
