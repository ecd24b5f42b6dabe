"""Engines that sample responses: vLLM, and Hugging Face transformers if vLLM is not installed."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal

from gvm_ray.config.engine import EngineConfig
from gvm_ray.exceptions import ConfigError
from gvm_ray.protocols import Engine
from gvm_ray.settings import create_from_path
from gvm_ray.types import Completion, ModelSpec, SampleRequest, SamplingParameters

EngineKind = Literal["vllm", "transformers", "custom"]

__all__ = ["EngineKind", "create_engine", "generate", "resolve_engine"]


def resolve_engine(config: EngineConfig) -> EngineKind:
    """Resolve `engine.type` on this machine: `auto` means vLLM if it is installed. Imports nothing.

    Raises:
        ConfigError: vLLM is requested or needed, but is not installed.
    """
    spec = find_spec("vllm")
    installed = spec is not None and spec.origin is not None  # not just a folder of that name
    match config.type:
        case "auto" | "vllm" if installed:
            return "vllm"
        case "vllm":
            raise ConfigError(
                "engine.type='vllm', but vLLM is not installed; run pip install 'gvm-ray[cpu]' (or 'gvm-ray[gpu]' on a "
                "machine with CUDA), or write engine.type='transformers'"
            )
        case "auto" if config.vllm.given:
            raise ConfigError(
                f"[engine.vllm] has {', '.join(config.vllm.given)}, but vLLM is not installed; run pip install "
                "'gvm-ray[cpu]' (or 'gvm-ray[gpu]' on a machine with CUDA), or remove them"
            )
        case "auto" if config.tensor_parallel_size > 1:
            raise ConfigError(
                f"engine.tensor_parallel_size={config.tensor_parallel_size} needs vLLM, which is not installed; run "
                "pip install 'gvm-ray[gpu]', or write engine.tensor_parallel_size=1"
            )
        case "auto":
            return "transformers"
        case kind:
            return kind


def create_engine(kind: EngineKind, model: ModelSpec, *, config: EngineConfig) -> Engine:
    """Load the model into a new engine of this process, at policy version -1.

    Args:
        kind: the engine, as `resolve_engine` gave it.
        model: the model, and the longest request that it is to serve.
        config: sizes and dtype.

    Raises:
        ConfigError, ModelError: the engine can't be made, or can't run the model.
    """
    parameters: dict[str, Any] = {
        "config": config,
        "max_model_len": model.max_model_len,
        "revision": model.revision,
        "trust_remote_code": model.trust_remote_code,
    }
    match kind:
        case "vllm":
            from gvm_ray.engines.vllm import VLLMEngine

            return VLLMEngine(model.path, **parameters, transfer=model.transfer, adapters=model.adapters)
        case "transformers":
            from gvm_ray.engines.transformers import TransformersEngine

            return TransformersEngine(model.path, **parameters, adapters=model.adapters)
        case "custom":
            assert model.adapters is None, "a custom engine gets whole weights"
            return _custom_engine(config.path, model.path, parameters=parameters)


def generate(
    engine: Engine, requests: Sequence[SampleRequest], sampling: SamplingParameters
) -> list[tuple[Completion, ...]]:
    """Sample with an idle engine until all requests are answered; one tuple per request, in order."""
    assert not engine.num_unfinished, "the engine has other requests under way"
    engine.add(requests, sampling)
    answers: dict[int, tuple[Completion, ...]] = {}
    while engine.num_unfinished:
        answers |= {id(request): completions for request, completions in engine.step()}
    return [answers[id(request)] for request in requests]


def _custom_engine(path: str | None, model_path: str, *, parameters: Mapping[str, Any]) -> Engine:
    assert path is not None  # EngineConfig asks for it
    try:
        return create_from_path(path, model_path, parameters=parameters, protocol=Engine)
    except ImportError as error:
        raise ConfigError(f"engine.path: {error}") from error
