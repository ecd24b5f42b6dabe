"""Models on benchmark files by the command line: interrupted, gone on with, and compared."""

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny_models import build_tiny_model

from gvm_ray.benchmarks import evaluate
from gvm_ray.cli import main

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

ROWS = {
    "math500": [
        {"problem": f"{n}+1=", "solution": "", "answer": str(n + 1), "subject": "Algebra", "level": n % 2}
        for n in range(5)
    ],
    "amc23": [{"id": n, "problem": f"{n}-1=", "answer": float(n - 1), "url": ""} for n in range(3)],
}


@pytest.fixture(scope="module")
def benchmark_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    for name, rows in ROWS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    return [build_tiny_model(folder / name / "model", tied=name == "tied") for name in ("tied", "untied")]


@contextmanager
def interrupted_after_a_piece() -> Iterator[None]:
    """Ctrl-C comes once the first piece is in its file."""

    def interrupt(_: object) -> str:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.Work, "__str__", interrupt)
        yield


def assert_samples_are_whole(output: Path) -> None:
    """Every prompt has its two samples, once."""
    for model in ("tied", "untied"):
        for name, rows in ROWS.items():
            samples = [json.loads(line) for line in (output / model / name / "samples.jsonl").open()]
            assert len({(row["prompt_id"], row["sample_index"]) for row in samples}) == len(samples) == 2 * len(rows)
            assert all(row["reward"] in (0.0, 1.0) and 1 <= row["num_tokens"] <= 8 for row in samples)


def assert_results_are_complete(results: dict[str, Any], output: Path) -> None:
    """The files of the results, and what is in them."""
    assert sorted(path.name for path in output.iterdir()) == [
        "results.csv",
        "results.json",
        "results.md",
        "results.png",
        "tied",
        "untied",
    ]
    assert [model["name"] for model in results["models"]] == ["tied", "untied"]
    overall = results["models"][0]["benchmarks"]["math500"]["overall"]
    assert (overall["num_prompts"], overall["num_samples"], overall["num_unscored"]) == (5, 2, 0)
    assert overall["metrics"].keys() == {"avg@2", "pass@1", "pass@2", "maj@2"}
    assert results["models"][0]["benchmarks"]["math500"]["levels"].keys() == {"0", "1"}
    assert results["differences"]["untied"].keys() == {"math500", "amc23", "average of 2"}
    with (output / "results.csv").open(newline="") as file:
        assert {row["model"] for row in csv.DictReader(file)} == {"tied", "untied"}


def test_an_interrupted_evaluation_goes_on_and_compares_the_models(
    models: list[str],
    benchmark_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(evaluate, "PROMPTS_PER_PIECE", 2)
    output = tmp_path / "evaluation"
    command = ["eval", *models, "--benchmarks", "math500,amc23", "--benchmark-dir", str(benchmark_dir)]
    command += ["--num-samples", "2", "--max-tokens", "8", "--prompt-template", "plain", "--output", str(output)]
    command += ["--set", "prompts.max_tokens=16", "--set", "engine.type=transformers"]
    command += ["--set", "engine.kv_cache_gib=0.05", "--set", "rewards.cpus_per_actor=0.25"]

    with interrupted_after_a_piece():
        assert main(command) == 130
    kept = (output / "tied" / "math500" / "samples.jsonl").read_text()
    assert 0 < len(kept.splitlines()) < 10
    assert not (output / "results.json").exists()

    assert main([*command, "--temperature", "0.5"]) == 2
    assert "temperature was 1.0 and is 0.5" in capsys.readouterr().err
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "untied on amc23: 3 of 3 prompts" in printed
    assert "| model | math500 | amc23 | average of 2 |" in printed

    assert (output / "tied" / "math500" / "samples.jsonl").read_text().startswith(kept)
    assert_samples_are_whole(output)
    results = json.loads((output / "results.json").read_text())
    assert_results_are_complete(results, output)

    before = {path: path.read_bytes() for path in output.rglob("*.jsonl")}
    monkeypatch.setattr(evaluate, "start_pools", None)  # nothing is left to sample
    assert main(command) == 0
    assert {path: path.read_bytes() for path in output.rglob("*.jsonl")} == before
    assert json.loads((output / "results.json").read_text()) == results
