"""`gvm-ray bench`."""

import argparse
import os
import sys
from pathlib import Path

from gvm_ray.cli.options import Commands


def add_to(commands: Commands) -> None:
    """Add the command."""
    bench = commands.add_parser(
        "bench",
        help="measure this machine",
        description="Figures of the package's parts and of whole runs, each beside the same done the bare way.",
    )
    bench.add_argument("names", nargs="*", metavar="NAME", help="parts to measure (default: all; see --list)")
    bench.add_argument("--list", action="store_true", help="print the names of the parts, and stop")
    bench.add_argument("--quick", action="store_true", help="smaller cases and fewer repeats")
    bench.add_argument("--output", default=None, metavar="FOLDER", help="also write bench.md and bench.json there")
    bench.add_argument(
        "--trl-python",
        default=os.environ.get("GVM_RAY_TRL_PYTHON"),
        metavar="PATH",
        help="Python with TRL installed, the peer of end_to_end (default: $GVM_RAY_TRL_PYTHON; none = no peer)",
    )
    bench.set_defaults(run=_bench)


def _bench(options: argparse.Namespace) -> int:
    from gvm_ray.lab.speed.suite import PARTS, BenchOptions, BenchReport, Machine, run_parts, select

    if options.list:
        print("\n".join(PARTS))
        return 0
    names = select(options.names)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)  # the tables alone go to the standard output

    results = run_parts(
        names,
        BenchOptions(quick=options.quick, trl_python=options.trl_python, say=say),
        on_start=lambda name: say(f"measuring {name} ..."),
    )
    report = BenchReport(machine=Machine.here(), quick=options.quick, results=results)
    print(report.markdown())
    if options.output is not None:
        report.write(Path(options.output))
    return 1 if report.failed else 0
