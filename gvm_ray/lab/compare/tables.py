"""Tables of a comparison: Markdown for people, CSV for programs, both with the same rows."""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from gvm_ray.exceptions import DataError
from gvm_ray.lab.compare.comparison import AccuracyResult, ArmResult, compare_arms
from gvm_ray.lab.compare.records import Cost, Phase, RunRecord, csv_text, replace_text
from gvm_ray.maths.bootstrap import MIN_SEEDS, Estimate, RatioEstimate

ALL = "(all)"
_NONE = "-"


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One arm in one setting, or over all families and bases of a training set and algorithm."""

    phase: Phase
    training_set: str
    algorithm: str
    family: str  # ALL in a row over several families
    base: str  # ALL in a row over several bases
    seeds: tuple[int, ...]  # of the runs of all arms
    result: ArmResult

    @property
    def group(self) -> tuple[str, str, str]:
        return self.phase, self.training_set, self.algorithm


def table_rows(
    records: Sequence[RunRecord], *, baseline: str = "uniform", cost: Cost = "charged_tokens"
) -> list[TableRow]:
    """Compute the rows of each phase, training set and algorithm: the arms over all families and bases, then in each.

    Means over different settings can't be compared, so an arm without runs in some setting has only rows by setting.

    Raises:
        DataError: there are no records, or they can't be compared.
    """
    if not records:
        raise DataError("there are no records to make a table of; run the comparison first")
    rows: list[TableRow] = []
    for (phase, training_set, algorithm), group in _grouped(records):
        settings = [(record.setting.family, record.setting.base) for record in group]
        for family, base in [(ALL, ALL), *sorted(set(settings))]:
            if base == ALL:
                runs = _everywhere(group, settings)
            else:
                runs = [run for run, place in zip(group, settings, strict=True) if place == (family, base)]
            seeds = tuple(sorted({run.seed for run in runs}))
            rows += [
                TableRow(
                    phase=phase,
                    training_set=training_set,
                    algorithm=algorithm,
                    family=family,
                    base=base,
                    seeds=seeds,
                    result=result,
                )
                for result in (compare_arms(runs, baseline=baseline, cost=cost) if runs else ())
            ]
    return rows


def _everywhere(group: Sequence[RunRecord], places: Sequence[tuple[str, str]]) -> list[RunRecord]:
    """The runs of those arms that have a run in every place."""
    of_arm: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for run, place in zip(group, places, strict=True):
        of_arm[run.arm].add(place)
    return [run for run in group if of_arm[run.arm] == set(places)]


def write_tables(
    records: Sequence[RunRecord], folder: Path, *, baseline: str = "uniform", cost: Cost = "charged_tokens"
) -> tuple[Path, Path]:
    """Write `comparison.md` and `comparison.csv` into a folder, which is created if missing; returns their paths.

    Raises:
        DataError: there are no records, or they can't be compared.
    """
    rows = table_rows(records, baseline=baseline, cost=cost)
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "comparison.md", folder / "comparison.csv"
    texts = markdown(rows, _failed(records), baseline=baseline, cost=cost), csv_text([_csv_row(row) for row in rows])
    for path, text in zip(paths, texts, strict=True):
        replace_text(path, text)
    return paths


def markdown(rows: Sequence[TableRow], failed: Sequence[RunRecord], *, baseline: str, cost: Cost) -> str:
    """Format a legend, the rows as tables under headings with their seeds, and the failed runs."""
    lines = ["# Comparison", "", *_legend(baseline, cost)]
    for (phase, training_set, algorithm), group in groupby(rows, key=lambda row: row.group):
        summary, by_setting = _split(list(group))
        settings = dict.fromkeys(f"{row.family}/{row.base}" for row in by_setting)
        partial = dict.fromkeys(row.result.arm for row in by_setting).keys() - {row.result.arm for row in summary}
        lines += [
            "",
            f"## {training_set}, {algorithm}: {phase} (seeds {_seeds(by_setting)})",
            "",
            f"Over {', '.join(settings)}{_left_out(partial)}.",
            "",
            *_table(summary, by_setting=False),
            "",
            "By setting:",
            "",
            *_table(by_setting, by_setting=True),
        ]
    if failed:
        lines += ["", "## Failed runs", "", "| run | error |", "|---|---|"]
        lines += [f"| {'/'.join(run.key)} | {_cell(run.error)} |" for run in failed]
    return "\n".join([*lines, ""])


def _left_out(arms: Collection[str]) -> str:
    return f"; arms without runs in some settings, listed only by setting: {', '.join(sorted(arms))}" if arms else ""


def _legend(baseline: str, cost: Cost) -> list[str]:
    unit = cost.replace("_", " ")
    return [
        "- Final accuracy: mean of a run's last three evaluations; mean ± standard deviation over seeds.",
        "- Failed runs are counted, and left out of everything else.",
        f"- Ratio: {unit} of `{baseline}` divided by {unit} of the arm, both up to the final accuracy of `{baseline}` "
        "with the same seed; geometric mean over seeds and settings [95 % bootstrap interval]. Above 1 the arm is "
        "cheaper.",
        "- Reached: the number of runs that reached that accuracy, of all pairs in which it lies above the base "
        "policy's. A run that didn't reach it counts with all it spent, so the ratio and its interval are upper "
        "bounds: ≤.",
        f"- Area: mean accuracy over the {unit} that both runs of a pair spent, arm minus `{baseline}` [95 %].",
        "- Time of allocation: shares of the time outside evaluation for pilots (by their tokens) / prefill of "
        "candidate prompts / gradient norms / planning.",
        f"- No interval: fewer than {MIN_SEEDS} pairs of seeds in a setting. Few seeds make intervals too narrow.",
    ]


def _table(rows: Sequence[TableRow], *, by_setting: bool) -> Iterator[str]:
    tests = list(dict.fromkeys(test for row in rows for test in row.result.tests))
    columns = [*(["family", "base"] if by_setting else []), "arm", "runs"]
    for measure in ("final accuracy", "ratio", "reached", "area"):
        columns += [f"{measure}, {test}" for test in tests]
    columns += ["time of allocation", "updates"]
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "|".join("---:" if index > columns.index("arm") else "---" for index in range(len(columns))) + "|"
    for row in rows:
        result = row.result
        results = [result.tests.get(test) for test in tests]
        cells = [*([row.family, row.base] if by_setting else []), result.arm, _runs(result)]
        cells += [_NONE if test is None else _accuracy(test) for test in results]
        cells += [_NONE if test is None else _ratio(test.token_ratio) for test in results]
        cells += [_NONE if test is None else _reached(test.token_ratio) for test in results]
        cells += [_NONE if test is None else _area(test.area_difference) for test in results]
        cells += [_shares(result), f"{result.updates:.0f}" if result.num_finished else _NONE]
        yield "| " + " | ".join(cells) + " |"


def _csv_row(row: TableRow) -> dict[str, Any]:
    result = row.result
    cells: dict[str, Any] = {
        "phase": row.phase,
        "training_set": row.training_set,
        "algorithm": row.algorithm,
        "family": row.family,
        "base": row.base,
        "seeds": " ".join(map(str, row.seeds)),
        "arm": result.arm,
        "finished": result.num_finished,
        "failed": result.num_failed,
        "updates": result.updates,
    }
    cells |= {f"time_share/{name}": share for name, share in result.allocation_shares.items()}
    for name, test in result.tests.items():
        cells |= {f"{name}/accuracy": test.accuracy, f"{name}/accuracy_deviation": test.deviation}
        cells |= _estimate_cells(f"{name}/ratio", test.token_ratio) | _estimate_cells(
            f"{name}/area", test.area_difference
        )
        if test.token_ratio is not None:
            cells |= {f"{name}/reached": test.token_ratio.num_reached, f"{name}/pairs": test.token_ratio.num_pairs}
            cells[f"{name}/ratio_is_upper_bound"] = test.token_ratio.censored
    return cells


def _estimate_cells(name: str, estimate: Estimate | None) -> dict[str, float]:
    if estimate is None:
        return {}
    low, high = estimate.interval or (math.nan, math.nan)
    return {name: estimate.value, f"{name}_low": low, f"{name}_high": high}


def _runs(result: ArmResult) -> str:
    return f"{result.num_finished}" + (f" ({result.num_failed} failed)" if result.num_failed else "")


def _accuracy(test: AccuracyResult) -> str:
    return f"{test.accuracy:.3f}" + ("" if math.isnan(test.deviation) else f" ± {test.deviation:.3f}")


def _ratio(ratio: RatioEstimate | None) -> str:
    return _NONE if ratio is None else ("≤ " if ratio.censored else "") + _with_interval(ratio, ".2f")


def _reached(ratio: RatioEstimate | None) -> str:
    return _NONE if ratio is None else f"{ratio.num_reached}/{ratio.num_pairs}"


def _area(area: Estimate | None) -> str:
    return _NONE if area is None else _with_interval(area, "+.3f")


def _with_interval(estimate: Estimate, form: str) -> str:
    interval = "" if estimate.interval is None else f" [{', '.join(format(end, form) for end in estimate.interval)}]"
    return format(estimate.value, form) + interval


def _shares(result: ArmResult) -> str:
    shares = result.allocation_shares.values()
    if not result.num_finished or any(math.isnan(share) for share in shares):
        return _NONE
    return " / ".join(f"{100 * share:.1f}" for share in shares) + " %"


def _seeds(rows: Iterable[TableRow]) -> str:
    return ", ".join(map(str, sorted({seed for row in rows for seed in row.seeds})))


def _split(rows: Sequence[TableRow]) -> tuple[list[TableRow], list[TableRow]]:
    return [row for row in rows if row.family == ALL], [row for row in rows if row.family != ALL]


def _grouped(records: Sequence[RunRecord]) -> Iterator[tuple[tuple[Phase, str, str], list[RunRecord]]]:
    # Alphabetical order puts confirmation, the result, before exploration.
    def group(record: RunRecord) -> tuple[Phase, str, str]:
        return record.phase, record.setting.training_set, record.setting.algorithm

    for key, runs in groupby(sorted(records, key=group), key=group):
        yield key, list(runs)


def _failed(records: Sequence[RunRecord]) -> list[RunRecord]:
    return sorted((record for record in records if record.status == "failed"), key=lambda record: record.key)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
