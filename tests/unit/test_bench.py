"""`gvm-ray bench`: ratios, fair timing, parts that fail, and the table."""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from gvm_ray.exceptions import ConfigError, SystemFailure
from gvm_ray.lab.speed import end_to_end
from gvm_ray.lab.speed.plan import make_prompts, plans, pool_step, rounded_down
from gvm_ray.lab.speed.suite import (
    PARTS,
    BenchOptions,
    BenchReport,
    BenchRow,
    Machine,
    PartResult,
    compare,
    run_parts,
    select,
)

MACHINE = Machine(cpu="CPU | 1", cores=2, memory_gib=8.0, gpus=())


def row(*, value: float = 6.0, floor: float | None = 3.0, higher_is_better: bool = True) -> BenchRow:
    return BenchRow(name="n", value=value, unit="u", floor=floor, floor_name="bare", higher_is_better=higher_is_better)


def test_the_ratio_is_above_one_where_ours_is_better() -> None:
    assert row().ratio == 2.0
    assert row(higher_is_better=False).ratio == 0.5
    assert row(floor=None).ratio is None
    assert row(floor=0.0).ratio is None


def test_compare_calls_both_in_turn_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    clock = iter([0, 5, 10, 11, 20, 21, 30, 33, 40, 43, 50, 52])  # ours 5, 1, 3; bare 1, 3, 2
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    medians = compare(lambda: calls.append("ours"), lambda: calls.append("bare"), repeats=3)
    assert calls == ["ours", "bare"] * 4
    assert medians == (3.0, 2.0)


def test_compare_needs_a_repeat() -> None:
    with pytest.raises(ValueError, match="repeats=0"):
        compare(lambda: None, lambda: None, repeats=0)


def test_parts_keep_their_order_and_unknown_names_are_refused() -> None:
    assert select([]) == PARTS
    assert select(["gradient_norms", "plan"]) == ("plan", "gradient_norms")
    with pytest.raises(ConfigError, match=r"no benchmark 'plam'; write one or more of: plan, gradient_norms"):
        select(["plan", "plam"])


def test_a_part_that_fails_leaves_the_others_alone() -> None:
    def broken(options: BenchOptions) -> Sequence[BenchRow]:
        raise RuntimeError(f"no | luck, quick={options.quick}")

    started: list[str] = []
    results = run_parts(
        ["broken", "good"],
        BenchOptions(quick=True),
        on_start=started.append,
        measures={"broken": broken, "good": lambda options: [row()]},
    )
    assert started == ["broken", "good"]
    assert results[0].error == "RuntimeError: no | luck, quick=True"
    assert results[0].rows == ()
    assert results[1].rows == (row(),)
    report = BenchReport(machine=MACHINE, quick=True, results=results)
    assert report.failed
    assert "| broken | failed: RuntimeError: no \\| luck, quick=True |" in report.markdown()


def test_figures_are_told_as_they_come_and_outlive_what_fails_after_them() -> None:
    said: list[str] = []

    def half(options: BenchOptions) -> Iterator[BenchRow]:
        options.say("under way")
        yield row()
        assert said == ["under way", "  n: 6 u"]
        raise RuntimeError("the second one")

    (result,) = run_parts(["half"], BenchOptions(say=said.append), measures={"half": half})
    assert result.rows == (row(),)
    assert result.error == "RuntimeError: the second one"


def fake_python(path: Path, *commands: str) -> str:
    """An interpreter that does the same whatever program it is given."""
    path.write_text("\n".join(["#!/bin/sh", *commands]))
    path.chmod(0o755)
    return str(path)


def test_a_peer_that_takes_long_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_to_end, "EVERY_S", 0.05)
    said: list[str] = []
    case = end_to_end.Case(model=tmp_path, prompts=tmp_path / "prompts.jsonl", num_steps=7)
    figures = '{"completions_per_s": 2.5, "mean_completion_tokens": 40.0}'
    python = fake_python(tmp_path / "slow", "sleep 0.5", "echo progress", f"echo '{figures}'")
    expected = end_to_end.RunFigures(completions_per_s=2.5, mean_completion_tokens=40.0)
    assert end_to_end.run_trl(python, case, say=said.append) == expected
    assert said[0] == "  TRL, 7 steps"
    assert said[1] == "  TRL, 0 s so far"


def test_a_peer_that_fails_or_is_not_there_is_named(tmp_path: Path) -> None:
    case = end_to_end.Case(model=tmp_path, prompts=tmp_path / "prompts.jsonl", num_steps=7)
    python = fake_python(tmp_path / "failing", "echo out", "echo 'no module named trl' >&2", "exit 3")
    with pytest.raises(SystemFailure, match=r"TRL's run in .*failing' failed: no module named trl; see trl_grpo\.py"):
        end_to_end.run_trl(python, case)
    with pytest.raises(ConfigError, match="--trl-python '/nowhere/python' can't be run"):
        end_to_end.run_trl("/nowhere/python", case)


def test_markdown_and_json_say_what_was_measured_where(tmp_path: Path) -> None:
    rows = (row(value=12345.6), row(floor=None))
    results = [PartResult(name="part", rows=rows, seconds=1.0)]
    report = BenchReport(machine=MACHINE, quick=False, results=results, date="2026-01-02", versions={"torch": "2"})
    assert not report.failed
    markdown, values = (path.read_text() for path in report.write(tmp_path / "new"))
    assert "| part | n | 12,346 u | 3 u | bare | 4115.20 |" in markdown
    assert "| part | n | 6 u |  | bare |  |" in markdown
    assert "2026-01-02" in markdown
    assert "CPU | 1, 2 cores, 8 GiB, no GPU" in markdown
    loaded = json.loads(values)
    assert loaded["parts"][0]["rows"][1]["ratio"] is None
    assert loaded["parts"][0]["rows"][0]["ratio"] == pytest.approx(4115.2)
    assert loaded["machine"]["cores"] == 2


def test_the_pools_steps_spend_the_budget_and_learn() -> None:
    step, states = pool_step(16)
    reports = [step() for _ in range(3)]
    assert len(states) == 4 * 128
    assert all(report.metrics["allocation/total"] == 128 for report in reports)
    first, _, last = (report.histograms["accept_rate"] for report in reports)
    assert last.std() > first.std()  # it no longer predicts one rate for all


@pytest.mark.parametrize("name", ["uniform plan", "gvm decision", "gvm decision, n of at least 4"])
def test_a_measured_decision_spends_the_budget_that_its_floor_falls_short_of(name: str) -> None:
    prompts = make_prompts(500)
    allocation = plans(prompts)[name]()
    assert allocation.total == 8 * 500
    assert allocation.counts.keys() == rounded_down(prompts).keys()
    assert sum(rounded_down(prompts).values()) <= allocation.total
