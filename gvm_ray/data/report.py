"""What a preparation read, kept and dropped: a JSON file beside the Parquet file, and a table for people."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gvm_ray.data.rejection import REASONS, Reason
from gvm_ray.settings import Settings


class Input(Settings):
    """A file or dataset that was read."""

    path: str
    sha256: str  # of a dataset its fingerprint


class Dropped(Settings):
    """A row that isn't in the output, or that is although its answer couldn't be verified."""

    prompt_id: str  # empty where the row made no task
    where: str  # file and line
    reason: Reason
    detail: str


class DataReport(Settings):
    """Everything about one preparation."""

    output: str
    sha256: str  # of the output
    request: str  # hash of options and inputs: the same one gives the same output
    num_read: int
    num_kept: int
    num_common_ngrams: int  # shared with an evaluation set, but by too many problems to prove anything
    kept_by_source: dict[str, int]
    inputs: tuple[Input, ...]
    evaluation_inputs: tuple[Input, ...]
    options: dict[str, Any]
    versions: dict[str, str]
    kept_unverified: tuple[Dropped, ...]
    dropped: tuple[Dropped, ...]

    @property
    def path(self) -> Path:
        """Where it stands."""
        return report_path(self.output)

    def table(self) -> str:
        """For printing: what was kept of each source, and what was dropped for each reason, with the first row."""
        lines = [f"{self.output}: {self.num_kept:,} of {self.num_read:,} problems"]
        rows = [(f"{num:,}", "kept", source) for source, num in self.kept_by_source.items()]
        rows += reason_rows(self.dropped, what="dropped") + reason_rows(self.kept_unverified, what="kept all the same")
        if self.num_common_ngrams:
            phrase = f"n-grams of evaluation sets that are in more than {self.options['common_ngram']} problems"
            rows.append((f"{self.num_common_ngrams:,}", "passed over", phrase))
        return "\n".join([*lines, *aligned(rows)])


def reason_rows(rows: Sequence[Dropped], *, what: str) -> list[tuple[str, str, str]]:
    """A line of a table for each reason: how many, what became of them, and the first of them."""
    counts = Counter(row.reason for row in rows)
    lines = []
    for reason, meaning in REASONS.items():
        if counts[reason]:
            first = next(row for row in rows if row.reason == reason)
            lines.append((f"{counts[reason]:,}", what, f"{reason}: {meaning}; {first.where}: {first.detail}"))
    return lines


def aligned(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    """Lines with numbers to the right, and words to the left."""
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    return [f"  {number:>{widths[0]}}  {what:<{widths[1]}}  {text}" for number, what, text in rows]


def report_path(output: str) -> Path:
    """`train.report.json` of `train.parquet`."""
    return Path(output).expanduser().with_suffix(".report.json")


def read_report(output: str) -> DataReport | None:
    """The report beside an output; None where there is none that can be read."""
    try:
        return DataReport.model_validate_json(report_path(output).read_bytes())
    except (OSError, ValidationError):
        return None
