"""Figures that follow the page: one SVG whose colours are CSS variables, so that light and dark need no second one."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gvm_ray.reporting.plots import add_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1d232b", "#5d6672", "#dde1e6"
SERIES = ("#2a6fb0", "#d1661b", "#2e8b57", "#8e5bb5", "#c44e75", "#1a94a6", "#8a7d12", "#7a6a58")
LINE_STYLES = ("solid", "dashed", "dotted")  # one for each time that all colours were used
HEAT = "#3d86cf"  # fades out into whatever is behind it
# In CSS the same colours have these names, and others in the dark.
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid"} | {c: f"--series-{i}" for i, c in enumerate(SERIES)}

_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}
_WIDTH, _HEIGHT = 4.6, 3.0  # inches: fills a phone with letters of a readable size


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One figure of the page."""

    name: str  # of its PNG
    title: str
    figure: "Figure"

    @property
    def svg(self) -> str:
        """For a page that has other figures too: no ids that two might share, no links, colours by CSS."""
        with _style(), io.StringIO() as file:
            metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            self.figure.savefig(file, format="svg", metadata=metadata)
            svg = file.getvalue()
        svg = svg[svg.index("<svg") :]
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
        svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
        svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', svg, count=1)
        svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # only clip paths and markers are referred to
        svg = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font)", svg)
        for colour, variable in VARIABLES.items():
            svg = svg.replace(colour, f"var({variable})")
        return svg

    def save(self, path: Path) -> None:
        """As a PNG, on white."""
        with _style():
            self.figure.savefig(path, dpi=150, facecolor="white")


@contextmanager
def drawing() -> Iterator[tuple["Figure", "Axes"]]:
    """A new figure of a panel and its axes, in the page's style."""
    with _style():
        figure = new_figure(width=_WIDTH, height=_HEIGHT)
        axes = add_axes(figure)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.tick_params(labelsize=9)
        yield figure, axes


def series_style(index: int) -> dict[str, str]:
    """Colour and line style of the series of a number; more series than can be told apart start over."""
    return {
        "color": SERIES[index % len(SERIES)],
        "linestyle": LINE_STYLES[index // len(SERIES) % len(LINE_STYLES)],
    }


def add_legend(figure: "Figure", axes: "Axes", *, columns: int = 3) -> None:
    """Names of the series above the axes, where there are several."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 1:
        figure.legend(handles, [_shortened(label) for label in labels], loc="outside upper left", ncols=columns)


def _shortened(name: str, limit: int = 24) -> str:
    return name if len(name) <= limit else f"{name[: limit // 2]}…{name[-(limit // 2 - 1) :]}"


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield
