"""vLLM inside a generator actor: it starts, takes weights from the object store, and agrees with a forward pass."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_groups import sample_groups
from tiny_models import build_tiny_model, changed_weights, make_prompt, reference_logprobs

from gvm_ray.actors.context import RunContext
from gvm_ray.actors.generator_pool import GeneratorPool
from gvm_ray.actors.weight_sync import publish
from gvm_ray.config.engine import EngineConfig
from gvm_ray.config.run import DeadlineConfig, FaultsConfig
from gvm_ray.failure_log import FailureLog
from gvm_ray.types import ModelSpec, SamplingParameters
from tests.builders import sample_request

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.ray]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_tiny_model(tmp_path_factory.mktemp("model"), tied=True)


@pytest.fixture(scope="module")
def pool(ray_cluster: None, model_path: str) -> Iterator[GeneratorPool]:
    pool = GeneratorPool(
        EngineConfig(type="vllm", kv_cache_gib=0.05),
        kind="vllm",
        max_tokens=16,
        model=ModelSpec(path=model_path, max_model_len=64),
        context=RunContext(deadlines=DeadlineConfig(start_s=500, sync_s=120), failures=FailureLog(FaultsConfig())),
        name="vllm-generator",
    )
    asyncio.run(pool.start())
    yield pool
    pool.close()


def test_published_weights_are_what_the_actor_samples_from(pool: GeneratorPool, model_path: str) -> None:
    weights = changed_weights(model_path, seed=1)
    asyncio.run(pool.publish(publish(weights.items(), policy_version=1, bucket_bytes=2**15)))
    requests = [sample_request(make_prompt(f"{i}+{i}="), num_samples=3) for i in range(4)]
    groups = sample_groups(pool, requests, SamplingParameters(temperature=0.8, max_tokens=16))
    assert [group.prompt.prompt_id for group in groups] == [request.prompt.prompt_id for request in requests]
    for group in groups:
        assert len(group) == 3
        for completion in group.completions:
            assert set(completion.policy_versions.tolist()) == {1}
            expected = reference_logprobs(
                model_path, weights, prompt=group.prompt, completion=completion, temperature=0.8
            )
            assert np.abs(completion.logprobs - expected).mean() < 1e-4


def test_heads_that_the_cpu_kernels_lack_are_refused(tmp_path: Path) -> None:
    model_path = build_tiny_model(tmp_path, tied=True, head_dim=16)
    program = (
        "from gvm_ray.engines import create_engine\n"
        "from gvm_ray.config.run import EngineConfig\n"
        "from gvm_ray.types import ModelSpec\n"
        f"create_engine('vllm', ModelSpec(path={model_path!r}, max_model_len=64), config=EngineConfig())\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "ModelError: the model's attention heads have 16 dimensions" in result.stderr
