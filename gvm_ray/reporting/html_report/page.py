"""Runs to files: the page, and each of its figures as a PNG beside it."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from gvm_ray.reporting.html_report.run_data import RunData, read_runs
from gvm_ray.reporting.html_report.sections import Section, all_sections, key_numbers


def write_html_report(folders: Sequence[Path], output: Path) -> list[Path]:
    """Write the page about the runs in these folders, and its figures as `<page's name>-<figure>.png` beside it.

    Returns the files written, the page first.

    Raises:
        DataError: a file of a run is damaged.
    """
    runs = read_runs(folders)
    sections = all_sections(runs)
    output.parent.mkdir(parents=True, exist_ok=True)
    # A model's text may hold half of a surrogate pair, which no UTF-8 can.
    output.write_text(render(runs, sections), encoding="utf-8", errors="replace")
    written = [output]
    for panel in (panel for section in sections for panel in section.panels):
        written.append(output.with_name(f"{output.stem}-{panel.name}.png"))
        panel.save(written[-1])
    return written


def render(runs: Sequence[RunData], sections: Sequence[Section]) -> str:
    """The page. Everything in it that isn't ours, a model's words above all, is escaped."""
    environment = Environment(
        loader=PackageLoader(__name__, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        title=", ".join(run.name for run in runs),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        runs=[{"name": run.name, "status": run.status, "numbers": key_numbers(run)} for run in runs],
        sections=sections,
    )
