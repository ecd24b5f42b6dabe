"""What a run leaves behind: folder, rows, console line, plots, summary."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gvm_ray.config import RunConfig, parse_config
from gvm_ray.exceptions import CheckpointError, ConfigError
from gvm_ray.phase_clock import PhaseClock
from gvm_ray.reporting import (
    REQUIRED_KEYS,
    Reporter,
    RunFolder,
    plot_accuracy,
    plot_allocation,
    read_rows,
    read_summary,
    summary_lines,
    write_plots,
    write_summary,
)
from gvm_ray.reporting.progress import short_count, step_line
from gvm_ray.reporting.run_folder import json_text, parse_json
from gvm_ray.types import Metrics


def run_config(**reporting: bool) -> RunConfig:
    settings = {"tensorboard": False, **reporting}
    train = {"type": "arithmetic"}
    model = {"type": "scratch"}
    return parse_config(
        {"name": "t", "num_steps": 4, "model": model, "prompts": {"train": train}, "reporting": settings}
    )


TIMES: dict[str, Any] = {"steps_s": 50.0, "phases": {"sampling": 30.0, "idle": 5.0}}


def metrics(**extra: float) -> Metrics:
    return {**dict.fromkeys(sorted(REQUIRED_KEYS), 1.0), **extra}


# --- rows -------------------------------------------------------------------------------------------------------------
def test_each_step_is_one_json_object_with_its_keys(tmp_path: Path) -> None:
    with Reporter(run_config(), tmp_path) as reporter:
        reporter.log_step(0, metrics(**{"eval/accuracy": 0.5}))
        rows = read_rows(tmp_path / "metrics.jsonl")  # flushed before close
    assert len(rows) == 1
    assert rows[0].keys() == {"step", "time_s", "eval/accuracy", *REQUIRED_KEYS}
    assert rows[0]["step"] == 0
    assert rows[0]["eval/accuracy"] == 0.5
    assert rows[0]["time_s"] >= 0


def test_number_that_is_not_finite_is_null(tmp_path: Path) -> None:
    with Reporter(run_config(), tmp_path) as reporter:
        reporter.log_step(
            0, metrics(**{"a": math.nan, "b": math.inf}), histograms={"accept_rate": np.array([0.5, math.nan])}
        )
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (row["a"], row["b"]) == (None, None)
    assert read_rows(tmp_path / "histograms.jsonl") == [{"step": 0, "accept_rate": [0.5, None]}]


def test_numpy_scalars_are_written_as_numbers(tmp_path: Path) -> None:
    with Reporter(run_config(), tmp_path) as reporter:
        reporter.log_step(0, metrics(**{"a": np.float32(0.25), "b": np.int64(3)}))  # pyright: ignore[reportArgumentType]
    row = read_rows(tmp_path / "metrics.jsonl")[0]
    assert (row["a"], row["b"]) == (0.25, 3.0)


@pytest.mark.parametrize("key", sorted(REQUIRED_KEYS))
def test_missing_required_key_is_an_assertion(tmp_path: Path, key: str) -> None:
    incomplete = metrics()
    del incomplete[key]
    with Reporter(run_config(), tmp_path) as reporter, pytest.raises(AssertionError, match=key):
        reporter.log_step(0, incomplete)


def test_resume_replaces_the_steps_after_the_checkpoint(tmp_path: Path) -> None:
    with Reporter(run_config(), tmp_path) as reporter:
        for step in range(3):
            reporter.log_step(step, metrics(value=step), histograms={"n": np.array([step])})
    with Reporter(run_config(), tmp_path, start_step=1) as reporter:
        reporter.log_step(1, metrics(value=10.0), histograms={"n": np.array([10])})
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["value"]) for row in rows] == [(0, 0.0), (1, 10.0)]
    assert rows[1]["time_s"] >= rows[0]["time_s"]
    assert read_rows(tmp_path / "histograms.jsonl") == [{"step": 0, "n": [0.0]}, {"step": 1, "n": [10.0]}]


def test_line_cut_short_by_a_crash_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "time_s": 2.5}\n{"step": 1, "ti')
    assert [row["step"] for row in read_rows(path)] == [0]
    with Reporter(run_config(), tmp_path, start_step=2) as reporter:
        reporter.log_step(2, metrics())
    rows = read_rows(path)
    assert [row["step"] for row in rows] == [0, 2]
    assert rows[1]["time_s"] >= 2.5


def test_tensorboard_holds_scalars_and_histograms(tmp_path: Path) -> None:
    with Reporter(run_config(tensorboard=True), tmp_path) as reporter:
        reporter.log_step(
            3,
            metrics(**{"reward/mean": 0.25}),
            histograms={"accept_rate": np.array([0.5, math.nan]), "empty": np.array([math.nan])},
        )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward/mean")] == [(3, 0.25)]
    assert events.Histograms("accept_rate")[0].histogram_value.num == 1
    assert events.Tags()["histograms"] == ["accept_rate"]


# --- console ----------------------------------------------------------------------------------------------------------
def test_step_line_says_what_happened() -> None:
    numbers = metrics(
        **{
            "reward/mean": 0.4312,
            "cost/generated_tokens": 1_234_567,
            "allocation/min": 0,
            "allocation/max": 31,
            "allocation/zero": 5,
            "staleness/mean": 0.5,
            "logprob_difference/mean": 1.2e-6,
        }
    )
    line = step_line(8, num_steps=100, metrics=numbers, step_s=2.04)
    assert line == "step   9/100  reward 0.431  tokens 1.23M  n 0-31 (5 zero)  stale 0.5  dlogp 1.2e-06  2.0 s"
    evaluated = step_line(8, num_steps=100, metrics={**numbers, "eval/accuracy": 0.5}, step_s=2.04)
    assert "reward 0.431  eval 0.500  tokens" in evaluated
    useful = step_line(8, num_steps=100, metrics={**numbers, "tokens/useful_fraction": 0.437}, step_s=2.04)
    assert "tokens 1.23M  useful 44%  n 0-31" in useful


def test_one_line_a_step_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(run_config(), tmp_path) as reporter:
        reporter.log_step(0, metrics())
        reporter.log_step(1, metrics())
    output = capsys.readouterr()
    assert [line[:8] for line in output.out.splitlines()] == ["step 1/4", "step 2/4"]
    assert output.err == ""  # no progress bar away from a terminal


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999, "999"), (1234, "1.23k"), (2.5e6, "2.5M"), (3e9, "3G"), (math.nan, "nan")]
)
def test_short_count(count: float, text: str) -> None:
    assert short_count(count) == text


def test_an_evaluation_without_a_scored_sample_is_unknown_and_explained_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unscored = {"eval/accuracy": math.nan, "eval/unscored": 12.0}
    with Reporter(run_config(), tmp_path) as reporter:
        reporter.log_base_evaluation(unscored)
        reporter.log_step(0, metrics(**unscored))
        reporter.log_step(1, metrics())
        reporter.log_evaluation(1, unscored)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "base held-out accuracy unknown"
    assert lines[1].startswith("no sample of the evaluation was scored, so its accuracy is unknown, and null in the")
    assert [line.partition("eval ")[2].split()[:1] for line in lines[2:]] == [["unknown"], [], ["unknown"]]
    assert json.loads((tmp_path / "base_evaluation.json").read_text(), parse_constant=pytest.fail) == {
        "eval/accuracy": None,
        "eval/unscored": 12.0,
    }
    assert RunFolder(tmp_path).read_base_accuracy() is None
    rows = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "metrics.jsonl").open()]
    assert [row.get("eval/accuracy", "none") for row in rows] == [None, "none", None]


def test_a_base_accuracy_is_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(run_config(), tmp_path) as reporter:
        reporter.log_base_evaluation({"eval/accuracy": 0.25})
        assert capsys.readouterr().out == "base held-out accuracy 0.250\n"
        assert RunFolder(tmp_path).read_base_accuracy() == 0.25
        reporter.log_base_evaluation({})  # a run without an evaluation set
        assert capsys.readouterr().out == ""
    assert RunFolder(tmp_path).read_base_accuracy() is None


@pytest.mark.parametrize("text", [None, "", "[]", '{"eval/accuracy": NaN}'])
def test_a_base_accuracy_that_cannot_be_read_is_unknown(tmp_path: Path, text: str | None) -> None:
    folder = RunFolder(tmp_path)
    if text is not None:
        folder.base_evaluation.write_text(text)
    assert folder.read_base_accuracy() is None


def test_steps_and_their_phases_are_timed_apart_from_what_comes_before(tmp_path: Path) -> None:
    now = 100.0
    clock = PhaseClock(lambda: now)
    with Reporter(run_config(), tmp_path, phases=clock) as reporter:
        now = 130.0  # the start
        clock.restart()
        with clock.phase("update"), clock.phase("sync"):
            now = 132.0
        now = 133.0
        reporter.log_step(0, metrics())
        now = 137.0
        reporter.log_step(1, metrics())
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [[row[f"time/{name}_s"] for name in ("step", "update", "sync", "idle")] for row in rows] == [
        [3.0, 2.0, 2.0, 1.0],
        [4.0, 0.0, 0.0, 4.0],
    ]


# --- run folder -------------------------------------------------------------------------------------------------------
def test_new_folder_is_created_and_config_read_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "t")
    folder.create()
    folder.save_config(run_config())
    assert parse_config(json.loads(folder.config.read_text())) == run_config()
    assert folder.checkpoints.is_dir()
    folder.create()  # a run that never made a step doesn't stand in the way


def begun_run(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.create()
    folder.save_config(run_config())
    folder.origins.write_text("{}")
    folder.metrics.write_text('{"step": 0}\n')
    (folder.checkpoints / "step_000001").mkdir()
    (path / "notes.txt").write_text("mine")
    return folder


def test_begun_run_is_not_mixed_with_a_new_one(tmp_path: Path) -> None:
    folder = begun_run(tmp_path / "t")
    with pytest.raises(ConfigError, match=r"--set name=\.\.\., continue it with --resume, or replace it with --overwr"):
        folder.create()
    assert folder.metrics.exists()


def test_resume_keeps_what_is_there(tmp_path: Path) -> None:
    folder = begun_run(tmp_path / "t")
    folder.create(resume=True)
    assert folder.metrics.exists()
    assert (folder.checkpoints / "step_000001").exists()


def test_overwrite_removes_the_old_run_and_nothing_else(tmp_path: Path) -> None:
    folder = begun_run(tmp_path / "t")
    folder.create(overwrite=True)
    assert sorted(path.name for path in folder.path.iterdir()) == ["checkpoints", "notes.txt", "report"]
    assert list(folder.checkpoints.iterdir()) == []


def test_resume_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="start without --resume"):
        RunFolder(tmp_path / "t").create(resume=True)
    assert not (tmp_path / "t").exists()


def test_resume_and_overwrite_contradict(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give one of them"):
        begun_run(tmp_path / "t").create(resume=True, overwrite=True)


# --- plots and summary ------------------------------------------------------------------------------------------------
def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


def test_plots_are_written(tmp_path: Path) -> None:
    rows = [
        {"step": 0, "cost/generated_tokens": 100.0, "eval/accuracy": 0.5},
        {"step": 1, "cost/generated_tokens": 200.0},
    ]
    plot_accuracy(rows, tmp_path / "new" / "accuracy.png", base_accuracy=0.4)
    plot_allocation(np.array([0.1, math.nan, 0.9]), np.array([8.0, 8.0, 2.0]), tmp_path / "allocation.png")
    plot_allocation(np.array([]), np.array([]), tmp_path / "empty.png")
    assert is_png(tmp_path / "new" / "accuracy.png")
    assert is_png(tmp_path / "allocation.png")
    assert is_png(tmp_path / "empty.png")


def test_write_plots_draws_what_the_files_allow(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert write_plots(folder) == []
    with Reporter(run_config(), tmp_path) as reporter:
        arrays = {"accept_rate": np.array([0.5, math.nan]), "samples_per_prompt": np.array([8.0, 4.0])}
        reporter.log_step(0, metrics(**{"eval/accuracy": 0.5}), histograms=arrays)
    assert write_plots(folder) == [folder.report / "accuracy.png", folder.report / "allocation.png"]
    assert all(is_png(path) for path in folder.report.iterdir())


COSTS = {"cost/generated_samples": 512.0, "cost/generated_tokens": 12345.0, "cost/optimizer_updates": 8.0}


def test_summary_holds_result_costs_and_versions(tmp_path: Path) -> None:
    written = write_summary(
        tmp_path, base_accuracy=0.5, final_accuracy=0.75, num_steps=2, time_s=61.0, **TIMES, costs=COSTS
    )
    read = json.loads((tmp_path / "summary.json").read_text())
    assert read == written
    assert read["final_accuracy"] == 0.75
    assert read["cost/generated_tokens"] == 12345.0
    assert {"python", "ray", "torch", "transformers", "math-verify", "gymnasium", "gvm-ray"} <= read["versions"].keys()
    lines = summary_lines(written, run_dir=tmp_path)
    assert lines[0] == f"run {tmp_path.name}: 2 steps in 61 s"
    assert lines[1] == "held-out accuracy 0.500 -> 0.750 (+0.250)"
    assert "512 samples, 12,345 tokens (pilots included); 8 optimizer updates" in lines[2]
    assert read["phases_s"] == {"sampling": 30.0, "idle": 5.0}
    assert lines[3] == "share of the steps' time: sampling 60%, idle 10%"


def test_summary_without_evaluation_says_nothing_of_accuracy(tmp_path: Path) -> None:
    written = write_summary(
        tmp_path, base_accuracy=None, final_accuracy=None, num_steps=2, time_s=1.0, **TIMES, costs=COSTS
    )
    assert not any("accuracy" in line for line in summary_lines(written, run_dir=tmp_path))


@pytest.mark.parametrize(
    ("base", "final", "line"),
    [(math.nan, 0.75, "unknown -> 0.750"), (0.5, math.nan, "0.500 -> unknown"), (0.5, None, "0.500 -> unknown")],
)
def test_an_accuracy_that_is_unknown_is_null_in_the_summary(
    tmp_path: Path, base: float, final: float | None, line: str
) -> None:
    written = write_summary(
        tmp_path, base_accuracy=base, final_accuracy=final, num_steps=2, time_s=1.0, **TIMES, costs=COSTS
    )
    assert read_summary(tmp_path) == written == json.loads((tmp_path / "summary.json").read_text())
    assert None in (written["base_accuracy"], written["final_accuracy"])
    assert f"held-out accuracy {line}" in summary_lines(written, run_dir=tmp_path)


def test_summary_of_steps_that_took_no_time_has_no_shares(tmp_path: Path) -> None:
    times = {"steps_s": 0.0, "phases": {"sampling": 0.0}}
    written = write_summary(
        tmp_path, base_accuracy=0.5, final_accuracy=0.75, num_steps=2, time_s=0.0, **times, costs=COSTS
    )
    assert not any("share" in line for line in summary_lines(written, run_dir=tmp_path))


@pytest.mark.parametrize("text", [None, "", '{"num_steps": 2', "[]", "{}", '{"num_steps": null}'])
def test_a_summary_that_was_not_finished_is_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "summary.json").write_text(text)
    assert read_summary(tmp_path) is None


# --- JSON -------------------------------------------------------------------------------------------------------------
def test_json_text_has_null_for_what_json_cannot_say() -> None:
    value = {"a": [math.nan, (1.5, -math.inf)], "b": {"c": np.float64("nan")}, "d": "NaN", "e": True}
    assert json_text(value) == '{"a": [null, [1.5, null]], "b": {"c": null}, "d": "NaN", "e": true}'
    assert parse_json('[NaN, -Infinity, 1.5, "NaN"]') == [None, None, 1.5, "NaN"]
