"""Engines that sample responses: vLLM, and Hugging Face transformers if vLLM is not installed."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal

from gvm_ray.config.run import EngineConfig
from gvm_ray.exceptions import ConfigError
from gvm_ray.maths.import_path import create_from_path
from gvm_ray.protocols import Engine
from gvm_ray.types import Completion, SampleRequest, SamplingParameters, WeightTransfer

EngineKind = Literal["vllm", "transformers", "custom"]

__all__ = ["EngineKind", "create_engine", "generate", "resolve_engine"]


def resolve_engine(config: EngineConfig) -> EngineKind:
    """Resolve `engine.type` on this machine: `auto` means vLLM if it is installed. Imports nothing.

    Raises:
        ConfigError: vLLM is requested but not installed.
    """
    spec = find_spec("vllm")
    installed = spec is not None and spec.origin is not None  # not just a folder of that name
    match config.type:
        case "auto":
            return "vllm" if installed else "transformers"
        case "vllm" if not installed:
            raise ConfigError(
                "engine.type='vllm', but vLLM is not installed; run pip install 'gvm-ray[cpu]' (or 'gvm-ray[gpu]' on a "
                "machine with CUDA), or write engine.type='transformers'"
            )
        case kind:
            return kind


def create_engine(
    kind: EngineKind,
    model_path: str,
    *,
    config: EngineConfig,
    max_model_len: int,
    revision: str | None = None,
    trust_remote_code: bool = False,
    transfer: WeightTransfer = "object_store",
) -> Engine:
    """Load the model into a new engine in this process, at policy version -1.

    Args:
        kind: The result of `resolve_engine`.
        model_path: A Hugging Face folder or hub id, with its tokenizer.
        config: Sizes and dtype.
        max_model_len: Prompt and response tokens of the longest request.
        revision: Revision of a hub id; None takes the newest.
        trust_remote_code: Run code that comes with the model.
        transfer: The way in which the learners send weights; only vLLM supports others than the object store.

    Raises:
        ConfigError, ModelError: the engine can't be created.
    """
    match kind:
        case "vllm":
            from gvm_ray.engines.vllm import VLLMEngine

            return VLLMEngine(
                model_path,
                config=config,
                max_model_len=max_model_len,
                revision=revision,
                trust_remote_code=trust_remote_code,
                transfer=transfer,
            )
        case "transformers":
            from gvm_ray.engines.transformers import TransformersEngine

            return TransformersEngine(
                model_path,
                config=config,
                max_model_len=max_model_len,
                revision=revision,
                trust_remote_code=trust_remote_code,
            )
        case "custom":
            sizes = {"config": config, "max_model_len": max_model_len}
            parameters = {**sizes, "revision": revision, "trust_remote_code": trust_remote_code}
            return _custom_engine(config.path, model_path, parameters=parameters)


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
