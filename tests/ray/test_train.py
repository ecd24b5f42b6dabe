"""Whole runs with the transformers engine: what they leave behind, repeatability, resuming, staleness, no signal."""

import io
import json
import re
import shutil
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from scraped_metrics import scraped_once
from tiny_runs import TINY_TOML, largest_change, timeless_rows, tiny_config

from gvm_ray.cli import main
from gvm_ray.config import RunConfig
from gvm_ray.exceptions import CheckpointError, ConfigError
from gvm_ray.metric_names import LIVE_METRICS, METRICS, OPTIONAL_METRICS, STEP_METRICS, exported_name
from gvm_ray.reporting import REQUIRED_KEYS, RunFolder, read_rows, read_steps
from gvm_ray.reporting.grafana import dashboard
from gvm_ray.run import train
from gvm_ray.trainer import Trainer
from gvm_ray.types import Histograms, Metrics, SampleText

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


class Lines:
    """A sink that writes the steps that it is given into a file of the run's folder."""

    def __init__(self, config: RunConfig) -> None:
        self._path = Path(config.runs_dir) / config.name / "lines.txt"

    def write(self, step: int, metrics: Metrics, *, histograms: Histograms, texts: Sequence[SampleText]) -> None:
        with self._path.open("a") as file:
            file.write(f"{step} {metrics['tokens/useful_fraction']} {len(histograms['samples_per_prompt'])}\n")

    def close(self) -> None:
        with self._path.open("a") as file:
            file.write("closed\n")


@pytest.fixture(scope="module")
def whole(ray_cluster: None, runs_dir: Path) -> RunFolder:
    """Four steps at a stretch."""
    train(tiny_config(runs_dir, name="whole", reporting__sinks=[{"path": f"{__name__}:Lines"}]))
    return RunFolder(runs_dir / "whole")


@pytest.fixture(scope="module")
def resumed(ray_cluster: None, runs_dir: Path) -> RunFolder:
    """Two steps, and then two more, one by one."""
    settings = {"name": "resumed", "reporting__wandb": {"mode": "offline"}}
    train(tiny_config(runs_dir, num_steps=2, **settings))
    with Trainer(tiny_config(runs_dir, **settings), resume=True) as trainer:
        steps = list(trainer)
    assert [result.step for result in steps] == [2, 3]
    assert trainer.summary is not None
    assert trainer.summary["final_accuracy"] == steps[-1].metrics["eval/accuracy"]
    return RunFolder(runs_dir / "resumed")


# --- what a run leaves behind -----------------------------------------------------------------------------------------
def test_what_the_dashboard_shows_is_exported(whole: RunFolder) -> None:
    """First of all: Ray drops the gauges of a run that is over when the next one sets its own."""
    expected = {exported_name(name) for name in (*STEP_METRICS, *OPTIONAL_METRICS, *LIVE_METRICS)}
    expressions = " ".join(target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ()))
    names = set(re.findall(r"\bray_\w+", expressions))
    of_cluster = {name for name in names if not name.startswith("ray_gvm_ray_")}
    expected |= of_cluster - {"ray_node_gpus_utilization", "ray_node_gram_used"}  # of machines with a GPU
    found = scraped_once(lambda found: expected <= found.keys())
    assert expected <= found.keys()
    (in_flight,) = (s for s in found["ray_gvm_ray_queue_samples_in_flight"] if s.labels["run"] == "whole")
    assert in_flight.value == 0  # all that were asked for came


def test_every_step_has_its_metrics(whole: RunFolder) -> None:
    rows = read_rows(whole.metrics)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    for row in rows:
        assert REQUIRED_KEYS < row.keys() <= METRICS.keys()
        assert None not in row.values()
        assert row["logprob_difference/mean"] < 1e-4
    assert [row["step"] for row in rows if "eval/accuracy" in row] == [1, 3]
    assert [row["cost/generated_samples"] for row in rows] == [48, 96, 144, 192]
    assert rows[-1]["cost/optimizer_updates"] == 8


def test_a_sink_gets_every_step_and_is_closed(whole: RunFolder) -> None:
    *lines, last = (whole.path / "lines.txt").read_text().splitlines()
    useful = [row["tokens/useful_fraction"] for row in read_rows(whole.metrics)]
    assert lines == [f"{step} {fraction} 8" for step, fraction in enumerate(useful)]
    assert last == "closed"


def test_a_resumed_run_is_the_same_run_of_wandb(resumed: RunFolder) -> None:
    run_id = (resumed.wandb / "run_id").read_text()
    starts = [path.name for path in resumed.wandb.glob("offline-run-*")]
    assert [name.rpartition("-")[2] for name in starts] == [run_id] * 2


def test_the_budget_is_spent_exactly_and_unevenly(whole: RunFolder) -> None:
    rows, histograms = read_rows(whole.metrics), read_rows(whole.histograms)
    assert [row["allocation/total"] for row in rows] == [48] * 4
    counts = [row["samples_per_prompt"] for row in histograms]
    assert [sum(step) for step in counts] == [48] * 4
    assert all(min(step) >= 3 for step in counts)  # the pilots
    assert any(max(step) > min(step) for step in counts)


def test_the_run_folder_is_complete(whole: RunFolder) -> None:
    assert json.loads(whole.config.read_text())["name"] == "whole"
    assert list(whole.tensorboard.glob("events.*"))
    assert sorted(path.name for path in whole.checkpoints.iterdir()) == ["step_000002", "step_000004"]
    assert sorted(path.name for path in whole.report.iterdir()) == ["accuracy.png", "allocation.png"]
    summary = json.loads(whole.summary.read_text())
    assert summary["num_steps"] == 4
    assert summary["versions"].keys() > {"python", "ray", "torch"}
    assert summary["base_accuracy"] == json.loads(whole.base_evaluation.read_text())["eval/accuracy"]
    assert summary["final_accuracy"] == read_rows(whole.metrics)[-1]["eval/accuracy"]


def test_the_summary_says_where_the_time_went(whole: RunFolder) -> None:
    summary = json.loads(whole.summary.read_text())
    phases = summary["phases_s"]
    done = {"planning", "sampling", "reward", "gradient_norms", "update", "sync"}
    assert phases.keys() == {*done, "prompt_states", "idle"}
    assert all(phases[name] > 0 for name in done)
    assert max(phases.values()) <= summary["steps_s"] <= sum(phases.values()) + 0.01  # no second is left out
    rows = read_rows(whole.metrics)
    assert sum(row["time/update_s"] for row in rows) == pytest.approx(phases["update"], abs=0.01)


def test_the_trained_model_loads_and_differs_from_its_start(whole: RunFolder) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(whole.model)
    model = AutoModelForCausalLM.from_pretrained(whole.model, dtype=torch.float32)
    logits = model(**tokenizer("1-2-0=", return_tensors="pt")).logits
    assert logits.shape == (1, 6, len(tokenizer))
    assert logits.isfinite().all()
    assert largest_change(whole.warm_start, whole.model) > 1e-4


def test_the_trained_model_can_be_evaluated(
    whole: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, output = tmp_path / "tiny.toml", tmp_path / "numbers.json"
    config.write_text(TINY_TOML)
    arguments = ["--config", str(config), "--num-samples", "4", "--output", str(output)]
    assert main(["eval", str(whole.model), *arguments, "--set", 'rewards.terms=[{type="math_verify"}]']) == 0
    numbers = json.loads(output.read_text())
    assert (numbers["num_prompts"], numbers["num_samples"], numbers["num_unscored"]) == (12, 4, 0)
    metrics = numbers["metrics"]
    assert metrics.keys() == {"avg@4", "pass@1", "pass@2", "pass@4", "maj@4"}
    assert all(0 <= value["low"] <= value["mean"] <= value["high"] <= 1 for value in metrics.values())
    assert metrics["pass@1"]["mean"] <= metrics["pass@2"]["mean"] <= metrics["pass@4"]["mean"]
    assert 0 < metrics["avg@4"]["mean"] < 1
    assert "| avg@4 |" in capsys.readouterr().out


def test_a_greedy_evaluation_takes_one_sample_of_each_prompt(whole: RunFolder, tmp_path: Path) -> None:
    config, output = tmp_path / "tiny.toml", tmp_path / "numbers.json"
    config.write_text(TINY_TOML)
    arguments = ["--config", str(config), "--temperature", "0", "--output", str(output)]
    assert main(["eval", str(whole.model), *arguments]) == 0
    numbers = json.loads(output.read_text())
    assert (numbers["num_prompts"], numbers["num_samples"]) == (12, 1)


# --- repeatability ----------------------------------------------------------------------------------------------------
def test_the_same_seed_gives_the_same_run_whether_resumed_or_not(whole: RunFolder, resumed: RunFolder) -> None:
    assert timeless_rows(resumed) == timeless_rows(whole)
    assert read_rows(resumed.histograms) == read_rows(whole.histograms)
    assert largest_change(resumed.model, whole.model) == 0


def test_a_resumed_run_reports_the_whole_of_it(whole: RunFolder, resumed: RunFolder) -> None:
    expected, summary = (json.loads(folder.summary.read_text()) for folder in (whole, resumed))
    for name in ("num_steps", "base_accuracy", "final_accuracy", "cost/generated_tokens", "cost/optimizer_updates"):
        assert summary[name] == expected[name]
    rows = read_rows(resumed.metrics)
    times = [row["time_s"] for row in rows]
    assert times == sorted(times)
    assert summary["steps_s"] == pytest.approx(sum(row["time/step_s"] for row in rows), abs=0.01)
    assert summary["phases_s"]["update"] == pytest.approx(sum(row["time/update_s"] for row in rows), abs=0.01)


def test_a_run_that_was_killed_before_its_export_is_exported(resumed: RunFolder, runs_dir: Path) -> None:
    folder = RunFolder(runs_dir / "unexported")
    shutil.copytree(resumed.path, folder.path)
    shutil.rmtree(folder.model)
    folder.summary.unlink()
    rows = folder.metrics.read_bytes()
    summary = train(tiny_config(runs_dir, name="unexported"), resume=True)
    assert largest_change(resumed.model, folder.model) == 0
    assert folder.metrics.read_bytes() == rows
    expected = json.loads(resumed.summary.read_text())
    assert {**summary, "name": "resumed"} == expected


@pytest.mark.parametrize("in_flight", ["keep", "finish"])
def test_sampling_ahead_stays_within_its_bound(whole: RunFolder, runs_dir: Path, in_flight: str) -> None:
    name = f"ahead-{in_flight}"
    changes = {"evaluation__num_generators": 1} if in_flight == "keep" else {}
    config = tiny_config(
        runs_dir, name=name, seed=1, num_steps=6, max_staleness=2, engine__in_flight=in_flight, **changes
    )
    train(config)
    evaluated = {row["step"]: row for row in read_steps(RunFolder(runs_dir / name).metrics) if "eval/accuracy" in row}
    assert {step: row["eval/policy_version"] for step, row in evaluated.items()} == {1: 2, 3: 4, 5: 6}
    rows = [row for row in timeless_rows(RunFolder(runs_dir / name)) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(6))
    assert 0 < max(row["staleness/max"] for row in rows) <= 2
    # The weights that sampled differ from those that learn, and the importance weights see it.
    assert max(row["logprob_difference/mean"] for row in rows) > 1e-4
    assert all(0 < row["importance/effective_sample_size"] <= 1 for row in rows)
    assert [row["cost/optimizer_updates"] for row in rows] == [2 * (step + 1) for step in range(6)]
    assert [row["cost/generated_samples"] for row in rows] == [48 * (step + 1) for step in range(6)]
    # Its first step is sampled under the first weights, whatever the bound: only the seed makes it another.
    first, other = rows[0], timeless_rows(whole)[0]
    assert [first["staleness/max"], other["staleness/max"]] == [0, 0]
    assert first["loss"] != other["loss"]


# --- what can't be resumed --------------------------------------------------------------------------------------------
def test_a_run_that_exists_is_neither_mixed_nor_lost(whole: RunFolder, runs_dir: Path) -> None:
    rows = read_rows(whole.metrics)
    with pytest.raises(ConfigError, match="--overwrite"):
        train(tiny_config(runs_dir, name="whole"))
    assert read_rows(whole.metrics) == rows


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"model__num_layers": 3}, "model.num_layers"), ({"seed": 4, "prompts_per_step": 4}, "seed, prompts_per_step")],
)
def test_resuming_with_other_settings_is_refused(
    whole: RunFolder, runs_dir: Path, changes: dict[str, int], named: str
) -> None:
    with pytest.raises(CheckpointError, match=f"other settings in {named};"):
        train(tiny_config(runs_dir, name="whole", **changes), resume=True)


def test_resuming_what_never_began_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no run in"):
        train(tiny_config(tmp_path), resume=True)


# --- no signal --------------------------------------------------------------------------------------------------------
def test_steps_without_a_reward_leave_the_weights_alone(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = runs_dir / "unanswerable.jsonl"
    data.write_text("".join(json.dumps({"problem": f"{i}+1=", "answer": "never"}) + "\n" for i in range(8)))
    source = {"type": "file", "path": str(data)}
    summary = train(
        tiny_config(
            runs_dir, name="unanswerable", num_steps=2, warm_start=None, prompts__train=source, prompts__eval=None
        )
    )
    before_the_steps = capsys.readouterr().out.partition("step 1/2")[0]
    assert "base accept rates of 8 training prompts, 48 samples: mean 0.000  |  0: 8  below .25: 0" in before_the_steps
    assert "the base solves none of these training prompts" in before_the_steps
    folder = RunFolder(runs_dir / "unanswerable")
    for row in read_rows(folder.metrics):
        assert row["reward/mean"] == 0
        assert row["groups/no_signal"] == 8
        assert row["num_updates"] == 0
        assert row["allocation/total"] == 48
        assert row["staleness/max"] == 0  # new versions come all the same
        assert row["logprob_difference/mean"] is None  # nothing was trained on
    assert largest_change(folder.base, folder.model) == 0
    assert summary["base_accuracy"] is None
    assert summary["cost/optimizer_updates"] == 0


# --- several turns, and an evaluation without a reward ----------------------------------------------------------------
@pytest.fixture(scope="module")
def two_turns(ray_cluster: None, runs_dir: Path) -> tuple[RunFolder, str]:
    """A run whose environment answers, and whose reward fails on every prompt of the evaluation; what it printed."""
    lines = [json.dumps({"problem": f"{i}-1=", "answer": "eval"}) for i in range(8)]
    (runs_dir / "eval.jsonl").write_text("\n".join(lines) + "\n")
    environment = {"type": "function", "path": "tests.turn_environments:second_chance", "max_turns": 2}
    config = tiny_config(
        runs_dir,
        name="turns",
        num_steps=2,
        environment={**environment, "observation_template": "{observation}"},
        sampling__max_tokens=30,
        model__max_position_embeddings=64,
        prompts__eval={"type": "file", "path": str(runs_dir / "eval.jsonl")},
        rewards__terms=[
            {"type": "exact"},
            {"type": "function", "path": "tests.faulty_rewards:raises_on_evaluation"},
        ],
    )
    output = io.StringIO()
    with redirect_stdout(output):
        train(config)
    return RunFolder(runs_dir / "turns"), output.getvalue()


def test_what_an_environment_answers_is_read_and_not_learned(two_turns: tuple[RunFolder, str]) -> None:
    """The learner's log-probs are the engine's: both read the answers, at the same places."""
    folder, _ = two_turns
    for row in read_rows(folder.metrics):
        assert row["turns/max"] == 2
        assert 1 < row["turns/mean"] < 2  # some are right at once
        assert row["logprob_difference/max"] < 1e-3
        assert row["cost/generated_samples"] == (row["step"] + 1) * 48
    texts = [json.loads(line) for line in folder.samples.read_text().splitlines()]
    best, worst = (next(text for text in texts if text["rank"] == rank) for rank in ("best", "worst"))
    assert best["reward"] == 1
    assert worst["completion"].count(worst["prompt"]) >= 1  # it was posed again


def test_a_reward_that_fails_on_every_evaluation_prompt_costs_the_accuracy_alone(
    two_turns: tuple[RunFolder, str],
) -> None:
    folder, output = two_turns
    assert output.count("no sample of the evaluation was scored") == 1
    assert "base held-out accuracy unknown" in output
    for text in (folder.summary.read_text(), folder.base_evaluation.read_text(), *folder.metrics.open()):
        json.loads(text, parse_constant=pytest.fail)
    summary = json.loads(folder.summary.read_text())
    assert (summary["base_accuracy"], summary["final_accuracy"]) == (None, None)
    assert summary["cost/optimizer_updates"] > 0
    assert [row.get("eval/accuracy", "none") for row in read_rows(folder.metrics)] == ["none", None]
    assert (folder.model / "config.json").is_file()
