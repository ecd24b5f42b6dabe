"""`gvm-ray report`."""

import argparse
import contextlib
import difflib
from collections.abc import Sequence
from pathlib import Path

from gvm_ray.cli.options import Commands
from gvm_ray.exceptions import ResourceError, UserError

_RUNS_DIR = Path("runs")  # the default of RunConfig.runs_dir
_LINGER_S = 60.0  # for a last look at the finished run


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
    follow = report.add_argument_group("following runs")
    follow.add_argument(
        "--follow",
        action="store_true",
        help="serve the page on 127.0.0.1 and keep it up to date, until Ctrl-C; nothing is written",
    )
    follow.add_argument("--port", type=_port, default=None, metavar="N", help="of the page (default: a free one)")
    follow.add_argument(
        "--until-done", action="store_true", help=f"end {_LINGER_S:g} s after the last of the runs has ended"
    )
    report.set_defaults(run=_report)


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; write a number from 1 to 65535")
    return int(text)


def _report(options: argparse.Namespace) -> int:
    folders = [find_run(run) for run in options.runs]
    if options.follow:
        return _follow(options, folders)
    if options.port is not None or options.until_done:
        raise UserError("--port and --until-done are for a page that is served; add --follow")
    from gvm_ray.reporting.run_folder import RunFolder

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


def _follow(options: argparse.Namespace, folders: Sequence[Path]) -> int:
    if options.output is not None:
        raise UserError("--follow serves the page and writes no file; leave out --output, or --follow")
    from gvm_ray.reporting.html_report.follow import LivePage, PageServer

    with PageServer(LivePage(folders), port=options.port or 0) as server:
        print(f"{server.url} follows {', '.join(map(str, folders))}; Ctrl-C ends it", flush=True)
        port = server.server_address[1]
        print(f"from another machine: ssh -N -L {port}:127.0.0.1:{port} HOST, then the same address", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve(linger_s=_LINGER_S if options.until_done else None)
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
