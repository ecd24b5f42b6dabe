"""The parts in configs/word_problems: each combination is a run, and is planned; methods differ in nothing else."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from gvm_ray.cli import main
from gvm_ray.config import RunConfig, load_config
from tests import model_shapes

FOLDER = Path(__file__).parents[2] / "configs" / "word_problems"
METHODS = ("grpo", "raft++", "gvm_grpo", "gvm_pool")
SHAPES: dict[str, dict[str, Any]] = {
    "base": {  # SmolLM2-135M-Instruct
        "model_type": "llama",
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "gsm8k": model_shapes.SHAPES["qwen2.5-math-1.5b"],  # as Qwen2.5-1.5B-Instruct, the largest that it is for
}


def files(*names: str) -> list[str]:
    return [str(FOLDER / f"{name}.toml") for name in names]


def load(*names: str) -> RunConfig:
    return load_config(files(*names))


def test_every_file_is_a_part_of_some_run() -> None:
    assert {path.stem for path in FOLDER.glob("*.toml")} == {*SHAPES, *METHODS, "1gpu"}


@pytest.mark.parametrize(("data", "method"), [*itertools.product(SHAPES, METHODS)])
def test_dry_run_on_a_gpu(
    data: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # without nvidia-smi: planned against 80 GiB
    (tmp_path / "config.json").write_text(json.dumps(SHAPES[data]))
    assert main(["train", *files(data, method, "1gpu"), "--dry-run", "--set", f"model.path={tmp_path}"]) == 0
    output = capsys.readouterr()
    assert f"/{method}\n" in output.out
    assert "generator cache" in output.out
    assert "needs about" not in output.err


@pytest.mark.parametrize("data", SHAPES)
def test_methods_differ_in_allocator_and_algorithm_alone(data: str) -> None:
    shared = [
        load(data, method).model_dump(mode="json", exclude={"name", "allocator", "algorithm"}) for method in METHODS
    ]
    assert all(each == shared[0] for each in shared)
    assert {load(data, method).algorithm.updates_per_batch for method in METHODS} == {1}


def test_no_file_names_a_place_on_one_machine() -> None:
    for path in FOLDER.iterdir():
        assert not [
            word for word in path.read_text().split() if word.strip("'\"`(").startswith(("/root", "/work", "/home"))
        ]
