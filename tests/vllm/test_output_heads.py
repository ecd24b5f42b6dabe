"""vLLM samples with the logits that the learners train on, of families whose output heads differ."""

from pathlib import Path

import numpy as np
import pytest
import torch

from gvm_ray.config.engine import EngineConfig
from gvm_ray.engines import create_engine
from gvm_ray.learner.policy import PolicyModule, load_causal_lm, named_full_tensors
from gvm_ray.learner.sequences import TrainSample, pad_samples
from gvm_ray.types import ModelSpec, SamplingParameters
from tests.builders import sample_request
from tests.model_families import build_family
from tests.tiny_models import make_prompt

pytestmark = pytest.mark.vllm

HEADS = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256}


@pytest.mark.parametrize("family", ["gemma2", "granite", "cohere"])
def test_log_probs_after_new_weights(tmp_path: Path, family: str) -> None:
    pytest.importorskip("vllm")
    folder = build_family(tmp_path, family, **HEADS, **({"head_dim": 32} if family == "gemma2" else {}))
    policy = PolicyModule(
        load_causal_lm(folder, revision=None, trust_remote_code=False), temperature=0.7, chunk_tokens=16
    )
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter *= 1.1
    config = EngineConfig(type="vllm", dtype="float32", kv_cache_gib=0.05)
    engine = create_engine("vllm", ModelSpec(path=str(folder), max_model_len=64), config=config)
    try:
        engine.load_weights(0, named_full_tensors(policy, dtype=torch.float32))
        sampling = SamplingParameters(temperature=0.7, top_p=1.0, max_tokens=12)
        engine.add([sample_request(make_prompt("12+7="), num_samples=3)], sampling)
        while not (answers := engine.step()):
            pass
    finally:
        engine.close()
    ((request, completions),) = answers
    samples = [
        TrainSample(prompt_ids=request.prompt.token_ids, response_ids=c.token_ids, engine_logprobs=c.logprobs)
        for c in completions
    ]
    with torch.no_grad():
        logprobs, _ = policy(pad_samples(samples, device=torch.device("cpu")))
    for row, sample in zip(logprobs, samples, strict=True):
        np.testing.assert_allclose(row[: len(sample.response_ids)], sample.engine_logprobs, atol=1e-3)
