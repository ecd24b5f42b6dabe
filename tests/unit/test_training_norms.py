"""Gradient norms out of the training backward pass, against torch.autograd.grad one sample at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from gvm_ray.learner.learner import Learner
from gvm_ray.types import RolloutGroup, TrainBatch
from tests.learner_cases import (
    OPTIMIZER,
    SurrogateLoss,
    batch_of,
    build_tiny_model,
    learner_config,
    ragged_groups,
    with_training_norms,
)
from tests.model_families import build_family

ASLEEP = {"optimizer": {"learning_rate": 1e-12}}  # so that a batch's later updates see the first weights


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_tiny_model(tmp_path_factory.mktemp("base"), tied=request.param)


def _learner(base: str, *, asked: bool = True, loss: SurrogateLoss | None = None, **tables: Any) -> Learner:
    config = learner_config(**tables)
    if asked:
        config = with_training_norms(config)
    return Learner(config, base_path=base, token_loss=loss or SurrogateLoss())


def _one_by_one(folder: str | Path, batch: TrainBatch, groups: list[RolloutGroup]) -> list[list[float]]:
    """|A| times the norm of the gradient of ln pi(response) at temperature 0.7 in the input embedding alone."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())  # apart from the input embedding
    norms: list[list[float]] = []
    for kept, group in zip(batch.groups, groups, strict=True):
        norms.append([])
        for i, advantage in zip(kept.sample_indices, kept.advantages, strict=True):
            response = torch.from_numpy(group.completions[i].token_ids).long()
            ids = torch.cat([torch.from_numpy(group.prompt.token_ids).long(), response])
            logits = model(ids.unsqueeze(0)).logits[0, len(group.prompt.token_ids) - 1 : -1] / 0.7
            objective = logits.log_softmax(-1).gather(-1, response.unsqueeze(-1)).sum()
            (gradient,) = torch.autograd.grad(objective, model.model.embed_tokens.weight)
            norms[-1].append(abs(advantage) * float(gradient.norm()))
    return norms


@pytest.mark.parametrize(
    ("learner", "rtol"),
    [
        ({}, 1e-4),
        ({"micro_batch_tokens": 40}, 1e-4),
        ({"activation_checkpointing": True}, 1e-4),
        ({"dtype": "bfloat16"}, 0.05),
    ],
    ids=["one micro-batch", "several", "checkpointing", "bfloat16"],
)
@pytest.mark.parametrize("updates", [1, 3])
def test_equal_to_those_of_each_sample_alone(base: str, updates: int, learner: dict[str, Any], rtol: float) -> None:
    groups, algorithm = ragged_groups(), {"type": "grpo", "updates_per_batch": updates}
    batch = batch_of(groups)
    assert min(advantage for group in batch.groups for advantage in group.advantages) < 0
    norms = _learner(base, learner=ASLEEP | learner, algorithm=algorithm).update(batch, groups).gradient_norms
    expected = _one_by_one(base, batch, groups)
    assert [len(values) for values in norms] == [3, 1, 0, 5]
    for values, reference in zip(norms, expected, strict=True):
        np.testing.assert_allclose(values, reference, rtol=rtol)


def test_they_are_aligned_with_the_kept_samples(base: str) -> None:
    groups = ragged_groups()
    batch = batch_of(groups)
    last, kept = batch.groups[3], np.array([4, 1], dtype=np.int32)
    chosen = {name: getattr(last, name)[kept] for name in ("advantages", "weights", "num_tokens")}
    part = TrainBatch(
        step=0, groups=(type(last)(prompt_id=last.prompt_id, ref=last.ref, sample_indices=kept, **chosen),)
    )
    (norms,) = _learner(base).update(part, groups[3:]).gradient_norms
    np.testing.assert_allclose(norms, np.array(_one_by_one(base, batch, groups)[3])[kept], rtol=1e-4)


def test_training_is_the_same_to_the_bit(base: str) -> None:
    groups, results = ragged_groups(), []
    settings = {"micro_batch_tokens": 60, "packing": "padded", "optimizer": OPTIMIZER}  # as where norms are asked for
    loss = SurrogateLoss(kl_coefficient=0.1, needs_entropy=True)
    algorithm = {"type": "grpo", "updates_per_batch": 2}
    for asked in (True, False):
        learner = _learner(base, asked=asked, loss=loss, learner=settings, algorithm=algorithm)
        updates = [learner.update(batch_of(groups, step=step), groups) for step in range(3)]
        assert [len(update.gradient_norms) for update in updates] == [4 if asked else 0] * 3
        results.append(([update.metrics for update in updates], dict(learner.named_full_tensors())))
    (metrics, weights), (plain_metrics, plain_weights) = results
    assert metrics == plain_metrics
    assert all(torch.equal(weights[name], tensor) for name, tensor in plain_weights.items())


def test_a_sample_without_weight_has_no_norm(base: str) -> None:
    groups = ragged_groups()
    batch = batch_of(groups)
    batch.groups[0].weights[1] = 0.0
    norms = _learner(base).update(batch, groups).gradient_norms
    assert np.isnan(norms[0]).tolist() == [False, True, False]
    assert np.isfinite(np.concatenate(norms[1:])).all()


def test_an_advantage_of_0_is_a_norm_of_0(base: str) -> None:
    groups = ragged_groups()
    batch = batch_of(groups)
    batch.groups[3].advantages[2] = 0.0
    assert (_learner(base).update(batch, groups).gradient_norms[3] == 0).tolist() == [False, False, True, False, False]


def test_a_skipped_update_measures_nothing(base: str) -> None:
    groups = ragged_groups()
    batch = batch_of(groups)
    batch.groups[0].weights[0] = np.inf
    update = _learner(base).update(batch, groups)
    assert update.metrics["num_skipped_updates"] == 1
    assert np.isnan(np.concatenate(update.gradient_norms)).all()


def test_an_empty_batch_has_no_norms(base: str) -> None:
    assert _learner(base).update(TrainBatch(step=0, groups=()), []).gradient_norms == ()


@pytest.mark.parametrize("settings", [{}, {"lora": {"rank": 2}}], ids=["all weights", "adapters"])
def test_embeddings_that_a_family_scales(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Gemma multiplies what it looks up by sqrt(32)."""
    folder, groups = build_family(tmp_path, "gemma"), ragged_groups()
    batch = batch_of(groups)
    measured = _learner(str(folder), learner=ASLEEP | settings).update(batch, groups).gradient_norms
    for computed, expected in zip(measured, _one_by_one(folder, batch, groups), strict=True):
        np.testing.assert_allclose(computed, expected, rtol=1e-3)
