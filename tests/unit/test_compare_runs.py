"""What a comparison does with its runs: which are done, who runs the others, and what a run leaves behind."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compare_records import record
from compare_settings import COMPARISON, RUN_TOML

from gvm_ray.config import ComparisonConfig
from gvm_ray.exceptions import ConfigError, DataError, SystemFailure
from gvm_ray.lab.compare import compare as comparing
from gvm_ray.lab.compare.compare import ComparisonFolder, null_report, report, settings_without
from gvm_ray.lab.compare.records import RunRecord, write_csv, write_record
from gvm_ray.lab.compare.runs import PlannedRun, planned_runs
from gvm_ray.lab.compare.slot import CurveLog, ManyTests
from gvm_ray.phase_clock import PhaseClock
from gvm_ray.types import Metrics


class Hand:
    """A clock that stands still until it is moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def comparison(tmp_path: Path, **changes: Any) -> ComparisonConfig:
    (tmp_path / "run.toml").write_text(RUN_TOML)
    return ComparisonConfig.model_validate(COMPARISON | {"runs_dir": str(tmp_path / "runs")} | changes)


def runs_of(tmp_path: Path, config: ComparisonConfig) -> list[PlannedRun]:
    return planned_runs(config, folder=tmp_path, phase="exploration")


def record_of(run: PlannedRun, **fields: Any) -> RunRecord:
    own = {"phase": run.phase, "setting": run.setting, "fingerprint": run.fingerprint, "token_budget": run.token_budget}
    return record(run.arm, run.seed, accuracy=[0.5] * 11, **own | {"updates_per_batch": 4} | fields)


def test_a_run_is_known_by_its_settings_from_its_record_or_the_csv_files(tmp_path: Path) -> None:
    config = comparison(tmp_path)
    folder = ComparisonFolder.of(config, config_folder=tmp_path, phase="exploration")
    first, second, third, *_ = runs = runs_of(tmp_path, config)
    assert folder.known(runs) == {}
    write_record(folder.records, record_of(first))
    write_record(folder.records, record_of(second, fingerprint="of other settings"))
    folder.results.mkdir(parents=True)
    write_csv([record_of(second), record_of(third), record_of(first, error="x", status="failed")], folder.results)
    known = folder.known(runs)
    assert set(known) == {first.name, third.name}  # a record goes before the CSV files
    assert known[first.name].status == "finished"


def test_a_report_keeps_and_names_arms_that_ran_with_other_settings_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "write_plots", lambda *_, **__: None)
    config = comparison(tmp_path)
    folder = ComparisonFolder.of(config, config_folder=tmp_path, phase="exploration")
    runs = [run for run in runs_of(tmp_path, config) if run.setting == runs_of(tmp_path, config)[0].setting]
    uniform = [run for run in runs if run.arm == "uniform"]
    pool = [run for run in runs if run.arm == "pool"]
    folder.results.mkdir(parents=True)
    old = [record_of(run, fingerprint="of other settings") for run in [*uniform[1:], *pool]]
    write_csv([record_of(uniform[0]), *old], folder.results)
    records = report(config, config_folder=tmp_path, phase="exploration")
    assert {(record.arm, record.seed) for record in records} == {
        ("uniform", uniform[0].seed),  # it has a run with these settings, so its old ones are no longer its
        *(("pool", run.seed) for run in pool),
    }
    text = (folder.results / "comparison.md").read_text()
    assert (
        f"- Recorded with other settings than the comparison's file has now: pool with {pool[0].setting.algorithm}."
        in text
    )


def test_the_null_report_has_a_part_for_each_group_or_says_what_it_needs(tmp_path: Path) -> None:
    config = comparison(tmp_path, exploration_seeds=[0, 1, 2])
    with pytest.raises(DataError, match="no runs of the exploration to simulate from"):
        null_report(config, config_folder=tmp_path, phase="exploration")
    folder = ComparisonFolder.of(config, config_folder=tmp_path, phase="exploration")
    folder.results.mkdir(parents=True)
    rises = [0.5, 0.55, 0.6, 0.64, 0.68, 0.7, 0.71, 0.72, 0.73, 0.73, 0.73]
    runs = runs_of(tmp_path, config)
    write_csv(
        [
            record(
                run.arm,
                run.seed,
                phase=run.phase,
                setting=run.setting,
                fingerprint=run.fingerprint,
                accuracy=[value + run.seed / 1000 for value in rises],
            )
            for run in runs
        ],
        folder.results,
    )
    text = null_report(config, config_folder=tmp_path, phase="exploration", num_comparisons=5)
    groups = {f"{run.setting.training_set}, {run.setting.algorithm}" for run in runs}
    assert {line for line in text.splitlines() if line and not line.startswith("-")} == groups
    assert text.count("5 simulated comparisons of") >= len(groups)


def test_a_sitting_that_leaves_out_the_baseline_is_noticed_before_its_runs(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, comparison(tmp_path))
    pool = [run for run in runs if run.arm == "pool"]
    assert settings_without("uniform", runs, {}) == []
    assert set(settings_without("uniform", pool, {})) == {str(run.setting) for run in runs}
    others = [run for run in runs if run.setting != runs[0].setting]
    assert settings_without("uniform", [*pool, *others], {}) == [str(runs[0].setting)]
    assert settings_without("uniform", pool, {run.name: record_of(run) for run in runs}) == []


def test_results_may_lie_with_its_file(tmp_path: Path) -> None:
    beside = ComparisonFolder.of(comparison(tmp_path, results_dir="kept"), config_folder=tmp_path, phase="confirmation")
    assert beside.results == tmp_path / "kept" / "confirmation"
    assert ComparisonFolder.of(comparison(tmp_path), config_folder=tmp_path, phase="exploration").results == (
        tmp_path / "runs" / "mine" / "results" / "exploration"
    )


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        report(comparison(tmp_path), config_folder=tmp_path, phase="exploration")


class FakeSlot:
    """Takes a moment for a run; fails where its name says so."""

    started: list[tuple[int, str, str]]
    wrong_base = ""

    def __init__(self, number: int, *, folder: Path, load: object, num_slots: int) -> None:
        self.number = number

    async def build_base(self, run: PlannedRun) -> None:
        self.started.append((self.number, "base", run.setting.base))
        await asyncio.sleep(0.001)
        if run.setting.base == self.wrong_base:
            raise ConfigError(f"base {run.setting.base} is wrong")

    async def run(self, run: PlannedRun) -> RunRecord:
        self.started.append((self.number, run.arm, run.name))
        await asyncio.sleep(0.001 * (1 + self.number))
        if run.arm == "pool" and run.seed == 1:
            raise ExceptionGroup("unhandled", [ExceptionGroup("inner", [RuntimeError("out of memory")])])
        return record_of(run, updates_per_batch=run.config.algorithm.updates_per_batch)

    async def close(self) -> None:
        self.started.append((self.number, "closed", ""))


@pytest.fixture
def slots(monkeypatch: pytest.MonkeyPatch) -> type[FakeSlot]:
    monkeypatch.setattr(FakeSlot, "started", [], raising=False)
    monkeypatch.setattr(comparing, "Slot", FakeSlot)
    monkeypatch.setattr(comparing, "connected", lambda config, **_: contextlib.nullcontext())  # no slot needs a cluster
    monkeypatch.setattr(comparing, "write_plots", lambda *_, **__: None)  # many, and seconds
    return FakeSlot


def run_all(tmp_path: Path, config: ComparisonConfig) -> list[str]:
    """What is said of each run."""
    said: list[str] = []
    comparing.compare(config, config_folder=tmp_path, phase="exploration", say=said.append)
    return [line for line in said if line.startswith("[")]


def test_bases_come_first_then_every_run_once_and_failures_are_recorded(tmp_path: Path, slots: type[FakeSlot]) -> None:
    config = comparison(tmp_path, num_slots=3)
    runs = runs_of(tmp_path, config)
    said = run_all(tmp_path, config)
    assert sorted(name for _, kind, name in slots.started[:2] if kind == "base") == ["a", "b"]
    assert sorted(name for _, kind, name in slots.started if kind in ("uniform", "pool")) == sorted(
        r.name for r in runs
    )
    assert {number for number, _, _ in slots.started} == {0, 1, 2}
    assert [kind for _, kind, _ in slots.started[-3:]] == ["closed"] * 3
    known = ComparisonFolder.of(config, config_folder=tmp_path, phase="exploration").known(runs)
    assert len(known) == len(runs) == len(said)
    failed = {name for name, each in known.items() if each.status == "failed"}
    assert failed == {run.name for run in runs if run.arm == "pool" and run.seed == 1}
    assert {known[name].error for name in failed} == {"RuntimeError: out of memory"}
    assert sum("FAILED, RuntimeError: out of memory" in line for line in said) == len(failed)


def test_a_wrong_base_ends_the_comparison_with_its_error_before_any_run(
    tmp_path: Path, slots: type[FakeSlot], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "wrong_base", "b")
    config = comparison(tmp_path)
    with pytest.raises(ConfigError, match="base b is wrong"):
        run_all(tmp_path, config)
    assert {kind for _, kind, _ in slots.started} == {"base", "closed"}


def test_a_curve_counts_the_runs_own_time_and_what_it_was_charged() -> None:
    hand = Hand()
    clock = PhaseClock(hand)
    log = CurveLog(clock=clock)

    class Test:
        async def evaluate(self, policy_version: int) -> Metrics:
            with clock.phase("sampling"):
                hand.now += 50
            return {"eval/accuracy": 0.25, "eval/length": 9.0}

    tests = ManyTests(tests={"balanced": Test(), "train": Test()}, log=log)  # type: ignore[dict-item]
    measured = asyncio.run(tests.evaluate(0))
    assert measured == {"eval/accuracy/balanced": 0.25, "eval/accuracy/train": 0.25}
    log.add(0, measured)
    with clock.phase("planning"):
        hand.now += 1
    with clock.phase("sampling"):
        hand.now += 4
    with clock.phase("update"):
        hand.now += 2
    costs = {"cost/generated_tokens": 90.0, "cost/prefill_tokens": 20.0, "cost/charged_tokens": 96.0}
    costs |= {"cost/prompt_tokens": 30.0, "cost/trained_tokens": 80.0}
    log.log_step(0, {**costs, "cost/optimizer_updates": 4.0}, histograms={})
    log.log_step(1, {**costs, **asyncio.run(tests.evaluate(0)), "cost/optimizer_updates": 8.0}, histograms={})
    first, last = log.evaluations
    assert (first.step, first.seconds, first.charged_tokens, first.accuracy["train"]) == (0, 0, 0, 0.25)
    assert (last.step, last.updates, last.seconds) == (2, 8, 7)
    assert (last.generated_tokens, last.charged_tokens) == (90, 96)
    assert (last.prefill_tokens, last.prompt_tokens, last.trained_tokens) == (20, 30, 80)
    spent = log.costs()
    assert (spent.planning_s, spent.sampling_s, spent.update_s, spent.prefill_s) == (1, 4, 2, 0)
    assert (spent.generated_tokens, spent.prefill_tokens, spent.pilot_tokens) == (90, 20, 0)


def test_predictions_of_all_steps_are_calibrated_together() -> None:
    log = CurveLog(clock=PhaseClock(Hand()))
    assert log.calibration() is None
    empty = np.zeros(0)
    for predicted, observed in (([0.05, 0.95], [0.0, 0.5]), ([], []), ([0.05], [1.0])):
        log.log_step(
            0,
            {},
            histograms={"predicted_accept_rate": np.array(predicted), "observed_accept_rate": np.array(observed)},
        )
    calibration = log.calibration()
    assert calibration is not None
    assert calibration.counts == (2, 1)
    assert calibration.predicted == pytest.approx((0.05, 0.95))
    assert calibration.observed == pytest.approx((0.5, 0.5))
    assert calibration.brier == pytest.approx((0.05**2 + 0.45**2 + 0.95**2) / 3)
    only_empty = CurveLog(clock=PhaseClock(Hand()))
    only_empty.log_step(0, {}, histograms={"predicted_accept_rate": empty, "observed_accept_rate": empty})
    assert only_empty.calibration() is None


def test_a_test_with_two_names_is_sampled_once() -> None:
    sampled: list[int] = []

    class Test:
        async def evaluate(self, policy_version: int) -> Metrics:
            sampled.append(policy_version)
            return {"eval/accuracy": 0.25 * len(sampled)}

    def evaluate(**tests: Any) -> Metrics:
        return asyncio.run(ManyTests(tests=tests, log=CurveLog(clock=PhaseClock(Hand()))).evaluate(3))

    shared = Test()
    assert evaluate(balanced=shared, train=shared) == {"eval/accuracy/balanced": 0.25, "eval/accuracy/train": 0.25}
    assert evaluate(balanced=Test(), train=Test()) == {"eval/accuracy/balanced": 0.5, "eval/accuracy/train": 0.75}
    assert sampled == [3, 3, 3]


def test_a_test_without_a_scored_sample_fails_its_run_in_words() -> None:
    class Test:
        def __init__(self, accuracy: float) -> None:
            self.accuracy = accuracy

        async def evaluate(self, policy_version: int) -> Metrics:
            return {"eval/accuracy": self.accuracy}

    tests: Any = {"balanced": Test(0.5), "train": Test(np.nan)}
    with pytest.raises(SystemFailure, match="none of the samples of test 'train' was scored; the reward actors' log"):
        asyncio.run(ManyTests(tests=tests, log=CurveLog(clock=PhaseClock(Hand()))).evaluate(0))
