"""`gvm-ray compare`."""

import argparse
import sys
from pathlib import Path

from gvm_ray.cli.options import Commands, add_overrides
from gvm_ray.config import load_comparison


def add_to(commands: Commands) -> None:
    """Add the command."""
    compare = commands.add_parser(
        "compare",
        help="compare allocators at equal tokens and updates",
        description="Arms x task families x base policies x training sets x algorithms x seeds, each run to one budget "
        "of tokens. Runs that are done are not run again, so a comparison may be interrupted and called anew.",
    )
    compare.add_argument("comparison", metavar="COMPARISON.toml", help="the comparison's settings")
    compare.add_argument(
        "--phase", choices=("exploration", "confirmation"), default="exploration", help="which seeds and tests"
    )
    compare.add_argument(
        "--only",
        action="append",
        metavar="GLOB",
        help="make only the runs whose family/base/training_set/algorithm/arm/seed matches, e.g. '*/a/*/grpo/*'",
    )
    compare.add_argument("--dry-run", action="store_true", help="check every run's settings, list them, and stop")
    compare.add_argument("--report", action="store_true", help="only tables and plots of the runs that are done")
    compare.add_argument(
        "--against",
        metavar="ARM",
        help="only tables of the runs that are done, against this arm in place of the baseline",
    )
    compare.add_argument(
        "--null",
        action="store_true",
        help="only simulate comparisons of identical arms, and of one twice as fast, from the runs that are done",
    )
    add_overrides(compare)
    compare.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> int:
    comparison = load_comparison(options.comparison, options.overrides)
    config_folder = Path(options.comparison).parent
    from gvm_ray.lab.compare.runs import planned_runs, selected, warnings

    only = options.only or ["*"]
    for line in warnings(comparison, phase=options.phase):
        print(f"warning: {line}", file=sys.stderr)
    if options.dry_run:
        runs = selected(planned_runs(comparison, folder=config_folder, phase=options.phase), only)
        print("\n".join([*(run.name for run in runs), f"{len(runs)} runs of {comparison.token_budget:,} tokens each"]))
        return 0
    from gvm_ray.lab.compare.compare import ComparisonFolder, compare, null_report, report, report_against

    if options.null:
        print(null_report(comparison, config_folder=config_folder, phase=options.phase))
        return 0
    if options.against is not None:
        tables = report_against(comparison, options.against, config_folder=config_folder, phase=options.phase)
        print(f"{tables.read_text(encoding='utf-8')}\ntables are in {tables.parent}")
        return 0
    if options.report:
        records = report(comparison, config_folder=config_folder, phase=options.phase)
    else:
        records = compare(comparison, config_folder=config_folder, phase=options.phase, only=only)
    results = ComparisonFolder.of(comparison, config_folder=config_folder, phase=options.phase).results
    print((results / "comparison.md").read_text(encoding="utf-8"))
    print(f"tables, plots and CSV files are in {results}")
    return 1 if any(record.status == "failed" for record in records) else 0
