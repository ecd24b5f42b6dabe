"""Tables of a comparison: Markdown for people, CSV for programs, both with the same rows."""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from gvm_ray.config.lab import PriceConfig
from gvm_ray.exceptions import DataError
from gvm_ray.lab.compare.comparison import CHARGED, AccuracyResult, ArmResult, Cost, RatioResult, compare_arms, costs_of
from gvm_ray.lab.compare.null import NullResult, simulate
from gvm_ray.lab.compare.records import Phase, RunRecord, csv_text
from gvm_ray.maths.student_t import MIN_SEEDS, Estimate
from gvm_ray.reporting.run_folder import replace_text

Group = tuple[Phase, str, str]  # phase, training set, algorithm
ALL = "(all)"
_NONE = "-"
_NUM_SIMULATED = 200  # comparisons of each setting, for the false-alarm rates under the tables


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
    def group(self) -> Group:
        return self.phase, self.training_set, self.algorithm


def table_rows(
    records: Sequence[RunRecord], *, baseline: str = "uniform", costs: Sequence[Cost] = (CHARGED,)
) -> list[TableRow]:
    """Compute the rows of each phase, training set and algorithm: the arms over all families and bases, then in each.

    Means over different settings can't be compared, so an arm without runs in some setting has only rows by setting.

    Raises:
        DataError: there are no records, or they can't be compared.
    """
    if not records:
        raise DataError("there are no records to make a table of; run the comparison first")
    rows: list[TableRow] = []
    for (phase, training_set, algorithm), group in grouped(records):
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
                for result in (compare_arms(runs, baseline=baseline, costs=costs) if runs else ())
            ]
    return rows


def _everywhere(group: Sequence[RunRecord], places: Sequence[tuple[str, str]]) -> list[RunRecord]:
    """The runs of those arms that have a run in every place."""
    of_arm: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for run, place in zip(group, places, strict=True):
        of_arm[run.arm].add(place)
    return [run for run in group if of_arm[run.arm] == set(places)]


def write_tables(
    records: Sequence[RunRecord],
    folder: Path,
    *,
    name: str = "comparison",
    baseline: str = "uniform",
    prices: Mapping[str, PriceConfig] | None = None,
    superseded: Sequence[RunRecord] = (),
) -> tuple[Path, Path]:
    """Write `<name>.md` and `<name>.csv` into a folder, which is created if missing; returns their paths.

    Args:
        records: the runs.
        folder: where to write.
        name: of the files.
        baseline: the arm to compare the others with.
        prices: machines whose prices turn tokens into seconds.
        superseded: those of the records that were made with other settings than the comparison's now; they are named.

    Raises:
        DataError: there are no records, or they can't be compared.
    """
    costs = costs_of(records, prices or {})
    rows = table_rows(records, baseline=baseline, costs=costs)
    nulls = null_lines(records, baseline=baseline, num_comparisons=_NUM_SIMULATED)
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{name}.md", folder / f"{name}.csv"
    legend = _legend(baseline, costs, prices or {}, superseded)
    text = markdown(rows, _failed(records), legend=legend, costs=costs, nulls=nulls)
    for path, content in zip(paths, (text, csv_text([_csv_row(row) for row in rows])), strict=True):
        replace_text(path, content)
    return paths


def markdown(
    rows: Sequence[TableRow],
    failed: Sequence[RunRecord],
    *,
    legend: Sequence[str],
    costs: Sequence[Cost],
    nulls: Mapping[Group, Sequence[str]],
) -> str:
    """Format the legend, the rows as tables under headings with their seeds and error rates, and the failed runs."""
    lines = ["# Comparison", "", *legend]
    for group, members in groupby(rows, key=lambda row: row.group):
        phase, training_set, algorithm = group
        summary, by_setting = _split(list(members))
        settings = dict.fromkeys(f"{row.family}/{row.base}" for row in by_setting)
        partial = dict.fromkeys(row.result.arm for row in by_setting).keys() - {row.result.arm for row in summary}
        tests = _tests(by_setting)
        lines += [
            "",
            f"## {training_set}, {algorithm}: {phase} (seeds {_seeds(by_setting)})",
            "",
            f"Over {', '.join(settings)}{_left_out(partial)}.",
            *_same(tests),
            "",
            *_table(summary, tests=tests, costs=costs, by_setting=False),
            "",
            *nulls.get(group, ()),
        ]
        if len(settings) > 1:
            lines += ["", "By setting:", "", *_table(by_setting, tests=tests, costs=costs, by_setting=True)]
    if failed:
        lines += ["", "## Failed runs", "", "| run | error |", "|---|---|"]
        lines += [f"| {'/'.join(run.key)} | {_cell(run.error)} |" for run in failed]
    return "\n".join([*lines, ""])


def null_lines(
    records: Sequence[RunRecord], *, baseline: str, num_comparisons: int, num_seeds: int | None = None
) -> dict[Group, list[str]]:
    """Format the errors of simulated comparisons like those of each group of records, with as many seeds as its runs
    have, or `num_seeds`; a group with too few runs for a simulation says so."""
    lines: dict[Group, list[str]] = {}
    for group, runs in grouped(records):
        references = [run for run in runs if run.arm == baseline and run.status == "finished"]
        seeds = num_seeds or len({run.seed for run in references})
        lines[group] = []
        seen: list[list[list[float]]] = []
        for test in dict.fromkeys(test for run in references for test in run.tests):
            curves = [run.accuracy(test).tolist() for run in references]
            if curves in seen:
                continue
            seen.append(curves)
            try:
                result = simulate(runs, test=test, num_seeds=seeds, num_comparisons=num_comparisons, baseline=baseline)
            except DataError as error:
                lines[group].append(f"- Errors on test {test}: not simulated, as {error}.")
            else:
                lines[group].append(f"- Errors on test {test}: {_simulated(result)}")
    return lines


def _simulated(result: NullResult) -> str:
    same, twice = result.truths
    low, median, high = twice.reported
    several = result.num_settings > 1
    of = f"each of {result.num_settings} settings (in brackets: over all of them)" if several else "the setting"

    def percent(shares: tuple[float, float]) -> str:
        return f"{100 * shares[0]:.0f} %" + (f" ({100 * shares[1]:.0f} %)" if several else "")

    return (
        f"{result.num_comparisons} simulated comparisons of {result.num_seeds} paired seeds in {of}. Identical arms: "
        f"the area excludes 0 in {percent(same.area_differs)}, the stretch excludes 1 in "
        f"{percent(same.stretch_differs)}. An arm twice as fast: the area excludes 0 in "
        f"{percent(twice.area_differs)}; the stretch of one setting is {median:.2f}, in 95 % from {low:.2f} to "
        f"{high:.2f}, and its interval holds 2 in {percent(twice.covered)}."
    )


def _left_out(arms: Collection[str]) -> str:
    return f"; arms without runs in some settings, listed only by setting: {', '.join(sorted(arms))}" if arms else ""


def _legend(
    baseline: str, costs: Sequence[Cost], prices: Mapping[str, PriceConfig], superseded: Sequence[RunRecord]
) -> list[str]:
    unit = costs[0].name.replace("_", " ")
    lines = [
        "- Final accuracy: mean of a run's last three evaluations; mean ± standard deviation over seeds.",
        "- Failed runs are counted, and left out of everything else.",
        f"- **Area** decides: mean accuracy over the cost that both runs of a pair spent, arm minus `{baseline}`, with "
        "the 95 % Student-t interval over paired seeds (Welch and Satterthwaite over settings); bold where it excludes "
        "0. A table of many arms and costs holds many such tests: one in twenty is bold by chance.",
        f"- **Stretch** is the size: c in arm(t) = `{baseline}`(c t), by least squares between the curves averaged "
        "over seeds, with its 95 % jackknife-t interval; geometric mean over the settings in which the baseline rises, "
        "- if it does in none. Above 1 the arm is faster.",
        f"- Ratio describes the curves' ends only: {unit} of `{baseline}` over those of the arm, both up to the final "
        f"accuracy of `{baseline}` with the same seed, geometric mean; a run that doesn't get there counts with all it "
        "spent. Reached: the runs that got there, of the pairs in which that accuracy lies above the base policy's.",
        *(f"- {_heading(cost)}: {cost.label}{_prices(cost, prices)}." for cost in costs),
        "- Time of allocation: shares of the time outside evaluation for pilots (by their tokens) / prefill of "
        "candidate prompts / gradient norms / planning.",
        f"- No interval: fewer than {MIN_SEEDS} pairs of seeds in a setting.",
    ]
    if not any(cost.name.endswith("_seconds") for cost in costs) and prices:
        lines.append("- No seconds at given prices: some records don't hold the tokens that they apply to.")
    if arms := sorted({f"{run.arm} with {run.setting.algorithm}" for run in superseded}):
        lines.append(f"- Recorded with other settings than the comparison's file has now: {', '.join(arms)}.")
    return lines


def _prices(cost: Cost, prices: Mapping[str, PriceConfig]) -> str:
    price = prices.get(cost.name.removesuffix("_seconds"))
    if price is None:
        return ""
    return (
        f", {price.decode_us:g} µs a generated token, {price.prefill_us:g} a prefilled one and {price.learner_us:g} a "
        f"trained one ({price.source or 'given'})"
    )


def _heading(cost: Cost) -> str:
    return cost.name.removesuffix("_tokens").replace("_", " ")


def _tests(rows: Sequence[TableRow]) -> dict[str, str]:
    """Test -> the tests with the same results, joined; a balanced training set's two tests are one."""
    names = list(dict.fromkeys(test for row in rows for test in row.result.tests))
    same: dict[str, str] = {}
    for name in names:
        for shown in same:
            if all(row.result.tests.get(name) == row.result.tests.get(shown) for row in rows):
                same[shown] += f" = {name}"
                break
        else:
            same[name] = name
    return same


def _same(tests: Mapping[str, str]) -> list[str]:
    return [f"The tests {label} have the same results." for test, label in tests.items() if label != test]


def _table(
    rows: Sequence[TableRow], *, tests: Mapping[str, str], costs: Sequence[Cost], by_setting: bool
) -> Iterator[str]:
    columns = [*(["family", "base"] if by_setting else []), "arm", "test", "runs", "final accuracy"]
    for cost in costs:
        columns += [f"area, {_heading(cost)}", f"stretch, {_heading(cost)}"]
    columns += ["ratio", "reached", "time of allocation", "updates"]
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "|".join("---:" if index > columns.index("test") else "---" for index in range(len(columns))) + "|"
    for row in rows:
        result = row.result
        place = [row.family, row.base] if by_setting else []
        means = [_shares(result), f"{result.updates:.0f}" if result.num_finished else _NONE]
        for test in tests if result.tests else [_NONE]:
            own = result.tests.get(test)
            cells = [*place, result.arm, test, _runs(result), _NONE if own is None else _accuracy(own)]
            for cost in costs:
                compared = None if own is None else own.by_cost.get(cost.name)
                cells += [_NONE, _NONE] if compared is None else [_area(compared.area), _stretch(compared.stretch)]
            ratio = None if own is None else own.ratio
            cells += [_NONE, _NONE] if ratio is None else [f"{ratio.value:.2f}", _reached(ratio)]
            yield "| " + " | ".join([*cells, *means]) + " |"


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
        for cost, compared in test.by_cost.items():
            cells |= _estimate_cells(f"{name}/{cost}/area", compared.area)
            if compared.stretch is not None:
                cells |= _estimate_cells(f"{name}/{cost}/stretch", compared.stretch)
        if test.ratio is not None:
            cells |= {f"{name}/ratio": test.ratio.value, f"{name}/reached": test.ratio.num_reached}
            cells[f"{name}/pairs"] = test.ratio.num_pairs
    return cells


def _estimate_cells(name: str, estimate: Estimate) -> dict[str, float]:
    low, high = estimate.interval or (math.nan, math.nan)
    return {name: estimate.value, f"{name}_low": low, f"{name}_high": high}


def _runs(result: ArmResult) -> str:
    return f"{result.num_finished}" + (f" ({result.num_failed} failed)" if result.num_failed else "")


def _accuracy(test: AccuracyResult) -> str:
    return f"{test.accuracy:.3f}" + ("" if math.isnan(test.deviation) else f" ± {test.deviation:.3f}")


def _reached(ratio: RatioResult) -> str:
    return f"{ratio.num_reached}/{ratio.num_pairs}"


def _area(area: Estimate) -> str:
    text = _with_interval(area, "+.3f")
    return f"**{text}**" if area.excludes(0.0) else text


def _stretch(stretch: Estimate | None) -> str:
    return _NONE if stretch is None else _with_interval(stretch, ".2f")


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


def grouped(records: Sequence[RunRecord]) -> Iterator[tuple[Group, list[RunRecord]]]:
    """Group records by phase, training set and algorithm; confirmation, the result, comes before exploration."""

    def group(record: RunRecord) -> Group:
        return record.phase, record.setting.training_set, record.setting.algorithm

    for key, runs in groupby(sorted(records, key=group), key=group):
        yield key, list(runs)


def _failed(records: Sequence[RunRecord]) -> list[RunRecord]:
    return sorted((record for record in records if record.status == "failed"), key=lambda record: record.key)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
