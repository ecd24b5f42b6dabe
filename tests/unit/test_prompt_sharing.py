"""Prompts that their responses share: the same losses, gradients, log-probs and entropies as with a prompt for each."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gvm_ray.config.model import LearnerConfig
from gvm_ray.exceptions import ModelError
from gvm_ray.learner.kernels import register_varlen, resolve_attention, resolve_sharing
from gvm_ray.learner.lora import add_adapters
from gvm_ray.learner.model_trial import share_prompts
from gvm_ray.learner.policy import PolicyModule
from gvm_ray.learner.sequences import (
    BatchLayout,
    TrainSample,
    pad_samples,
    prompts_of,
    share_samples,
    sharing_pays,
)
from gvm_ray.learner.shared_prompts import KERNELS
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
from tests.model_families import build_family

CPU = torch.device("cpu")
SHARED, PADDED = {"packing": "shared"}, {"packing": "padded"}
Shape = tuple[int, Sequence[int]]  # a prompt's tokens, and those of its responses


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_tiny_model(tmp_path_factory.mktemp("base"), tied=request.param)


def _policy(base: str) -> PolicyModule:
    policy = cpu_policy(base)
    share_prompts(policy, base)
    return policy


def _samples(*groups: Shape, sampled_share: float = 1.0) -> list[TrainSample]:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 90, size=prompt_length).astype(np.int32) for prompt_length, _ in groups]
    return [
        TrainSample(
            prompt_ids=prompt,
            response_ids=rng.integers(3, 90, size=length).astype(np.int32),
            engine_logprobs=np.zeros(length, dtype=np.float32),
            sampled=None if sampled_share == 1 else rng.random(length) < sampled_share,
        )
        for prompt, (_, lengths) in zip(prompts, groups, strict=True)
        for length in lengths
    ]


def _assert_equal(policy: PolicyModule, samples: Sequence[TrainSample], *, reference: PolicyModule) -> None:
    values, gradients = values_and_gradients(policy, share_samples(samples, device=CPU))
    expected_values, expected_gradients = values_and_gradients(reference, pad_samples(samples, device=CPU))
    torch.testing.assert_close(values, expected_values, atol=1e-5, rtol=0)
    torch.testing.assert_close(gradients, expected_gradients, atol=1e-4, rtol=1e-4)


def test_a_shared_row_by_hand() -> None:
    ids, none = np.array([7, 8, 9], dtype=np.int32), np.zeros(0, dtype=np.float32)
    samples = [
        TrainSample(prompt_ids=ids, response_ids=ids[:2], engine_logprobs=none),
        TrainSample(prompt_ids=ids[:1], response_ids=ids[2:], engine_logprobs=none),
        TrainSample(prompt_ids=ids.copy(), response_ids=ids[1:2], engine_logprobs=none),
    ]
    batch = share_samples(samples, device=CPU)
    assert batch.input_ids.tolist() == [[7, 8, 9, 7, 8, 8, 7, 9]]  # the first prompt, its responses, the other prompt
    assert batch.targets.tolist() == [[7, 8], [9, 0], [8, 0]]
    assert batch.starts.tolist() == [0, 6, 0]
    assert batch.state_positions().tolist() == [[2, 3], [6, 6], [2, 2]]  # first tokens: the prompt's last state
    row = batch.shared
    assert row is not None
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 0, 1]]
    assert row.segment_ends.tolist() == [0, 3, 5, 6, 7, 8]
    assert row.segment_keys.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 6, 7]
    assert row.segment_key_ends.tolist() == [0, 3, 8, 12, 13, 15]
    assert row.longest == (3, 5)
    for refused in ("sample_indices", "by_sample"):
        with pytest.raises(AssertionError, match="several samples"):
            getattr(batch, refused)(batch.input_ids) if refused == "by_sample" else getattr(batch, refused)


@pytest.mark.parametrize(
    "groups",
    [
        [(4, (9, 3, 14)), (7, (12,)), (1, (5, 5, 1))],
        [(30, [1 + i % 3 for i in range(37)])],  # so many keys that attention is computed again to go backward
        [(5, (8,))],
        [(6, (0, 4, 0))],
        [],
        [(20, (19, 20, 21)), (3, (30, 2)), (12, (7, 1, 12))],
    ],
    ids=["ragged", "37 responses", "one response", "empty responses", "none", "short and long"],
)
def test_log_probs_entropies_and_every_gradient(base: str, groups: list[Shape]) -> None:
    _assert_equal(_policy(base), _samples(*groups), reference=cpu_policy(base))


def test_tiles_of_many_sizes(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gvm_ray.learner.shared_prompts._SPARE_SCORES", 0)
    samples = _samples((25, (1, 2, 4, 8, 16, 24)), (9, (3, 30, 8)), (24, (15, 3)))
    row = share_samples(samples, device=CPU).shared
    assert row is not None
    assert len(row.tiles) > 4
    assert sum(tile.shape[0] for tile in row.tiles) >= len(samples)
    _assert_equal(_policy(base), samples, reference=cpu_policy(base))


def test_tokens_of_an_environment_are_read_and_not_learned(base: str) -> None:
    samples = _samples((4, (9, 3, 14)), (12, (10, 2)), sampled_share=0.5)
    _assert_equal(_policy(base), samples, reference=cpu_policy(base))


def test_adapters(base: str) -> None:
    policies = [_policy(base), cpu_policy(base)]
    settings = LearnerConfig.model_validate({"lora": {"rank": 3}}).lora
    assert settings is not None
    for policy in policies:
        policy.requires_grad_(False)
        add_adapters(policy.causal_lm, settings, seed=0)
        with torch.no_grad():
            for parameter in (p for p in policy.parameters() if p.requires_grad):
                parameter += 0.05
    _assert_equal(policies[0], _samples((4, (9, 3, 14)), (12, (10, 2))), reference=policies[1])


def test_first_tokens_of_one_prompt_have_one_distribution(base: str) -> None:
    samples = _samples((6, (3, 5, 2)))
    first = samples[0].response_ids[:1]
    samples = [replace(s, response_ids=np.concatenate([first, s.response_ids[1:]])) for s in samples]
    logprobs, entropies = _policy(base)(share_samples(samples, device=CPU), with_entropy=True)
    assert entropies is not None
    for values in (logprobs, entropies):
        torch.testing.assert_close(values[:, 0], values[0, 0].expand(3), atol=1e-5, rtol=0)


# --- kernels for sequences of many lengths ----------------------------------------------------------------------------
def test_varlen_kernels_are_told_of_a_prompt_before_each_response(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    register_varlen()
    policy = cpu_policy(base, attention="varlen")
    share_prompts(policy, base, kernels="varlen")
    assert policy.shares_prompts
    assert policy.causal_lm.config._attn_implementation == "varlen"
    _assert_equal(policy, _samples((4, (9, 3, 14)), (12, (10, 2))), reference=cpu_policy(base))


# --- layouts ----------------------------------------------------------------------------------------------------------
def test_prompts_are_shared_where_that_spares_tokens() -> None:
    samples = _samples((10, (5, 5)), (10, (5,)))
    assert prompts_of(samples).tolist() == [0, 0, 1]
    assert sharing_pays(samples)
    assert not sharing_pays(_samples((10, (5,)), (9, (5,))))
    assert not sharing_pays(_samples((1, (40, 40))))
    assert not sharing_pays([])


def test_micro_batches_are_filled_by_what_they_hold(base: str) -> None:
    _policy(base)  # with which comes a process group of one rank, where no other test made one
    learner_with(base, settings=SHARED)
    samples = _samples((10, (5, 4, 3)), (8, (2, 2)))
    layout = BatchLayout(max_tokens=22, packed=False, device=CPU, shared=True)
    found = [(indices.tolist(), batch.input_ids.shape[1]) for indices, batch in layout.micro_batches(samples)]
    assert found == [([0, 1, 2], 22), ([3, 4], 12)]
    apart = list(layout.micro_batches(samples, separate=True))
    assert all(batch.shared is None for _, batch in apart)
    small = replace(layout, max_tokens=19)
    assert [indices.tolist() for indices, _ in small.micro_batches(samples)] == [[0, 1], [2], [3, 4]]


# --- the learner ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "settings",
    [
        {"micro_batch_tokens": 10},  # every sample is longer
        {"micro_batch_tokens": 60, "activation_checkpointing": True, "logprob_chunk_tokens": 7},
        {"lora": {"rank": 4}, "micro_batch_tokens": 60},
        {},
    ],
    ids=["single samples", "several, checkpointing", "adapters", "one micro-batch"],
)
def test_updates(base: str, settings: dict[str, Any]) -> None:
    groups, results = ragged_groups(), []
    for layout in (SHARED, PADDED):
        algorithm, warm_start = {"type": "grpo", "updates_per_batch": 2}, {"optimizer": OPTIMIZER}
        learner = learner_with(base, settings=settings | layout, algorithm=algorithm, warm_start=warm_start)
        assert learner.policy.shares_prompts == (layout is SHARED)
        supervised = learner.supervised_update(copy_demonstrations())
        learner.finish_warm_start()
        metrics = [learner.update(batch_of(groups, step=step), groups).metrics for step in range(2)]
        weights = {name: tensor.clone() for name, tensor in learner.named_full_tensors()}
        results.append(([supervised, *metrics], weights, np.concatenate(learner.gradient_norms(groups))))
    (metrics, weights, norms), (expected_metrics, expected_weights, expected_norms) = results
    assert metrics == [pytest.approx(expected, abs=3e-4, rel=3e-4) for expected in expected_metrics]
    assert max(float((weights[name] - expected_weights[name]).abs().max()) for name in weights) < 2e-5
    np.testing.assert_allclose(norms, expected_norms, rtol=1e-3, atol=1e-5)


def test_samples_stand_apart_where_their_gradient_norms_are_measured(base: str) -> None:
    groups = ragged_groups()
    updates = [
        learner_with(base, settings=layout, norms=True).update(batch_of(groups), groups) for layout in (SHARED, PADDED)
    ]
    for norms, expected in zip(*(update.gradient_norms for update in updates), strict=True):
        assert np.array_equal(norms, expected)
    assert updates[0].metrics == updates[1].metrics


@pytest.mark.parametrize("num_parts", [1, 2])
def test_the_samples_that_are_not_measured_share_their_prompts(base: str, num_parts: int) -> None:
    groups, results = ragged_groups(), []
    batch = batch_of(groups)
    measured = {"type": "gvm_pool", "score": "norm_neyman", "norm_samples": 1}
    for layout in (SHARED, PADDED):
        tables: dict[str, Any] = {"algorithm": {"type": "grpo", "updates_per_batch": num_parts}}
        learner = learner_with(base, settings=layout, allocator=measured, **tables)
        results.append((learner.update(batch, groups), dict(learner.named_full_tensors())))
    (update, weights), (expected, expected_weights) = results
    advantages = [group.advantages for group in batch.groups]
    assert [np.isfinite(norms).sum() for norms in update.gradient_norms] == [2, 1, 0, 2]
    for norms, own, values in zip(update.gradient_norms, expected.gradient_norms, advantages, strict=True):
        for of_class in (values > 0, values < 0):
            first = np.flatnonzero(of_class)[:1]
            np.testing.assert_allclose(norms[first], own[first], rtol=1e-3)
            assert np.isnan(norms[np.flatnonzero(of_class)[1:]]).all()
    assert update.metrics == pytest.approx(expected.metrics, abs=3e-4, rel=3e-4)
    assert max(float((weights[name] - expected_weights[name]).abs().max()) for name in weights) < 2e-5


def test_auto_shares(base: str) -> None:
    groups = ragged_groups()
    metrics = [learner_with(base, settings=s).update(batch_of(groups), groups).metrics for s in ({}, SHARED, PADDED)]
    assert metrics[0] == metrics[1] != metrics[2]


def test_an_export_names_no_kernels(base: str, tmp_path: Path) -> None:
    learner_with(base, settings=SHARED).export(str(tmp_path))
    assert KERNELS not in (tmp_path / "config.json").read_text(encoding="utf-8")


def test_bfloat16_comes_near(base: str) -> None:
    groups, settings = ragged_groups(), {"dtype": "bfloat16", "micro_batch_tokens": 60}
    shared, padded = (
        learner_with(base, settings=settings | layout).update(batch_of(groups), groups) for layout in (SHARED, PADDED)
    )
    assert shared.metrics == pytest.approx(padded.metrics, abs=0.03, rel=0.03)


def test_layers_that_read_along_the_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = str(build_family(tmp_path / "model", "qwen3_5_text"))
    with caplog.at_level(logging.WARNING, logger="gvm_ray"):
        assert not learner_with(folder, settings={}).policy.shares_prompts
    told = [record.getMessage() for record in caplog.records if "can't share prompts" in record.getMessage()]
    assert len(told) == 1
    assert "layers of type 'linear_attention'" in told[0]
    with pytest.raises(ModelError, match=r"can't share prompts.*write learner\.packing = \"auto\" or \"padded\""):
        learner_with(folder, settings=SHARED)


def test_where_sharing_is_tried() -> None:
    on_gpu = {"dtype": "bfloat16", "gpus_per_worker": 1}
    assert resolve_sharing(LearnerConfig(), "sdpa") == "try"
    assert resolve_sharing(LearnerConfig(), "flash_attention_2") == "off"
    assert resolve_sharing(LearnerConfig(compile=True), "sdpa") == "off"
    assert resolve_sharing(LearnerConfig(packing="shared", compile=True), "sdpa") == "on"
    for packing in ("packed", "padded"):
        assert resolve_sharing(LearnerConfig(packing=packing), "sdpa") == "off"
    with pytest.raises(ValueError, match="packing='shared' needs attention='varlen' or 'sdpa'"):
        LearnerConfig.model_validate(on_gpu | SHARED | {"attention": "flash_attention_2"})
    assert LearnerConfig.model_validate(on_gpu | SHARED | {"attention": "varlen"}).packing == "shared"


def test_flash_attention_is_not_chosen_for_shared_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.utils.import_utils.is_flash_attn_2_available", lambda: True)
    config = LearnerConfig.model_validate({"dtype": "bfloat16", "gpus_per_worker": 1} | SHARED)
    assert resolve_attention(config, device_type="cuda") == ("sdpa", False)
