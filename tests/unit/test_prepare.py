"""What is refused before an actor starts: sizes that don't fit."""

from pathlib import Path
from typing import Any

import pytest

from gvm_ray.config import RunConfig, parse_config
from gvm_ray.exceptions import ConfigError, DataError, ModelError, ResourceError
from gvm_ray.prepare import prepare


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
