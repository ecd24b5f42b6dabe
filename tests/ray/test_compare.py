"""Whole comparisons of tiny runs: warm slots, what is run again, failures, and what is left behind."""

import json
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

    def run(self) -> dict[str, RunRecord]:
        self.said.clear()
        records = compare(self.config, config_folder=self.folder, phase="exploration", say=self.said.append)
        return {f"{record.arm}/{record.seed}": record for record in records}


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return Comparison(tmp_path_factory.mktemp("arena"), COMPARISON_TOML)


@pytest.fixture(scope="module")
def records(ray_cluster: None, comparison: Comparison) -> dict[str, RunRecord]:
    return comparison.run()


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


def test_tables_plots_and_csv_are_written(comparison: Comparison, records: dict[str, RunRecord]) -> None:
    results = comparison.kept.results
    assert {"comparison.md", "comparison.csv", "runs.csv", "evaluations.csv"} <= {p.name for p in results.iterdir()}
    assert list(results.glob("*.png"))
    assert {record.key: record for record in read_csv(results)} == {record.key: record for record in records.values()}


def test_what_is_done_is_not_run_again_even_from_the_csv_alone(
    comparison: Comparison, records: dict[str, RunRecord]
) -> None:
    for file in comparison.kept.records.rglob("*.json"):
        file.unlink()
    assert comparison.run() == records
    assert comparison.said == ["4 runs, 4 of them done before"]


def test_a_run_in_a_warm_slot_is_what_it_is_in_a_fresh_one(
    comparison: Comparison, records: dict[str, RunRecord]
) -> None:
    """The second run of each slot, done again as the first one of a fresh slot."""
    again = Comparison(
        comparison.folder, COMPARISON_TOML.replace("exploration_seeds = [0, 1]", "exploration_seeds = [1]")
    )
    for file in again.kept.results.glob("*.csv"):
        file.unlink()
    repeated = again.run()
    for name, record in repeated.items():
        points = [(e.step, e.charged_tokens, e.accuracy) for e in record.evaluations]
        assert points == [(e.step, e.charged_tokens, e.accuracy) for e in records[name].evaluations]


def test_a_failed_run_spoils_no_other_and_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = Comparison(
        tmp_path, COMPARISON_TOML.replace("exploration_seeds = [0, 1]", "exploration_seeds = [3]") + BROKEN_ARM
    )
    sitting = ["--only", "*/broken/*", "--only", "*/uniform/*", "--set", f'runs_dir="{tmp_path / "runs"}"']
    code = main(["compare", str(broken.path), *sitting])
    printed = capsys.readouterr()
    assert code == 1
    assert "2 runs, 0 of them done before" in printed.out
    assert "too few for an interval" in printed.err
    assert "broken/3: FAILED" in printed.out
    records = {record.arm: record for record in broken.run().values()}
    assert broken.said[0] == "3 runs, 1 of them done before"
    assert records["broken"].status == "failed"
    assert records["uniform"].status == records["gvm_pool"].status == "finished"
    table = (broken.kept.results / "comparison.md").read_text()
    assert "broken" in table
    assert json.loads((broken.kept.records / "exploration/arithmetic/a/all/as_configured/broken/3.json").read_text())
    assert report(broken.config, config_folder=tmp_path, phase="exploration")
