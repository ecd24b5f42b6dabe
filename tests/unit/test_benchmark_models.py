"""What models are called in an evaluation, and what of a run's settings their evaluation takes."""

from pathlib import Path

import pytest
from tiny_runs import tiny_config

from gvm_ray.benchmarks.evaluate import evaluate_benchmarks, named_models
from gvm_ray.exceptions import ConfigError, DataError
from gvm_ray.run import evaluation_config


def test_models_have_the_names_of_their_runs_or_given_ones() -> None:
    models = ["runs/quickstart/model", "Qwen/Qwen2.5-Math-1.5B", "base=checkpoints/step=3", "checkpoints/other/"]
    assert named_models(models) == {
        "quickstart": "runs/quickstart/model",
        "Qwen2.5-Math-1.5B": "Qwen/Qwen2.5-Math-1.5B",
        "base": "checkpoints/step=3",
        "other": "checkpoints/other/",
    }


def test_names_that_are_no_folders_are_refused() -> None:
    with pytest.raises(ConfigError, match="two models are called 'a'; name them: first=x/a second=y/a/model"):
        named_models(["x/a", "y/a/model"])
    with pytest.raises(ConfigError, match="'x/a b' gives no name for a folder; write NAME=MODEL"):
        named_models(["x/a b"])
    with pytest.raises(ConfigError, match="no model to evaluate"):
        evaluate_benchmarks([], ["math500"])


def test_a_missing_benchmark_is_found_before_the_model_is_looked_at(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'math500' is not in"):
        evaluate_benchmarks([str(tmp_path / "no-model")], ["math500"], benchmark_dir=tmp_path, output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_keeps_sampling_and_rewards_and_drops_the_training(tmp_path: Path) -> None:
    run = tiny_config(tmp_path, evaluation__temperature=0.7)
    changes = {
        "evaluation": {"num_samples": 4},
        "prompts": {"train": {"type": "file", "path": "own.jsonl"}, "eval": None},
    }
    config = evaluation_config(run, "some/model", changes)
    assert config.model.model_dump()["path"] == "some/model"
    assert config.warm_start is None
    assert (config.evaluation.num_samples, config.evaluation.temperature) == (4, 0.7)
    assert config.prompts.train.model_dump()["path"] == "own.jsonl"
    assert config.prompts.eval is None
    assert (config.rewards, config.engine, config.sampling) == (run.rewards, run.engine, run.sampling)
