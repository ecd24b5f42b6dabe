"""`gvm-ray report`."""

import argparse
import difflib
from pathlib import Path

from gvm_ray.cli.options import Commands
from gvm_ray.exceptions import ResourceError, UserError

_RUNS_DIR = Path("runs")  # the default of RunConfig.runs_dir


def add_to(commands: Commands) -> None:
    """Add the command."""
    report = commands.add_parser(
        "report",
        help="make a page about runs",
        description="Make one HTML page without scripts or links: learning curves, use of the budget, calibration, "
        "phases, lengths and rewards, failures, sample completions, and differences between the runs' settings. Runs "
        "may be in progress, or have failed.",
    )
    report.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or its name under runs/")
    report.add_argument(
        "--output", default=None, metavar="FILE.html", help="default: report/report.html in the first run's folder"
    )
    report.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    from gvm_ray.reporting.run_folder import RunFolder

    folders = [find_run(run) for run in options.runs]
    output = RunFolder(folders[0]).report / "report.html" if options.output is None else Path(options.output)
    if output.suffix not in (".html", ".htm"):
        raise UserError(f"--output {str(output)!r} doesn't end in .html; write e.g. --output report.html")
    from gvm_ray.reporting.html_report import write_html_report

    try:
        page, *figures = write_html_report(folders, output)
    except OSError as error:
        raise ResourceError(
            f"the report can't be written to {str(output)!r} ({error}); choose another place with --output"
        ) from error
    print(f"{page} ({len(figures)} figures, also as PNG beside it)")
    return 0


def find_run(run: str) -> Path:
    """The folder of a run, given as a path or by its name under runs/.

    Raises:
        UserError: the run doesn't exist.
    """
    from gvm_ray.reporting.run_folder import RunFolder

    for folder in (Path(run), _RUNS_DIR / run):
        if RunFolder(folder).config.is_file() or RunFolder(folder).metrics.is_file():
            return folder
    known = sorted(path.name for path in _RUNS_DIR.glob("*") if RunFolder(path).config.is_file())
    near = difflib.get_close_matches(run, known, n=3, cutoff=0.0) if known else []
    hint = f"; there are e.g. {', '.join(near)}" if near else ""
    raise UserError(
        f"{run!r} is no run: neither it nor {str(_RUNS_DIR / run)!r} is a folder with config.json or metrics.jsonl"
        f"{hint}; write a run's folder, e.g. gvm-ray report runs/quickstart"
    )
