"""Figures of a comparison: accuracy against cost for all arms, and predicted against observed accept rates."""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gvm_ray.config.lab import PriceConfig
from gvm_ray.exceptions import DataError
from gvm_ray.lab.compare.comparison import SECONDS, UPDATES, Cost, check_comparable, costs_of
from gvm_ray.lab.compare.records import RunRecord
from gvm_ray.maths.student_t import MIN_SEEDS, pointwise_interval
from gvm_ray.reporting.plots import ORANGE, add_axes, new_figure, save_figure
from gvm_ray.reporting.progress import short_count
from gvm_ray.types import Float64Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NUM_POINTS = 60
# 24 arms can be told apart; black is for the baseline and orange for the highlighted arm.
_COLOURS = ("#2a6fb0", "#2e8b57", "#8e5bb5", "#c44e75", "#7a6a58", "#1aa6b7", "#a3a500", "#7f7f7f")
_LINE_STYLES = ("solid", "dashed", "dotted")


def write_plots(
    records: Sequence[RunRecord],
    folder: Path,
    *,
    baseline: str = "uniform",
    highlighted: str | None = None,
    prices: Mapping[str, PriceConfig] | None = None,
) -> list[Path]:
    """Plot accuracy on each test against each cost, for each phase, training set and algorithm; returns the files.

    Args:
        records: all runs; failed runs are left out.
        folder: output folder, created if missing.
        baseline: the arm drawn in black.
        highlighted: the arm drawn thick in orange, with its interval.
        prices: machines whose prices turn tokens into seconds.

    Raises:
        DataError: the records can't be compared.
    """
    check_comparable(records)
    written: list[Path] = []
    finished = sorted((record for record in records if record.status == "finished"), key=_group)
    for (phase, training_set, algorithm), group in groupby(finished, key=_group):
        runs = list(group)
        for test in runs[0].tests:
            for cost in [*costs_of(runs, prices or {}), UPDATES, SECONDS]:
                written.append(folder / f"{phase}-{training_set}-{algorithm}-{test}-{cost.name}.png")
                plot_curves(runs, written[-1], test=test, cost=cost, baseline=baseline, highlighted=highlighted)
    return written


def plot_curves(
    records: Sequence[RunRecord],
    path: Path,
    *,
    test: str,
    cost: Cost,
    baseline: str = "uniform",
    highlighted: str | None = None,
) -> None:
    """Plot mean accuracy over seeds against a cost, with a panel for each family and base.

    A curve ends where the first of an arm's seeds ends. Bands are 95 % Student-t intervals over seeds. With more than
    three arms only the baseline and the highlighted arm have bands, because many overlapping bands can't be told apart.
    An arm with fewer than three seeds has no band.

    Args:
        records: finished runs of one phase, training set and algorithm.
        path: the PNG to write.
        test: the test whose accuracy is drawn.
        cost: the horizontal axis.
        baseline: the arm drawn in black.
        highlighted: the arm drawn thick in orange.

    Raises:
        DataError: there are no records.
    """
    if not records:
        raise DataError(f"there is no finished run to plot in {path.name}; run the comparison first")
    panels = sorted({(record.setting.family, record.setting.base) for record in records})
    arms = sorted({record.arm for record in records}, key=lambda arm: (arm != baseline, arm != highlighted, arm))
    styles = _line_styles(arms, baseline=baseline, highlighted=highlighted)
    with_band = arms if len(arms) <= 3 else [baseline, highlighted]
    num_columns = min(3, len(panels))
    num_rows = math.ceil(len(panels) / num_columns)
    figure = new_figure(width=1.5 + 4 * num_columns, height=1.2 + 3.2 * num_rows + 0.25 * math.ceil(len(arms) / 4))
    for index, panel in enumerate(panels):
        axes = add_axes(figure, num_rows, num_columns, index + 1)
        runs = [record for record in records if (record.setting.family, record.setting.base) == panel]
        for arm in arms:
            if curves := [(cost.spent(run), run.accuracy(test)) for run in runs if run.arm == arm]:
                _draw_mean(axes, curves, style=styles[arm], band=arm in with_band)
        axes.set(title=" ".join(panel), xlim=(0, None))
        axes.xaxis.set_major_formatter(lambda value, _: short_count(value))
    figure.supxlabel(cost.label, fontsize=13)
    figure.supylabel(f"accuracy, {test} test (bands: 95 % over seeds)", fontsize=13)
    lines = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
    figure.legend(
        [lines[arm] for arm in arms], arms, loc="outside upper center", ncols=min(4, len(arms)), frameon=False
    )
    save_figure(figure, path)


def _draw_mean(
    axes: "Axes", curves: Sequence[tuple[Float64Array, Float64Array]], *, style: Mapping[str, Any], band: bool
) -> None:
    # Seeds are evaluated at different costs, so their curves are interpolated at common points that all of them reach.
    start, end = max(cost[0] for cost, _ in curves), min(cost[-1] for cost, _ in curves)
    points = np.linspace(start, end, _NUM_POINTS)
    accuracies = np.stack([np.interp(points, cost, accuracy) for cost, accuracy in curves])
    axes.plot(points, accuracies.mean(axis=0), **style)
    if band and len(curves) >= MIN_SEEDS:
        low, high = pointwise_interval(accuracies)
        axes.fill_between(points, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _line_styles(arms: Sequence[str], *, baseline: str, highlighted: str | None) -> dict[str, dict[str, Any]]:
    styles: dict[str, dict[str, Any]] = {}
    others = [arm for arm in arms if arm not in (baseline, highlighted)]
    for index, arm in enumerate(others):
        line_style = _LINE_STYLES[index // len(_COLOURS) % len(_LINE_STYLES)]
        styles[arm] = {"color": _COLOURS[index % len(_COLOURS)], "linewidth": 1.2, "linestyle": line_style}
    if highlighted is not None:
        styles[highlighted] = {"color": ORANGE, "linewidth": 2.6, "zorder": 3}
    styles[baseline] = {"color": "black", "linewidth": 2.6, "zorder": 3}
    return {arm: styles[arm] | {"label": arm} for arm in arms}


def _group(record: RunRecord) -> tuple[str, str, str]:
    return record.phase, record.setting.training_set, record.setting.algorithm
