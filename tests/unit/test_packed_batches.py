"""Packed micro-batches against padded ones: the same losses, gradients, norms and states, without the padding."""

from typing import Any

import numpy as np
import pytest
import torch

from gvm_ray.learner.kernels import register_varlen
from gvm_ray.learner.policy import sample_gradient_norms, try_policy
from gvm_ray.learner.sequences import TrainSample, pack_samples, pad_samples, train_sample
from gvm_ray.types import IntArray, Pooling
from tests.learner_cases import (
    OPTIMIZER,
    batch_of,
    build_tiny_model,
    copy_demonstrations,
    cpu_policy,
    learner_with,
    ragged_groups,
    values_and_gradients,
    varlen_attn,
)

CPU = torch.device("cpu")
PACKED, PADDED = {"packing": "packed"}, {"packing": "padded"}


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_tiny_model(tmp_path_factory.mktemp("base"), tied=request.param)


def _samples() -> list[TrainSample]:
    return [train_sample(group, index) for group in ragged_groups() for index in range(len(group))]


def _prompts() -> list[IntArray]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 90, size=length).astype(np.int32) for length in (5, 1, 23, 11, 11, 2)]


def test_a_trial_leaves_the_attention_kernels_as_they_were(base: str) -> None:
    register_varlen()
    policy = cpu_policy(base, attention="varlen")  # which run on GPUs alone
    try_policy(policy, base, packed=True, gradient_parameters=["embed_tokens", "lm_head"])
    assert policy.causal_lm.model.config._attn_implementation == "varlen"


def test_a_packed_row_by_hand() -> None:
    ids, none = np.array([7, 8, 9], dtype=np.int32), np.zeros(0, dtype=np.float32)
    samples = [
        TrainSample(prompt_ids=ids, response_ids=ids[:2], engine_logprobs=none),
        TrainSample(prompt_ids=ids[:1], response_ids=ids[2:], engine_logprobs=none),
    ]
    batch = pack_samples(samples, device=CPU)
    assert batch.input_ids.tolist() == [[7, 8, 9, 7, 8, 7, 9]]
    assert batch.targets.tolist() == [[7, 8], [9, 0]]
    assert batch.mask.tolist() == [[True, True], [True, False]]
    assert batch.state_positions().tolist() == [[2, 3], [5, 5]]
    assert batch.packed is not None
    assert batch.packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1]]
    assert batch.packed.cu_seqlens.tolist() == [0, 5, 7]
    assert batch.packed.max_length == 5
    arguments = batch.attention_arguments  # by the names of transformers.modeling_flash_attention_utils
    assert arguments["cu_seq_lens_q"] is arguments["cu_seq_lens_k"] is batch.packed.cu_seqlens
    assert arguments["max_length_q"] == arguments["max_length_k"] == 5
    assert batch.by_sample(batch.input_ids).tolist() == [[7, 8, 9, 7, 8], [7, 9, 0, 0, 0]]
    assert batch.sample_indices is not None
    assert batch.sample_indices.tolist() == [[0] * 5 + [1] * 2]


@pytest.mark.parametrize("num_samples", [9, 1, 0])
def test_log_probs_entropies_and_every_gradient(base: str, num_samples: int) -> None:
    policy, samples = cpu_policy(base), _samples()[:num_samples]
    values, gradients = values_and_gradients(policy, pack_samples(samples, device=CPU))
    expected_values, expected_gradients = values_and_gradients(policy, pad_samples(samples, device=CPU))
    torch.testing.assert_close(values, expected_values, atol=1e-5, rtol=0)
    torch.testing.assert_close(gradients, expected_gradients, atol=1e-4, rtol=1e-4)


def test_kernels_are_told_where_samples_begin(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    register_varlen()
    samples = _samples()
    values, gradients = values_and_gradients(cpu_policy(base, attention="varlen"), pack_samples(samples, device=CPU))
    expected_values, expected_gradients = values_and_gradients(cpu_policy(base), pad_samples(samples, device=CPU))
    torch.testing.assert_close(values, expected_values, atol=1e-5, rtol=0)
    torch.testing.assert_close(gradients, expected_gradients, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("parameters", ["embed_tokens", "lm_head"])
def test_gradient_norms_of_samples(base: str, parameters: Any) -> None:
    policy, samples = cpu_policy(base), _samples()
    norms = sample_gradient_norms(policy, pack_samples(samples, device=CPU), parameters=parameters)
    expected = sample_gradient_norms(policy, pad_samples(samples, device=CPU), parameters=parameters)
    torch.testing.assert_close(norms, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "last", "both"])
def test_prompt_states(base: str, pooling: Pooling) -> None:
    states = [
        learner_with(base, norms=True, settings=settings | {"micro_batch_tokens": 30}).prompt_states(
            _prompts(), pooling=pooling
        )[0]
        for settings in (PACKED, PADDED)
    ]
    np.testing.assert_allclose(*states, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"micro_batch_tokens": 10},  # every sample is longer
        {"micro_batch_tokens": 60, "activation_checkpointing": True, "logprob_chunk_tokens": 7},
        {},
    ],
    ids=["single samples", "several", "one micro-batch"],
)
def test_updates(base: str, settings: dict[str, Any]) -> None:
    groups, results = ragged_groups(), []
    for layout in (PACKED, PADDED):
        algorithm, warm_start = {"type": "grpo", "updates_per_batch": 2}, {"optimizer": OPTIMIZER}
        learner = learner_with(base, norms=True, settings=settings | layout, algorithm=algorithm, warm_start=warm_start)
        supervised = learner.supervised_update(copy_demonstrations())
        learner.finish_warm_start()
        update = learner.update(batch_of(groups), groups)
        weights = {name: tensor.clone() for name, tensor in learner.named_full_tensors()}
        norms = np.concatenate([*update.gradient_norms, *learner.gradient_norms(groups)])
        results.append((supervised | update.metrics, norms, weights))
    (metrics, norms, weights), (expected_metrics, expected_norms, expected_weights) = results
    assert metrics == pytest.approx(expected_metrics, abs=3e-4, rel=3e-4)
    np.testing.assert_allclose(norms, expected_norms, rtol=1e-3, atol=1e-5)
    assert max(float((weights[name] - expected_weights[name]).abs().max()) for name in weights) < 1e-5


def test_bfloat16_comes_near(base: str) -> None:
    groups, settings = ragged_groups(), {"dtype": "bfloat16", "micro_batch_tokens": 60}
    packed, padded = (
        learner_with(base, norms=True, settings=settings | layout).update(batch_of(groups), groups)
        for layout in (PACKED, PADDED)
    )
    assert packed.metrics == pytest.approx(padded.metrics, abs=0.03, rel=0.03)
    norms, expected = np.concatenate(packed.gradient_norms), np.concatenate(padded.gradient_norms)
    np.testing.assert_allclose(norms, expected, rtol=0.05, atol=1e-3)
