"""A sink of your own: it gets every step's numbers, arrays and sample texts, and can't end the run by failing.

This one keeps a table of chosen metrics, which a spreadsheet opens:

    cd examples && gvm-ray train ../configs/quickstart.toml --set name=custom-sink \
        --set 'reporting.sinks=[{path="custom_sink:Table", parameters={metrics=["reward/mean", "length/mean"]}}]'
"""

import csv
from collections.abc import Sequence
from pathlib import Path

from gvm_ray.config import RunConfig
from gvm_ray.types import Histograms, Metrics, SampleText


class Table:
    """Rows of `table.csv` in the run's folder."""

    def __init__(self, config: RunConfig, *, metrics: Sequence[str]) -> None:
        self._metrics = list(metrics)
        self._file = (Path(config.runs_dir) / config.name / "table.csv").open("a", newline="", encoding="utf-8")
        self._rows = csv.writer(self._file)

    def write(self, step: int, metrics: Metrics, *, histograms: Histograms, texts: Sequence[SampleText]) -> None:
        """One row: the step, and each metric; empty where the step hasn't got it."""
        self._rows.writerow([step, *(metrics.get(name) for name in self._metrics)])
        self._file.flush()

    def close(self) -> None:
        self._file.close()
