"""The command line up to the cluster: one clear error and exit code 2 for each wrong request; 1 where a run fails."""

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from ray.util import list_named_actors
from tiny_runs import TINY_TOML, tiny_config

from gvm_ray.actors import cluster
from gvm_ray.cli import main
from gvm_ray.exceptions import ResourceError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

Refusal = Callable[..., str]


@pytest.fixture
def refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """The only error of a tiny run with these overrides, which ends with exit code 2 and without a run."""

    def run(*overrides: str) -> str:
        config = tmp_path / "tiny.toml"
        config.write_text(TINY_TOML)
        settings = [argument for override in overrides for argument in ("--set", override)]
        assert main(["train", str(config), "--set", f"runs_dir={tmp_path}", *settings]) == 2
        assert not (tmp_path / "tiny" / "metrics.jsonl").exists()
        error = capsys.readouterr().err
        assert error.count("error: ") == 1
        assert "Traceback" not in error
        return error

    return run


def file_source(path: Path, *rows: object) -> list[str]:
    """Overrides that train on a JSONL file of these rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["warm_start=none", "prompts.train.type=file", f"prompts.train.path={path}"]


# --- wrong requests ---------------------------------------------------------------------------------------------------
def test_a_missing_model_folder(refusal: Refusal, tmp_path: Path) -> None:
    error = refusal("model.type=pretrained", f"model.path={tmp_path / 'no-model'}")
    assert "no-model" in error


def test_a_model_to_evaluate_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "tiny.toml"
    config.write_text(TINY_TOML)
    assert main(["eval", str(tmp_path / "no-model"), "--config", str(config)]) == 2
    assert "no-model" in capsys.readouterr().err


def test_a_missing_data_file(refusal: Refusal, tmp_path: Path) -> None:
    overrides = file_source(tmp_path / "data.jsonl")
    (tmp_path / "data.jsonl").unlink()
    assert f"data file '{tmp_path / 'data.jsonl'}' doesn't exist" in refusal(*overrides)


def test_a_bad_row(refusal: Refusal, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    good = {"problem": "1+1=", "answer": "2"}
    assert f"{path}, line 2: no field 'answer'" in refusal(*file_source(path, good, {"problem": "1+2="}))
    error = refusal(*file_source(path, good, good, {"problem": 3, "answer": "3"}))
    assert f"{path}, line 3: field 'problem' is int 3" in error


def test_an_empty_split(refusal: Refusal, tmp_path: Path) -> None:
    assert "has no rows" in refusal(*file_source(tmp_path / "data.jsonl"))


def test_a_split_without_a_usable_prompt(refusal: Refusal) -> None:
    error = refusal("prompts.max_tokens=2")
    assert "has no prompt left" in error
    assert "prompts.max_tokens (now 2)" in error


def test_more_prompts_a_step_than_there_are(refusal: Refusal) -> None:
    error = refusal("prompts_per_step=49")
    assert "prompts_per_step=49" in error
    assert "48 are left" in error


def test_a_context_that_is_too_short(refusal: Refusal) -> None:
    assert "prompts.max_tokens + sampling.max_tokens = 216" in refusal("sampling.max_tokens=200")


def test_a_reward_that_can_not_be_imported(refusal: Refusal) -> None:
    assert "no_such_module" in refusal('rewards.terms=[{type="function", path="no_such_module:f"}]')


def test_more_cpus_than_the_cluster_has(refusal: Refusal) -> None:
    error = refusal("engine.num_generators=40")
    assert (
        "the run needs 41.25 CPUs (1 x 1 for a learner rank, 40 x 1 for a generator, 1 x 0.25 for a reward actor)"
        in error
    )
    assert "the cluster has 32" in error


def test_more_gpus_than_the_cluster_has(refusal: Refusal) -> None:
    error = refusal("engine={gpus_per_generator=8, tensor_parallel_size=8}")
    assert "the run needs 8 GPUs (1 x 8 for a generator)" in error


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:{port}", "auto"])
def test_a_cluster_that_does_not_answer(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_cluster(**_: object) -> None:
        raise ConnectionError("no cluster found")

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)  # this session's own cluster is not meant
    monkeypatch.setattr(cluster.ray, "init", no_cluster)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and doesn't listen
        address = address.format(port=unused.getsockname()[1])
        with (
            pytest.raises(ResourceError, match=f"no Ray cluster answers at '{address}'"),
            cluster.connected(tiny_config(tmp_path, cluster={"address": address})),
        ):
            pass


def run_actors() -> list[dict[str, str]]:
    """Named actors of this package's runs, and none of Ray's own."""
    actors = list_named_actors(all_namespaces=True)
    return [actor for actor in actors if actor["namespace"].startswith("gvm_ray")]


# --- a run that fails -------------------------------------------------------------------------------------------------
def test_a_run_that_takes_too_long_ends_and_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "tiny.toml"
    config.write_text(TINY_TOML)
    overrides = [
        f"runs_dir={tmp_path}",
        "warm_start=none",
        "deadlines.sample_s=3",
        "faults.max_failures=1",
        "rewards.timeout_s=100",
        'rewards.terms=[{type="function", path="tests.faulty_rewards:slow"}]',
    ]
    free = ray.available_resources()["CPU"]
    named = run_actors()
    assert main(["train", str(config), *(argument for each in overrides for argument in ("--set", each))]) == 1
    error = capsys.readouterr().err
    assert "failed: 2 failures within 3600 s, more than faults.max_failures=1: reward-0 2 times" in error
    assert "the last one: scoring by reward-0 took longer than 3 s" in error
    assert "--set deadlines.sample_s=6" in error
    assert run_actors() == named
    for _ in range(100):  # the cluster counts what is free a little later
        if ray.available_resources().get("CPU") == free:
            break
        time.sleep(0.1)
    assert ray.available_resources().get("CPU") == free
