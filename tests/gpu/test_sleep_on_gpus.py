"""A vLLM engine on a GPU that it leaves and takes back."""

from pathlib import Path

import pytest
import torch
from tiny_models import build_tiny_model, changed_weights, make_prompt

from gvm_ray.config.engine import EngineConfig
from gvm_ray.engines import create_engine, generate
from gvm_ray.engines.server import Sleeps
from gvm_ray.types import ModelSpec, SamplingParameters
from tests.builders import sample_request

pytest.importorskip("vllm")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.vllm,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that PyTorch can use"),
]


def test_the_memory_is_free_while_it_sleeps_and_samples_are_the_same_after(tmp_path: Path) -> None:
    path = build_tiny_model(tmp_path, tied=True)
    config = EngineConfig(type="vllm", gpus_per_generator=1, gpu_memory_utilization=0.3, dtype="bfloat16")
    engine = create_engine("vllm", ModelSpec(path=path, max_model_len=64), config=config)
    assert isinstance(engine, Sleeps)
    sampling = SamplingParameters(temperature=1.0, max_tokens=16)
    requests = [sample_request(make_prompt("1+1="), num_samples=4, first_seed=5)]
    engine.load_weights(1, changed_weights(path, seed=3).items())
    before = [c.token_ids.tolist() for c in generate(engine, requests, sampling)[0]]
    free_awake, total = torch.cuda.mem_get_info()
    engine.sleep()
    assert torch.cuda.mem_get_info()[0] - free_awake > 0.2 * total
    assert [c.token_ids.tolist() for c in generate(engine, requests, sampling)[0]] == before
    engine.sleep()
    engine.load_weights(2, changed_weights(path, seed=4).items())
    assert torch.cuda.mem_get_info()[0] - free_awake > 0.2 * total  # the cache is not back yet
    assert [c.token_ids.tolist() for c in generate(engine, requests, sampling)[0]] != before
    engine.close()
