"""The measured errors as Markdown for people, and as CSV and JSON for programs; all hold the same rows."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from gvm_ray.reporting.run_folder import json_text

_NONE = "-"


@dataclass(frozen=True, kw_only=True)
class EstimatorRow:
    """One arm, as measured or as it would be without some of its difficulties. Errors in units of |target|^2."""

    algorithm: str
    arm: str
    variant: str  # "measured", or what of the arm is computed exactly
    variance: float
    bias_squared: float
    mean_squared_error: float
    cosine: float
    variance_ratio: float  # x baseline's
    error_ratio: float  # mean squared error x baseline's
    error_ratio_interval: tuple[float, float] | None = None  # 95 %; this and all that follows of measured arms alone
    deviations: tuple[float, float, float] | None = None  # standard errors of variance, squared bias, and their sum
    num_samples: float | None = None  # drawn in a step, pilots included; mean
    num_tokens: float | None = None  # likewise
    max_samples: int | None = None  # of one prompt in any step


def markdown(rows: Sequence[EstimatorRow], *, baseline: str, facts: Mapping[str, str]) -> str:
    """One table for each algorithm, under what was measured and how to read it."""
    lines = ["# Gradient estimators at a fixed policy", "", *(f"- {name}: {value}" for name, value in facts.items())]
    lines += ["", *_legend(baseline)]
    for algorithm, group in groupby(rows, key=lambda row: row.algorithm):
        lines += ["", f"## {algorithm}", "", *_table(list(group), baseline)]
    return "\n".join([*lines, ""])


def write_results(folder: Path, rows: Sequence[EstimatorRow], text: str, *, settings: Mapping[str, Any]) -> None:
    """estimator.md, estimator.csv and estimator.json in a folder, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "estimator.md").write_text(text, encoding="utf-8")
    (folder / "estimator.csv").write_text(csv_text(rows), encoding="utf-8")
    values = {**settings, "rows": [asdict(row) for row in rows]}
    (folder / "estimator.json").write_text(json_text(values, indent=2) + "\n", encoding="utf-8")


def csv_text(rows: Sequence[EstimatorRow]) -> str:
    """One line a row; intervals and standard errors in columns of their own, empty where there are none."""
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
        "Variance, squared bias and their sum, the mean squared error (MSE), are of the estimate of one step against "
        "the target, in units of the target's squared norm; ± is a bootstrap standard error over the repeats.",
        "The target is what the algorithm makes of all samples of all prompts. Ratios are to the same of "
        f"`{baseline}`, [95 %]; those of other than measured rows are to its exact expectation where that is known.",
        "",
        "- measured: the allocator as it is, on samples drawn from the pool.",
        "- its n: the exact expectation for the very n_i that the measured steps had, without the noise of a few huge "
        "gradients; for allocators that settle all n_i before they sample.",
        "- true p, G ...: in expectation too. `true p, G`: the allocator's rule with the prompts' "
        "true accept rates and gradient norms in place of estimates, and no pilots; what it gains is lost to "
        "estimation. "
        "`real n`: n is not rounded either. `undone`: weights undo the selection of prompts.",
        "- oracle: the n_i of the same sum that give the least MSE, for one who knows every prompt's gradients.",
        "- cosine: of the mean estimate with the target; noise is taken off measured ones, which may then exceed 1.",
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
