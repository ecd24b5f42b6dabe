"""Figures in the page's style: SVG with CSS variables as colours, so that one figure serves light and dark mode."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gvm_ray.reporting.plots import add_axes, new_figure
from gvm_ray.types import Float64Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1d232b", "#5d6672", "#dde1e6"
SERIES = ("#2a6fb0", "#d1661b", "#2e8b57", "#8e5bb5", "#c44e75", "#1a94a6", "#8a7d12", "#7a6a58")
LINE_STYLES = ("solid", "dashed", "dotted")  # the next one each time all colours have been used
_HEAT = "#3d86cf"  # fades out into the background
# CSS variables of these colours; dark mode gives them other values.
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid"} | {c: f"--series-{i}" for i, c in enumerate(SERIES)}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.formatter.useoffset": False,
    "figure.facecolor": "none",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
_SHORT_NAME, _LONG_NAME = 14, 24  # letters of names that fit three or two in a row
_MAX_COLUMNS = 80  # of a heat map
_WIDTH, _HEIGHT = 4.6, 3.0  # inches: fills a phone screen with text of a readable size


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One figure of the page."""

    name: str  # name of its PNG
    title: str
    figure: "Figure"

    @property
    def svg(self) -> str:
        """The figure as SVG to embed in a page with others: no shared ids, no links, colours by CSS."""
        with _style(), io.StringIO() as file:
            metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            self.figure.savefig(file, format="svg", metadata=metadata)
            svg = file.getvalue()
        svg = svg[svg.index("<svg") :]
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
        svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
        svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', svg, count=1)
        svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # only clip paths and markers are referenced
        svg = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font)", svg)
        for colour, variable in VARIABLES.items():
            svg = svg.replace(colour, f"var({variable})")
        return svg

    def save(self, path: Path) -> None:
        """Write the figure as a PNG, on white."""
        with _style():
            self.figure.savefig(path, dpi=150, facecolor="white")


@contextmanager
def drawing() -> Iterator[tuple["Figure", "Axes"]]:
    """Create a panel's figure and its axes, in the page's style."""
    with _style():
        figure = new_figure(width=_WIDTH, height=_HEIGHT)
        axes = add_axes(figure)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.tick_params(labelsize=10)
        yield figure, axes


def heat_panel(
    amounts: Float64Array, *, name: str, title: str, label: str, steps: int, span: tuple[float, float] = (0.0, 1.0)
) -> Panel:
    """Draw a heat map of shares by bin of a value, over time.

    Args:
        amounts: [S, B] amount of each logged step in each bin.
        name: name of the figure's PNG.
        title: title of the panel.
        label: label of the value.
        steps: number of steps of the run, the end of the time axis.
        span: range of the value, over all bins.
    """
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    edges = np.linspace(0, len(amounts), min(len(amounts), _MAX_COLUMNS) + 1).astype(int)
    columns = np.add.reduceat(amounts, edges[:-1], axis=0)
    totals = columns.sum(axis=1, keepdims=True)
    shares = np.divide(columns, totals, out=np.zeros_like(columns), where=totals > 0)
    fading = LinearSegmentedColormap.from_list("fading", [to_rgba(_HEAT, 0), to_rgba(_HEAT, 1)])
    with drawing() as (figure, axes):
        axes.grid(visible=False)
        image = axes.imshow(
            shares.T,
            origin="lower",
            extent=(0, steps, *span),
            aspect="auto",
            cmap=fading,
            vmin=0,
            interpolation="nearest",
        )
        bar = figure.colorbar(image, ax=axes, label="share of the samples", format=lambda value, _: f"{value:.0%}")
        assert bar.solids is not None
        bar.solids.set_rasterized(True)
        bar.outline.set_visible(False)
        axes.set(xlabel="steps", ylabel=label)
    return Panel(name=name, title=title, figure=figure)


def series_style(index: int) -> dict[str, Any]:
    """Colour and line style of the series with this index; they repeat once all combinations are used."""
    return {
        "color": SERIES[index % len(SERIES)],
        "linestyle": LINE_STYLES[index // len(SERIES) % len(LINE_STYLES)],
    }


def add_legend(figure: "Figure", axes: "Axes") -> None:
    """Add a legend above the axes if there are several series."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 1:
        labels = [_shortened(label).replace("$", r"\$") for label in labels]  # a dollar would begin a formula
        columns = 3 if max(map(len, labels)) <= _SHORT_NAME else 2
        figure.legend(handles, labels, loc="outside upper left", ncols=columns)


def _shortened(name: str) -> str:
    """Cut the middle of a long name; runs of one series often differ at the end."""
    return name if len(name) <= _LONG_NAME else f"{name[: _LONG_NAME // 2]}…{name[1 - _LONG_NAME // 2 :]}"


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield
