"""Whole comparisons of tiny runs: warm slots, what is run again, failures, and what is left behind."""

import io
import json
import shutil
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny_runs import TINY_TOML

from gvm_ray.cli import main
from gvm_ray.config import ComparisonConfig, load_comparison
from gvm_ray.lab.compare.compare import ComparisonFolder, compare, report
from gvm_ray.lab.compare.records import RunRecord, read_csv

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

COMPARISON_TOML = """\
name = "tiny-arena"
token_budget = 700
prefill_price = 0.5
exploration_seeds = [0, 1]
num_slots = 2
highlighted = "gvm_pool"

[[families]]
name = "arithmetic"
config = "tiny.toml"

[[families.training_sets]]
name = "all"

[[arms]]
name = "uniform"
set = { allocator = { type = "uniform" } }

[[arms]]
name = "gvm_pool"
set = { allocator = { type = "gvm_pool", candidates_per_step = 16, group_size = 6, states = { refresh_steps = 2 } } }
"""
BROKEN_ARM = """
[[arms]]
name = "broken"
set = { allocator = { type = "custom", path = "faulty_allocator:NoSuchStep" } }
"""


class Comparison:
    """A comparison in a folder, and what was said when it was run."""

    def __init__(self, folder: Path, toml: str) -> None:
        self.folder = folder
        self.path = folder / "arena.toml"
        self.path.write_text(toml)
        (folder / "tiny.toml").write_text(TINY_TOML.replace("num_steps = 4", "num_steps = 40"))
        self.said: list[str] = []

    @property
    def config(self) -> ComparisonConfig:
        return load_comparison(self.path, [f'runs_dir="{self.folder / "runs"}"'])

    @property
    def kept(self) -> ComparisonFolder:
        return ComparisonFolder.of(self.config, config_folder=self.folder, phase="exploration")

    def run(self, *only: str) -> dict[str, RunRecord]:
        self.said.clear()
        patterns = only or ("*",)
        return by_name(
            compare(self.config, config_folder=self.folder, phase="exploration", only=patterns, say=self.said.append)
        )


def by_name(records: list[RunRecord]) -> dict[str, RunRecord]:
    """Arm and seed -> record."""
    return {f"{record.arm}/{record.seed}": record for record in records}


@dataclass(frozen=True, kw_only=True)
class Sitting:
    """What one call of the command printed, and the records that it left."""

    exit_code: int
    output: str
    errors: str
    records: dict[str, RunRecord]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Four runs that finish, and two of an arm that fails."""
    return Comparison(tmp_path_factory.mktemp("comparison"), COMPARISON_TOML + BROKEN_ARM)


@pytest.fixture(scope="module")
def first(ray_cluster: None, comparison: Comparison) -> Sitting:
    """The first sitting, by the command line: all runs but one that fails. The first two slots are fresh."""
    only = [argument for pattern in ("*/uniform/*", "*/gvm_pool/*", "*/broken/1") for argument in ("--only", pattern)]
    output, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(errors):
        code = main(["compare", str(comparison.path), *only, "--set", f'runs_dir="{comparison.folder / "runs"}"'])
    records = by_name(report(comparison.config, config_folder=comparison.folder, phase="exploration"))
    return Sitting(exit_code=code, output=output.getvalue(), errors=errors.getvalue(), records=records)


@pytest.fixture(scope="module")
def records(first: Sitting) -> dict[str, RunRecord]:
    """Of the runs that finished."""
    return {name: record for name, record in first.records.items() if record.arm != "broken"}


@pytest.fixture(scope="module")
def second(first: Sitting, comparison: Comparison) -> dict[str, RunRecord]:
    """The second sitting, after one of the runs in a warm slot has lost its record: that run, and one that failed."""
    (comparison.kept.records / "exploration/arithmetic/a/all/as_configured/gvm_pool/1.json").unlink()
    for file in comparison.kept.results.glob("*.csv"):
        file.unlink()
    return comparison.run("*/gvm_pool/*", "*/broken/1")


def test_every_run_ends_at_its_budget_with_an_evaluation(records: dict[str, RunRecord]) -> None:
    assert sorted(records) == ["gvm_pool/0", "gvm_pool/1", "uniform/0", "uniform/1"]
    for record in records.values():
        assert record.status == "finished"
        first, *_, before_last, last = record.evaluations
        assert (first.step, first.charged_tokens) == (0, 0)
        assert before_last.charged_tokens < 700 <= last.charged_tokens
        assert last.updates == 2 * last.step
        assert record.tests == ("balanced", "train")


def test_prefill_is_charged_at_its_price(records: dict[str, RunRecord]) -> None:
    for name, record in records.items():
        last, prefill = record.evaluations[-1], record.costs.prefill_tokens
        assert (prefill > 0) == name.startswith("gvm_pool")
        assert last.charged_tokens == pytest.approx(last.generated_tokens + 0.5 * prefill)
        assert (record.costs.prefill_s > 0) == (prefill > 0)


def test_all_runs_start_from_the_same_base(records: dict[str, RunRecord]) -> None:
    assert len({record.base_digest for record in records.values()}) == 1
    uniform, pool = (records[name].evaluations[0].accuracy for name in ("uniform/0", "gvm_pool/0"))
    assert uniform == pool  # the same seeds of evaluation


def test_a_predicting_arm_says_how_well_it_predicted(records: dict[str, RunRecord]) -> None:
    calibration = records["gvm_pool/0"].calibration
    assert calibration is not None
    assert 0 <= calibration.brier <= 1
    assert sum(calibration.counts) > 0
    assert records["uniform/0"].calibration is None


def test_tables_plots_and_csv_are_written(comparison: Comparison, first: Sitting) -> None:
    results = comparison.kept.results
    assert {"comparison.md", "comparison.csv", "runs.csv", "evaluations.csv"} <= {p.name for p in results.iterdir()}
    assert list(results.glob("*.png"))
    written = {record.key: record for record in read_csv(results)}
    assert written == {record.key: record for record in first.records.values()}


def test_a_failed_run_spoils_no_other_and_is_shown(comparison: Comparison, first: Sitting) -> None:
    assert first.exit_code == 1
    assert "5 runs, 0 of them done before" in first.output
    assert "too few for an interval" in first.errors
    assert "broken/1: FAILED" in first.output
    assert {name for name, record in first.records.items() if record.status == "failed"} == {"broken/1"}
    assert "broken" in (comparison.kept.results / "comparison.md").read_text()
    failed = comparison.kept.records / "exploration/arithmetic/a/all/as_configured/broken/1.json"
    assert json.loads(failed.read_text())


def test_what_is_done_is_not_run_again_even_from_the_csv_alone(
    comparison: Comparison, records: dict[str, RunRecord], tmp_path: Path
) -> None:
    shutil.copytree(comparison.folder, tmp_path, dirs_exist_ok=True)
    finished = Comparison(tmp_path, COMPARISON_TOML)  # without the arm that fails, which would be tried again
    for file in finished.kept.records.rglob("*.json"):
        file.unlink()
    assert finished.run() == records
    assert finished.said == ["4 runs, 4 of them done before"]


def test_a_run_in_a_warm_slot_is_what_it_is_in_a_fresh_one(
    first: Sitting, comparison: Comparison, second: dict[str, RunRecord]
) -> None:
    """The second run of a slot, done again as the first one of a fresh slot; what failed is tried again beside it."""
    assert comparison.said[0] == "3 runs, 1 of them done before"
    assert {name for name, record in second.items() if record.status == "failed"} == {"broken/1"}
    points = [
        [(e.step, e.charged_tokens, e.accuracy) for e in each["gvm_pool/1"].evaluations]
        for each in (first.records, second)
    ]
    assert points[0] == points[1]
