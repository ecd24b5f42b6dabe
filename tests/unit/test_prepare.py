"""What is refused before an actor starts: sizes that don't fit."""

from pathlib import Path
from typing import Any

import pytest

from gvm_ray.config import RunConfig, parse_config
from gvm_ray.exceptions import ConfigError, DataError, ModelError, ResourceError
from gvm_ray.functional.memory import ModelSizes, generator_bytes, learner_bytes
from gvm_ray.prepare import check_memory, find_base_model, model_sizes, prepare
from gvm_ray.pretrained import load_model_config


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


def test_learner_memory_by_hand() -> None:
    sizes = ModelSizes(num_parameters=1000, hidden_size=10, num_layers=2, vocab_size=50)
    states = 1000 * 16
    activations = 100 * 10 * 2 * 17 * 4
    logits = 3 * 20 * 50 * 4
    arguments: dict[str, Any] = {"micro_batch_tokens": 100, "chunk_tokens": 20, "value_bytes": 4}
    assert learner_bytes(sizes, has_reference=False, **arguments) == states + activations + logits
    assert learner_bytes(sizes, has_reference=True, **arguments) == states + 4000 + activations + logits
    assert generator_bytes(sizes, value_bytes=2, kv_cache_bytes=7) == 4007


def test_sizes_of_the_scratch_model(tmp_path: Path) -> None:
    base = find_base_model(run_config(), run_dir=tmp_path)
    sizes = model_sizes(load_model_config(base.path))
    # 99 x 64 tied embeddings; a block: q 64x64+64, k and v 64x32+32 each, o 64x64, three 64x160, two norms; a last norm
    block = 64 * 64 + 64 + 2 * (64 * 32 + 32) + 64 * 64 + 3 * 64 * 160 + 2 * 64
    assert sizes.num_parameters == 99 * 64 + 2 * block + 64


def test_a_batch_larger_than_the_machine_names_the_setting(tmp_path: Path) -> None:
    config = run_config(learner={"micro_batch_tokens": 10**9})
    sizes = model_sizes(load_model_config(find_base_model(config, run_dir=tmp_path).path))
    with pytest.raises(ResourceError, match=r"learner\.micro_batch_tokens=1000000000"):
        check_memory(config, sizes, available_bytes=16 * 2**30)
    check_memory(run_config(), sizes, available_bytes=16 * 2**30)
    check_memory(config, sizes, available_bytes=16 * 2**30, learners=False)


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
