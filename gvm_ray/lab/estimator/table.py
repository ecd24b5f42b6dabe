"""Tables of the measured errors: Markdown for people, CSV and JSON for programs, all with the same rows."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from gvm_ray.reporting.json_text import json_text

_NONE = "-"


@dataclass(frozen=True, kw_only=True)
class EstimatorRow:
    """One arm, measured or with some of its difficulties removed. Errors are in units of |target|^2."""

    algorithm: str
    arm: str
    variant: str  # "measured", or the name of an exact variant
    variance: float
    bias_squared: float
    mean_squared_error: float
    cosine: float
    variance_ratio: float  # x baseline's
    error_ratio: float  # mean squared error x baseline's
    error_ratio_interval: tuple[float, float] | None = None  # 95 %; this and all fields below only for measured arms
    deviations: tuple[float, float, float] | None = None  # standard errors of variance, squared bias, and their sum
    num_samples: float | None = None  # mean number drawn in a step, including pilots
    num_tokens: float | None = None  # mean number drawn in a step, including pilots
    max_samples: int | None = None  # largest n of a prompt in any step


def markdown(rows: Sequence[EstimatorRow], *, baseline: str, facts: Mapping[str, str]) -> str:
    """Format one table for each algorithm, below the facts of the measurement and a legend."""
    lines = ["# Gradient estimators at a fixed policy", "", *(f"- {name}: {value}" for name, value in facts.items())]
    lines += ["", *_legend(baseline)]
    for algorithm, group in groupby(rows, key=lambda row: row.algorithm):
        lines += ["", f"## {algorithm}", "", *_table(list(group), baseline)]
    return "\n".join([*lines, ""])


def write_results(folder: Path, rows: Sequence[EstimatorRow], text: str, *, settings: Mapping[str, Any]) -> None:
    """Write estimator.md, estimator.csv and estimator.json into a folder, which is created if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "estimator.md").write_text(text, encoding="utf-8")
    (folder / "estimator.csv").write_text(csv_text(rows), encoding="utf-8")
    values = {**settings, "rows": [asdict(row) for row in rows]}
    (folder / "estimator.json").write_text(json_text(values, indent=2) + "\n", encoding="utf-8")


def csv_text(rows: Sequence[EstimatorRow]) -> str:
    """Format the rows as CSV; intervals and standard errors have their own columns, empty if there are none."""
    file = io.StringIO()
    cells = [_cells(row) for row in rows]
    writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for row in cells for name in row)))
    writer.writeheader()
    writer.writerows(cells)
    return file.getvalue()


def _cells(row: EstimatorRow) -> dict[str, Any]:
    cells = asdict(row)
    low, high = cells.pop("error_ratio_interval") or (None, None)
    deviations = cells.pop("deviations") or (None, None, None)
    names = ("variance_deviation", "bias_squared_deviation", "mean_squared_error_deviation")
    return {**cells, "error_ratio_low": low, "error_ratio_high": high, **dict(zip(names, deviations, strict=True))}


def _legend(baseline: str) -> list[str]:
    return [
        "Variance, squared bias and their sum, the mean squared error (MSE), are those of one step's estimate of the "
        "target, in units of the target's squared norm; ± is a bootstrap standard error over the repeats.",
        "The target is the algorithm's estimate from all samples of all prompts. Ratios compare with "
        f"`{baseline}`, [95 %]; rows that aren't measured are compared with its exact expectation if that is known.",
        "",
        "- measured: the allocator as it is, on samples drawn from the pool.",
        "- its n: the exact expectation for the same n_i as in the measured steps, without the noise of a few huge "
        "gradients; for allocators that fix all n_i before they sample.",
        "- true p, G ...: exact expectations as well. `true p, G`: the allocator's rule with the prompts' "
        "true accept rates and gradient norms in place of estimates, and no pilots; the difference is lost to "
        "estimation. "
        "`real n`: n is not rounded either. `undone`: weights undo the selection of prompts.",
        "- oracle: the n_i with the same sum that give the least MSE, if every prompt's gradients are known.",
        "- cosine: of the mean estimate with the target; measured ones are corrected for noise, so they may exceed 1.",
    ]


def _table(rows: Sequence[EstimatorRow], baseline: str) -> list[str]:
    columns = ["arm", "", "variance", "bias²", "MSE", f"variance x {baseline}", f"MSE x {baseline}", "cosine"]
    columns += ["samples", "tokens", "largest n"]
    lines = ["| " + " | ".join(columns) + " |", "|---|---|" + "---:|" * (len(columns) - 2)]
    for row in rows:
        deviations = row.deviations or (None, None, None)
        interval = row.error_ratio_interval
        cells = [
            row.arm,
            row.variant,
            _with_deviation(row.variance, deviations[0]),
            _with_deviation(row.bias_squared, deviations[1]),
            _with_deviation(row.mean_squared_error, deviations[2]),
            f"{row.variance_ratio:.2f}",
            f"{row.error_ratio:.2f}" + ("" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]"),
            f"{row.cosine:.3f}",
            _NONE if row.num_samples is None else f"{row.num_samples:.0f}",
            _NONE if row.num_tokens is None else f"{row.num_tokens:.0f}",
            _NONE if row.max_samples is None else str(row.max_samples),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _with_deviation(value: float, deviation: float | None) -> str:
    return f"{value:.3g}" if deviation is None else f"{value:.3g} ± {deviation:.1g}"
