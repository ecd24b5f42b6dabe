"""What is refused before an actor starts: sizes that don't fit."""

from pathlib import Path
from typing import Any

import pytest

from gvm_ray.actors.placement import check_home
from gvm_ray.config import RunConfig, parse_config
from gvm_ray.exceptions import ConfigError, DataError, ModelError, ResourceError
from gvm_ray.prepare import prepare
from gvm_ray.run import train


def run_config(**changes: Any) -> RunConfig:
    values = {
        "name": "prepare",
        "prompts_per_step": 4,
        "model": {"type": "scratch"},
        "prompts": {"train": {"type": "arithmetic", "size": 32}, "max_tokens": 32},
        "sampling": {"max_tokens": 16},
        "engine": {"type": "transformers"},
        "rewards": {"terms": [{"type": "exact"}]},
        **changes,
    }
    return parse_config(values)


def test_a_batch_larger_than_the_machine_is_refused(tmp_path: Path) -> None:
    config = run_config(learner={"micro_batch_tokens": 10**9})
    with pytest.raises(ResourceError, match=r"lower learner\.micro_batch_tokens=1000000000"):
        prepare(config, run_dir=tmp_path)
    prepare(config, run_dir=tmp_path, learners=False)  # they alone have such batches


def test_prepare_gives_prompts_and_base_model(tmp_path: Path) -> None:
    prepared = prepare(run_config(), run_dir=tmp_path)
    assert len(prepared.prompts.train) == 32
    assert prepared.engine_kind == "transformers"
    assert prepared.max_model_len == 48
    assert (Path(prepared.base.path) / "model.safetensors").is_file()


def test_more_prompts_a_step_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="prompts_per_step=33 needs 33 training prompts and 32"):
        prepare(run_config(prompts_per_step=33), run_dir=tmp_path)
    assert len(prepare(run_config(prompts_per_step=33), run_dir=tmp_path, learners=False).prompts.train) == 32


def test_a_context_shorter_than_prompt_and_response_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="context of 512"):
        prepare(run_config(sampling={"max_tokens": 500}), run_dir=tmp_path)


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="nowhere"):
        prepare(run_config(model={"type": "pretrained", "path": missing}), run_dir=tmp_path)


def test_a_wrong_setting_does_not_cost_the_run_it_would_replace(tmp_path: Path) -> None:
    from gvm_ray.run import train

    begun = tmp_path / "prepare" / "metrics.jsonl"
    begun.parent.mkdir()
    begun.write_text("{}\n")
    config = run_config(runs_dir=str(tmp_path), prompts_per_step=33)
    with pytest.raises(DataError, match="prompts_per_step=33"):
        train(config, overwrite=True)
    assert begun.read_text() == "{}\n"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("models/Qwen2.5-0.5", "there is no folder 'models/Qwen2.5-0.5'; did you mean 'models/Qwen2.5-0.5B'"),
        ("./models/qwen2.5-0.5b/", r"did you mean 'models/Qwen2.5-0.5B'"),
        ("./qwen", "there is no folder './qwen'; write model.path"),
        ("~/models/x", "there is no folder '{home}/models/x'"),
        ("nowhere/else/x", "there is no folder 'nowhere/else/x', nor is there a folder '.*nowhere/else'; write"),
        ("models/weights.gguf", "'models/weights.gguf' is a file, not a model's folder; did you mean 'models'"),
    ],
)
def test_a_misspelt_model_folder_is_told_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, expected: str
) -> None:
    (tmp_path / "models" / "Qwen2.5-0.5B").mkdir(parents=True)
    (tmp_path / "models" / "weights.gguf").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(ModelError, match=expected.format(home=tmp_path / "home")) as error:
        prepare(run_config(model={"type": "pretrained", "path": path}), run_dir=tmp_path / "run")
    assert "connect" not in str(error.value)


def test_a_model_that_only_a_hub_can_have_is_told_as_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ModelError, match=r"can be loaded from 'owner/name' .*hf download owner/name --local-dir FOLDER"
    ):
        prepare(run_config(model={"type": "pretrained", "path": "owner/name"}), run_dir=tmp_path / "run")


def test_a_model_below_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    base = prepare(run_config(), run_dir=tmp_path).base.path
    config = run_config(model={"type": "pretrained", "path": f"~/{Path(base).name}"})
    assert prepare(config, run_dir=tmp_path / "run").base.path == base


@pytest.mark.parametrize("obstacle", ["/proc/nope", "file"])
def test_a_home_folder_that_cannot_be_written_is_named_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    home = tmp_path / obstacle  # "/proc/nope" stands alone
    if obstacle == "file":
        home.touch()
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "GVM_RAY_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    config = run_config(runs_dir=str(tmp_path / "runs"), warm_start={})
    with pytest.raises(ResourceError, match=f"the home folder '{home}' can't be written .*set HOME to a folder"):
        train(config)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ConfigError, match=r"the cache of warm starts .* can't be written .*; set GVM_RAY_CACHE"):
        prepare(config, run_dir=tmp_path / "run")
    monkeypatch.setenv("GVM_RAY_CACHE", str(tmp_path / "cache"))
    assert prepare(config, run_dir=tmp_path / "run").base.warm_start_folder is not None


def test_a_home_folder_is_not_needed_where_a_cluster_has_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/proc/nope")
    check_home(run_config(cluster={"address": "10.0.0.1:6379"}))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    check_home(run_config())
