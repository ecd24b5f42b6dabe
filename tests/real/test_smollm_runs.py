"""A real model in whole runs: an evaluation by the command line, and a run that was interrupted and resumed."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from gvm_ray.cli import main
from gvm_ray.config import load_config
from gvm_ray.reporting import RunFolder, read_rows
from gvm_ray.run import train
from tests.real.word_problems import PROBLEMS
from tests.tiny_runs import largest_change, timeless_rows

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

CONFIG = """\
name = "smollm"
runs_dir = "{folder}/runs"
num_steps = 2
prompts_per_step = 2
samples_per_prompt = 4
model = {{ type = "pretrained", path = "{model}" }}
sampling = {{ max_tokens = 12 }}
engine = {{ type = "transformers", max_num_seqs = 16 }}
allocator = {{ type = "uniform" }}
algorithm = {{ type = "grpo" }}
learner = {{ micro_batch_tokens = 1024 }}
checkpoint = {{ every_steps = 1 }}
reporting = {{ progress = false }}

[prompts]
max_tokens = 128
template = {{ type = "chat", system_prompt = "qwen-boxed" }}
train = {{ type = "arithmetic" }}
eval = {{ type = "file", path = "{folder}/problems.jsonl" }}
"""


@pytest.fixture(scope="module")
def config(folder: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("runs")
    rows = [json.dumps({"problem": problem, "answer": answer}) for problem, answer in PROBLEMS]
    (place / "problems.jsonl").write_text("\n".join(rows) + "\n")
    (place / "smollm.toml").write_text(CONFIG.format(folder=place, model=folder))
    yield place / "smollm.toml"
    shutil.rmtree(place)  # gigabytes


def test_an_evaluation_by_the_command_line(folder: str, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = config.parent / "numbers.json"
    arguments = ["--config", str(config), "--num-samples", "1", "--max-tokens", "40", "--output", str(output)]
    assert main(["eval", folder, *arguments]) == 0
    numbers = json.loads(output.read_text())
    assert (numbers["num_prompts"], numbers["num_samples"], numbers["num_unscored"]) == (16, 1, 0)
    accuracy = numbers["metrics"]["avg@1"]
    assert 0 <= accuracy["low"] <= accuracy["mean"] <= accuracy["high"] <= 1
    assert "| avg@1 |" in capsys.readouterr().out


def test_a_resumed_run_is_the_run_without_a_break(folder: str, config: Path) -> None:
    settings = load_config(
        config,
        [
            f'prompts.train={{type="file", path="{config.parent}/problems.jsonl"}}',
            "prompts.eval=none",
            'rewards.terms=[{type="function", path="tests.real.word_problems:even_length"}]',
        ],
    )
    train(settings)
    whole = RunFolder(config.parent / "runs" / "smollm")
    assert [row["num_updates"] for row in read_rows(whole.metrics)] == [1, 1]
    assert all(row["logprob_difference/max"] < 1e-3 for row in read_rows(whole.metrics))

    broken = RunFolder(whole.path.with_name("broken"))
    shutil.copytree(whole.path, broken.path, ignore=shutil.ignore_patterns("step_000002", "model", "summary.json"))
    train(settings.model_copy(update={"name": "broken"}), resume=True)
    assert timeless_rows(broken) == timeless_rows(whole)
    assert largest_change(broken.model, whole.model) == 0
    assert largest_change(Path(folder), whole.model) > 0
