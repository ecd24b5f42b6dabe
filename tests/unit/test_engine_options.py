"""Options of `[engine.vllm]`: which runs may have them, and what vLLM makes of them."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import build_tiny_model, changed_weights, make_prompt, reference_logprobs

import gvm_ray.engines as engines
from gvm_ray.config import RunConfig, parse_config
from gvm_ray.config.engine import EngineConfig, VLLMConfig
from gvm_ray.engines import create_engine, generate, resolve_engine
from gvm_ray.exceptions import ConfigError, ModelError
from gvm_ray.types import ModelSpec, SamplingParameters
from tests.builders import sample_request


def run_with(options: dict[str, Any], *, level: str = "token", **engine: Any) -> RunConfig:
    return parse_config(
        {
            "name": "t",
            "model": {"type": "scratch"},
            "prompts": {"train": {"type": "arithmetic"}},
            "engine": {"vllm": options, **engine},
            "algorithm": {"type": "grpo", "importance": {"level": level}},
        }
    )


def test_parts_of_a_model_need_gpus_and_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError, match=r"tensor_parallel_size=2 .* gpus_per_generator=0 .*; write gpus_per_generator=2"
    ):
        run_with({}, tensor_parallel_size=2)
    with pytest.raises(
        ConfigError, match="tensor_parallel_size=2 needs vLLM, but type='transformers'; write type='vllm'"
    ):
        run_with({}, type="transformers", tensor_parallel_size=2, gpus_per_generator=2)
    engine = run_with({}, tensor_parallel_size=2, gpus_per_generator=2).engine
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="tensor_parallel_size=2 needs vLLM, which is not installed"):
        resolve_engine(engine)


# --- which runs may have them -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "engine"),
    [
        ({"kv_cache_dtype": "fp8"}, {}),
        ({"quantization": "fp8"}, {}),
        ({"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}}, {"gpus_per_generator": 1}),
    ],
)
def test_another_distribution_needs_the_importance_correction(options: dict[str, Any], engine: dict[str, Any]) -> None:
    (name,) = options
    config = run_with(options, **engine)
    assert config.engine.vllm.given == options
    assert config.engine.vllm.changing_given == [f"engine.vllm.{name}={options[name]!r}"]
    with pytest.raises(ConfigError, match=rf"engine\.vllm\.{name}=.*write algorithm\.importance\.level='token'"):
        run_with(options, level="off", **engine)


def test_options_for_speed_alone_need_none() -> None:
    config = run_with({"block_size": 32, "performance_mode": "throughput"}, level="off")
    assert config.engine.vllm.changing_given == []


def test_the_list_is_closed() -> None:
    with pytest.raises(
        ConfigError, match=r"engine\.vllm\.kv_cache_type: unknown setting; did you mean 'kv_cache_dtype'"
    ):
        run_with({"kv_cache_type": "fp8"})
    with pytest.raises(ConfigError, match=r"engine\.vllm\.quantization"):
        run_with({"quantization": "awq"})  # of files that are quantized: trained weights can't be put there


def test_speculative_decoding_is_refused_on_a_cpu() -> None:
    with pytest.raises(ConfigError, match=r"speculative_config, and on a CPU .*write gpus_per_generator=1"):
        run_with({"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}})


@pytest.mark.parametrize("kind", ["transformers", "auto"])
def test_options_without_vllm_are_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"\[engine\.vllm\] has block_size, but .* remove them"):
        resolve_engine(run_with({"block_size": 32}, type=kind).engine)
    assert resolve_engine(run_with({}, type=kind).engine) == "transformers"


# --- in vLLM ----------------------------------------------------------------------------------------------------------
def test_every_option_is_one_of_the_installed_vllm() -> None:
    vllm = pytest.importorskip("vllm")
    names = {field.name for field in fields(vllm.EngineArgs)}
    assert VLLMConfig.model_fields.keys() <= names
    assert set(VLLMConfig.changing) <= VLLMConfig.model_fields.keys()


def test_a_vllm_without_the_option_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    import gvm_ray.engines.vllm as module

    monkeypatch.setattr(module, "fields", lambda arguments: [f for f in fields(arguments) if f.name != "block_size"])
    with pytest.raises(ConfigError, match=rf"the installed vLLM {module.version} has no block_size; remove it"):
        engine_with(tmp_path, block_size=32)


def test_a_combination_that_vllm_refuses_is_shown(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    with pytest.raises(
        ModelError, match=r"(?s)vLLM can't run .* with \[engine.vllm\] \{'quantization': 'fp8'\}: .*float32"
    ):
        engine_with(tmp_path, quantization="fp8")


def engine_with(folder: Path, **options: Any) -> Any:
    path = build_tiny_model(folder, tied=True)
    config = EngineConfig(type="vllm", kv_cache_gib=0.05, vllm=VLLMConfig(**options))
    return create_engine("vllm", ModelSpec(path=path, max_model_len=64), config=config)


def test_a_smaller_cache_changes_the_log_probs_by_as_much_as_is_logged(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    engine = engine_with(tmp_path, kv_cache_dtype="fp8", block_size=32, max_num_batched_tokens=16384)
    assert engine.llm_engine.vllm_config.cache_config.cache_dtype == "fp8"
    assert engine.llm_engine.vllm_config.cache_config.block_size == 32
    assert engine.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens == 16384
    weights = changed_weights(str(tmp_path), seed=1)
    engine.load_weights(1, weights.items())
    request = sample_request(make_prompt("1+1="), num_samples=4)
    (samples,) = generate(engine, [request], SamplingParameters(temperature=0.8, max_tokens=24))
    engine.close()
    differences = [
        np.abs(
            each.logprobs
            - reference_logprobs(str(tmp_path), weights, prompt=request.prompt, completion=each, temperature=0.8)
        ).mean()
        for each in samples
    ]
    assert 1e-4 < np.mean(differences) < 0.1  # 1e-7 without the option
