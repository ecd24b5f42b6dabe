"""Engines that leave the GPU: when, and what wakes them."""

import asyncio
from pathlib import Path

import pytest
from tiny_models import build_tiny_model, changed_weights, make_prompt

from gvm_ray.config.engine import EngineConfig
from gvm_ray.engines import create_engine, generate
from gvm_ray.engines.server import EngineServer, Sleeps
from gvm_ray.exceptions import ConfigError
from gvm_ray.types import ModelSpec, SamplingParameters
from tests.builders import sample_request
from tests.counting_engine import CountingEngine, collect, request, weights


class SleepingEngine(CountingEngine):
    """One that can leave its GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.asleep_after: list[int] = []

    def sleep(self) -> None:
        assert not self.num_unfinished
        self.asleep_after.append(self.policy_version)


def test_an_engine_sleeps_once_nothing_is_under_way() -> None:
    async def run() -> None:
        engine = SleepingEngine()
        server = EngineServer(lambda: engine, in_flight="keep")
        await server.sleep()  # it was never made
        assert engine.asleep_after == []
        loading = asyncio.create_task(server.load_weights(3, weights(3)))
        sampling = asyncio.create_task(collect(server, request("a", 2)))
        await asyncio.sleep(0)
        sleeping = asyncio.create_task(server.sleep())
        await asyncio.sleep(0.01)
        assert not sleeping.done()
        engine.permits.release(2)
        await asyncio.gather(loading, sampling, sleeping)
        assert engine.asleep_after == [3]

    asyncio.run(run())


def test_an_engine_that_can_not_sleep_is_named() -> None:
    async def run() -> None:
        server = EngineServer(CountingEngine, in_flight="keep")
        await server.policy_version()
        await server.sleep()

    with pytest.raises(ConfigError, match=r"CountingEngine has no sleep\(\); write engine.sleep=false"):
        asyncio.run(run())


def test_a_transformers_engine_samples_the_same_after_a_sleep(tmp_path: Path) -> None:
    path = build_tiny_model(tmp_path, tied=True)
    engine = create_engine("transformers", ModelSpec(path=path, max_model_len=64), config=EngineConfig())
    assert isinstance(engine, Sleeps)
    sampling = SamplingParameters(temperature=1.0, max_tokens=8)
    requests = [sample_request(make_prompt("1+1="), num_samples=3, first_seed=5)]
    engine.load_weights(1, changed_weights(path, seed=3).items())
    before = generate(engine, requests, sampling)
    engine.sleep()
    after = generate(engine, requests, sampling)
    assert [c.token_ids.tolist() for c in after[0]] == [c.token_ids.tolist() for c in before[0]]
    engine.sleep()
    engine.load_weights(2, changed_weights(path, seed=4).items())
    assert engine.policy_version == 2
