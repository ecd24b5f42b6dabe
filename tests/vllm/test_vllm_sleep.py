"""What vLLM is asked for on GPUs, and in which order it sleeps, takes weights and wakes; its engine is a fake here."""

from pathlib import Path
from typing import Any

import pytest
from tiny_models import build_tiny_model, changed_weights, make_prompt

from gvm_ray.config.engine import EngineConfig
from gvm_ray.types import SamplingParameters
from tests.builders import sample_request

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

ON_GPUS = EngineConfig(type="vllm", tensor_parallel_size=2, gpus_per_generator=2, kv_cache_gib=0.05)


class FakeLLMEngine:
    """Notes the calls that concern memory and weights."""

    def __init__(self, arguments: Any) -> None:
        self.arguments = arguments
        self.calls: list[Any] = []

    def set_weight_version(self, version: str) -> None: ...

    def sleep(self, level: int) -> None:
        self.calls.append(("sleep", level))

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(("wake", *tags))

    def collective_rpc(self, method: Any, kwargs: dict[str, Any] | None = None) -> list[bool]:
        if kwargs is None:  # whether the model has a head of its own
            return [True]
        assert list(kwargs["weights_iterator"])
        self.calls.append(method)
        return []

    def add_request(self, *_: Any, **__: Any) -> None:
        self.calls.append("add")


def test_weights_come_back_before_they_are_replaced_and_the_cache_before_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gvm_ray.engines import vllm

    monkeypatch.setattr(vllm.LLMEngine, "from_engine_args", FakeLLMEngine)
    path = build_tiny_model(tmp_path, tied=True)
    engine = vllm.VLLMEngine(path, config=ON_GPUS, max_model_len=64)
    fake: Any = engine.llm_engine
    assert fake.arguments.enable_sleep_mode
    assert fake.arguments.distributed_executor_backend == "mp"
    sampling, weights = SamplingParameters(temperature=1.0, max_tokens=4), changed_weights(path, seed=1)
    engine.load_weights(1, weights.items())
    for _ in range(2):
        engine.sleep()
    engine.load_weights(2, weights.items())
    engine.sleep()  # with the cache asleep still
    engine.load_weights(3, weights.items())
    for _ in range(2):
        engine.add([sample_request(make_prompt("1+1="), num_samples=1)], sampling)
    engine.sleep()
    engine.add([sample_request(make_prompt("1+1="), num_samples=1)], sampling)
    assert fake.calls == [
        "reload_weights",
        ("sleep", 1),
        ("wake", "weights"),
        "reload_weights",
        ("sleep", 1),
        ("wake", "weights"),
        "reload_weights",
        ("wake", "kv_cache"),
        "add",
        "add",
        ("sleep", 1),
        ("wake", "kv_cache", "weights"),
        "add",
    ]


@pytest.mark.parametrize("changes", [{"sleep": False}, {"gpus_per_generator": 0}])
def test_sleep_mode_is_off_where_nothing_sleeps(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gvm_ray.engines import vllm

    monkeypatch.setattr(vllm.LLMEngine, "from_engine_args", FakeLLMEngine)
    config = ON_GPUS.model_copy(update=changes)
    engine: Any = vllm.VLLMEngine(build_tiny_model(tmp_path, tied=True), config=config, max_model_len=64)
    assert not engine.llm_engine.arguments.enable_sleep_mode
