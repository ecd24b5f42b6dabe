"""GPUs, data and a place for a run that aren't there: said before anything heavy is loaded, with the setting."""

from pathlib import Path
from typing import Any

import pytest

from gvm_ray.actors.cluster import check_machine
from gvm_ray.config import RunConfig, parse_config
from gvm_ray.exceptions import ConfigError, DataError, ResourceError
from gvm_ray.prepare import prepare
from gvm_ray.run import evaluate, train

NO_MODEL = "/no/model"  # loading it would be refused, too


def run_config(**changes: Any) -> RunConfig:
    values = {
        "name": "t",
        "model": {"type": "pretrained", "path": NO_MODEL},
        "prompts": {"train": {"type": "arithmetic", "size": 32}},
        "rewards": {"terms": [{"type": "exact"}]},
        **changes,
    }
    return parse_config(values)


@pytest.fixture(autouse=True)
def no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without GPUs, a home folder that can be written, and no cluster elsewhere."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": {"gpus_per_generator": 1}}, r"needs 1 GPUs \(1 x 1 for a generator\) and a local cluster on this"),
        ({"engine": {"gpus_per_generator": 2, "tensor_parallel_size": 2}}, "has 0; lower engine.gpus_per_generator"),
        ({"cluster": {"num_cpus": 1}}, r"CPUs \(.* and a local cluster on this machine has 1; lower engine\.cpus_per_"),
        ({"learner": {"gpus_per_worker": 1, "num_workers": 2}}, r"needs 2 GPUs \(2 x 1 for a learner rank\)"),
    ],
)
def test_a_machine_that_is_too_small(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    config = run_config(runs_dir=str(tmp_path / "runs"), **changes)
    with pytest.raises(ResourceError, match=message):
        train(config)
    assert not (tmp_path / "runs").exists()
    if "learner" in changes:
        check_machine(config, learners=False)
    else:
        with pytest.raises(ResourceError, match="a local cluster on this machine has"):
            evaluate(NO_MODEL, config)
    check_machine(run_config(**changes | {"cluster": {"address": "10.0.0.1:6379"}}))  # it is asked itself


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        (
            {"train": {"type": "file", "path": "/no/a.csv"}},
            DataError,
            r"prompts\.train\.path: data file '/no/a\.csv' does",
        ),
        (
            {"eval": {"type": "file", "path": "/no/a.csv"}},
            DataError,
            r"prompts\.eval\.path: data file '/no/a\.csv' doesn",
        ),
        ({"eval": {"type": "file", "path": __file__}}, DataError, r"prompts\.eval\.path: .* is neither \.jsonl nor "),
        (
            {"train": {"type": "huggingface", "path": "./no"}},
            DataError,
            r"prompts\.train\.path: there is no folder '\./no'",
        ),
        (
            {"eval": {"type": "function", "path": "no:rows"}},
            ConfigError,
            r"prompts\.eval\.path: 'no:rows' can't be imp",
        ),
    ],
)
def test_missing_data(tmp_path: Path, prompts: dict[str, Any], error: type[Exception], message: str) -> None:
    prompts = {"train": {"type": "arithmetic", "size": 32}, "template": {"type": "chat"}, **prompts}
    config = run_config(runs_dir=str(tmp_path / "runs"), prompts=prompts)
    with pytest.raises(error, match=message):
        prepare(config, run_dir=tmp_path)
    with pytest.raises(error, match=message):
        train(config)
    with pytest.raises(error, match=message):
        evaluate(NO_MODEL, config)
    assert not (tmp_path / "runs").exists()


def test_missing_demonstrations(tmp_path: Path) -> None:
    source = {"type": "file", "path": str(tmp_path / "a.csv"), "rationale_field": "r"}
    with pytest.raises(DataError, match=r"warm_start\.source\.path: data file .*a\.csv' doesn't exist"):
        prepare(run_config(warm_start={"source": source}), run_dir=tmp_path)


def test_a_place_for_runs_that_cannot_be_written() -> None:
    with pytest.raises(ResourceError, match=r"'/proc/x/t' can't be written .*; make room there, or .*runs_dir=FOLDER"):
        train(run_config(runs_dir="/proc/x"))
