"""One learner rank in this process: losses, gradients, updates, checkpoints, exports."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM

from gvm_ray.algorithms import token_loss
from gvm_ray.exceptions import CheckpointError, ModelError
from gvm_ray.learner.learner import Learner
from gvm_ray.learner.norms import PolicyMeasurements
from gvm_ray.types import Metrics, RolloutGroup, TrainBatch
from tests.learner_cases import (
    OPTIMIZER,
    SurrogateLoss,
    batch_of,
    build_tiny_model,
    copy_demonstrations,
    learner_config,
    ragged_groups,
    reference_logprobs,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_tiny_model(tmp_path_factory.mktemp("base"))


def _learner(base: str, *, loss: SurrogateLoss | None = None, **tables: dict) -> Learner:
    return Learner(learner_config(**tables), base_path=base, token_loss=loss or SurrogateLoss())


def _weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.named_full_tensors()}


def _largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_update_equals_one_written_by_hand(base: str) -> None:
    learner, groups = _learner(base), ragged_groups()
    metrics = learner.update(batch_of(groups), groups).metrics

    model = AutoModelForCausalLM.from_pretrained(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3, weight_decay=0.0)
    loss = torch.zeros(())
    for kept, group in zip(batch_of(groups).groups, groups, strict=True):
        for i, advantage, weight in zip(kept.sample_indices, kept.advantages, kept.weights, strict=True):
            response = torch.from_numpy(group.completions[i].token_ids).long()
            ids = torch.cat([torch.from_numpy(group.prompt.token_ids).long(), response])
            logits = model(ids.unsqueeze(0)).logits[0, len(group.prompt.token_ids) - 1 : -1] / 0.7
            logprobs = logits.log_softmax(-1).gather(-1, response.unsqueeze(-1)).squeeze(-1)
            loss = loss + weight * (-advantage * (logprobs - logprobs.detach()).exp()).sum()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()

    assert metrics["loss"] == pytest.approx(float(loss.detach()), abs=1e-6)
    assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
    assert metrics["num_updates"] == 1
    assert metrics["ratio"] == 1
    expected = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    assert _largest_difference(_weights(learner), expected) < 1e-5


@pytest.mark.parametrize("settings", [{}, {"lora": {"rank": 2}}], ids=["all weights", "adapters"])
def test_a_rank_alone_holds_whole_weights_and_trains_them_as_shards(base: str, settings: dict) -> None:
    groups, results = ragged_groups(), []
    for num_workers in (1, 2):  # the second as one of two, which are both this process
        config = {"optimizer": OPTIMIZER, "micro_batch_tokens": 60, "num_workers": num_workers, **settings}
        learner = _learner(base, loss=SurrogateLoss(kl_coefficient=0.1, needs_entropy=True), learner=config)
        assert isinstance(learner.policy, FSDPModule) == (num_workers == 2)
        metrics = [learner.update(batch_of(groups, step=step), groups).metrics for step in range(2)]
        results.append((metrics, _weights(learner)))
    (metrics, weights), (expected, expected_weights) = results
    assert metrics == expected
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected_weights.items())


@pytest.mark.parametrize("updates", [1, 3])
def test_micro_batch_size_changes_nothing(base: str, updates: int) -> None:
    groups = ragged_groups()
    results: list[tuple[Metrics, dict[str, torch.Tensor]]] = []
    for max_tokens in (40, 100_000):
        learner = _learner(
            base,
            loss=SurrogateLoss(needs_entropy=True),
            learner={"micro_batch_tokens": max_tokens, "optimizer": OPTIMIZER},
            algorithm={"type": "grpo", "updates_per_batch": updates},
        )
        results.append((learner.update(batch_of(groups), groups).metrics, _weights(learner)))
    (metrics, weights), (expected_metrics, expected_weights) = results
    # Sums in another order: float32 has 24 bits, and a gradient norm above 50 no more than five decimals.
    assert metrics == pytest.approx(expected_metrics, rel=2e-6, abs=1e-5)
    assert metrics["num_updates"] == updates
    assert _largest_difference(weights, expected_weights) < 1e-5


def test_reports_the_distance_to_the_engines_log_probs(base: str) -> None:
    learner, groups = _learner(base), ragged_groups()
    metrics = learner.update(batch_of(groups), groups).metrics
    differences = torch.cat(
        [
            (reference_logprobs(base, group, i, temperature=0.7) + 4.0).abs()
            for group in groups
            for i in range(len(group.completions))
        ]
    )
    assert metrics["logprob_difference/mean"] == pytest.approx(float(differences.mean()), rel=1e-4)
    assert metrics["logprob_difference/max"] == pytest.approx(float(differences.max()), rel=1e-4)


def test_importance_weights_correct_for_what_the_engine_sampled_with(base: str) -> None:
    """An engine that called every token e^-4 likely: the loss is the sum of weighted likelihood ratios, 1 each."""
    algorithm = {"type": "grpo", "importance": {"level": "sequence", "cap": 1.2}}
    config = learner_config(algorithm=algorithm)
    learner = Learner(config, base_path=base, token_loss=token_loss(config.algorithm))
    groups = ragged_groups()
    metrics = learner.update(batch_of(groups), groups).metrics
    weights, ratios, loss = [], [], 0.0
    for kept, group in zip(batch_of(groups).groups, groups, strict=True):
        for i, advantage, weight in zip(kept.sample_indices, kept.advantages, kept.weights, strict=True):
            ratio = float((reference_logprobs(base, group, i, temperature=0.7) + 4.0).sum().exp())
            num_tokens = len(group.completions[i].token_ids)
            loss -= weight * advantage * min(ratio, 1.2) * num_tokens
            ratios += [ratio] * num_tokens
            weights += [min(ratio, 1.2)] * num_tokens
    assert metrics["loss"] == pytest.approx(loss, rel=1e-4)
    assert metrics["importance/mean"] == pytest.approx(np.mean(ratios), rel=1e-4)
    assert metrics["importance/max"] == pytest.approx(np.max(ratios), rel=1e-4)
    assert 0 < metrics["importance/clipped_fraction"] < 1
    assert metrics["importance/clipped_fraction"] == pytest.approx(np.mean(np.array(ratios) > 1.2))
    effective = np.sum(weights) ** 2 / (len(weights) * np.sum(np.square(weights)))
    assert metrics["importance/effective_sample_size"] == pytest.approx(effective, rel=1e-4)


def test_later_updates_of_a_batch_see_the_ratio_move(base: str) -> None:
    learner, groups = _learner(base, algorithm={"type": "grpo", "updates_per_batch": 3}), ragged_groups()
    assert learner.update(batch_of(groups), groups).metrics["ratio"] != pytest.approx(1, abs=1e-3)


def test_the_engine_s_log_probs_spare_the_pass_of_the_old_ones(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If they are the learner's own, and nothing is clipped, the updates are the same."""
    groups = ragged_groups()
    completions = [
        [replace(c, logprobs=reference_logprobs(base, group, i, temperature=0.7).numpy()) for i, c in enumerate(cs)]
        for group in groups
        for cs in [group.completions]
    ]
    own = [
        RolloutGroup.of(group.prompt, tuple(cs), rewards=group.rewards)
        for group, cs in zip(groups, completions, strict=True)
    ]
    results = []
    for old in ("learner", "engine"):
        if old == "engine":
            monkeypatch.setattr(PolicyMeasurements, "logprobs", None)
        algorithm = {"type": "grpo", "updates_per_batch": 3, "old_logprobs": old, "clip_low": 0.99, "clip_high": 99.0}
        config = learner_config(algorithm=algorithm | {"importance": {"cap": 99.0}})
        learner = Learner(config, base_path=base, token_loss=token_loss(config.algorithm))
        results.append((learner.update(batch_of(own), own).metrics, _weights(learner)))
    (metrics, weights), (expected, expected_weights) = results
    assert metrics["ratio"] == pytest.approx(expected["ratio"], rel=1e-4)
    assert metrics["ratio"] != 1
    assert _largest_difference(weights, expected_weights) < 1e-5


def test_an_empty_batch_is_skipped_and_counted(base: str) -> None:
    learner = _learner(base)
    before = _weights(learner)
    metrics = learner.update(TrainBatch(step=0, groups=()), []).metrics
    assert (metrics["num_updates"], metrics["num_skipped_updates"]) == (0, 1)
    assert _largest_difference(before, _weights(learner)) == 0


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(base: str) -> None:
    learner, groups = _learner(base), ragged_groups()
    batch = batch_of(groups)
    batch.groups[0].weights[0] = np.inf
    before = _weights(learner)
    metrics = learner.update(batch, groups).metrics
    assert (metrics["num_updates"], metrics["num_skipped_updates"]) == (0, 1)
    assert _largest_difference(before, _weights(learner)) == 0
    assert learner.update(batch_of(groups), groups).metrics["num_updates"] == 1  # and the next one is not spoilt


def test_kl_is_0_at_the_start_and_again_after_the_warm_start(base: str) -> None:
    learner, groups = _learner(base, loss=SurrogateLoss(kl_coefficient=0.1)), ragged_groups()
    assert learner.update(batch_of(groups), groups).metrics["kl"] == 0
    assert learner.update(batch_of(groups), groups).metrics["kl"] != 0
    learner.finish_warm_start()
    assert learner.update(batch_of(groups), groups).metrics["kl"] == 0


def test_supervised_updates_learn_the_demonstrations(base: str) -> None:
    learner, demonstrations = _learner(base), copy_demonstrations()
    losses = [learner.supervised_update(demonstrations)["loss"] for _ in range(30)]
    assert losses[0] > 3  # about ln 99
    assert losses[-1] < 0.7


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("parameters", ["embed_tokens", "lm_head"])
def test_gradient_norms(tmp_path: Path, parameters: str, tied: bool) -> None:
    base = build_tiny_model(tmp_path / "model", tied=tied)
    allocator = {"type": "gvm", "gradient_parameters": parameters}
    learner = _learner(base, allocator=allocator, learner={"micro_batch_tokens": 60})
    groups = ragged_groups()
    computed = learner.gradient_norms(groups)

    model = AutoModelForCausalLM.from_pretrained(base)
    weight = model.model.embed_tokens.weight if parameters == "embed_tokens" else model.lm_head.weight
    for group, norms in zip(groups, computed, strict=True):
        assert np.isnan(norms[::2]).all()  # reward 0
        for i in range(1, len(norms), 2):
            response = torch.from_numpy(group.completions[i].token_ids).long()
            ids = torch.cat([torch.from_numpy(group.prompt.token_ids).long(), response])
            logits = model(ids.unsqueeze(0)).logits[0, len(group.prompt.token_ids) - 1 : -1] / 0.7
            objective = logits.log_softmax(-1).gather(-1, response.unsqueeze(-1)).sum()
            (gradient,) = torch.autograd.grad(objective, weight)
            assert norms[i] == pytest.approx(float(gradient.norm()), rel=1e-4)
    assert learner.update(batch_of(groups), groups).metrics["ratio"] == 1  # the training state is untouched


def test_save_and_load_go_on_as_if_nothing_had_happened(base: str, tmp_path: Path) -> None:
    loss, groups = SurrogateLoss(kl_coefficient=0.1), ragged_groups()
    schedule = {"optimizer": OPTIMIZER | {"schedule": {"type": "linear"}}}
    learner = _learner(base, loss=loss, learner=schedule)
    learner.supervised_update(copy_demonstrations())
    learner.finish_warm_start()
    learner.update(batch_of(groups), groups)
    learner.save(str(tmp_path / "shards"))
    expected = learner.update(batch_of(groups, step=1), groups).metrics

    resumed = _learner(base, loss=loss, learner=schedule)
    resumed.load(str(tmp_path / "shards"))
    assert resumed.update(batch_of(groups, step=1), groups).metrics == expected
    assert _largest_difference(_weights(resumed), _weights(learner)) == 0


def test_the_rate_that_is_logged_is_that_of_the_last_update_made(base: str) -> None:
    groups = ragged_groups()
    learner = Learner(
        learner_config(
            num_steps=2,
            algorithm={"type": "raft++", "updates_per_batch": 2},
            learner={"optimizer": {"learning_rate": 0.008, "schedule": {"type": "linear"}}},
            warm_start={"num_updates": 2, "optimizer": {"learning_rate": 0.5, "schedule": {"type": "linear"}}},
        ),
        base_path=base,
        token_loss=SurrogateLoss(),
    )
    warm = [learner.supervised_update(copy_demonstrations())["learning_rate"] for _ in range(2)]
    assert warm == pytest.approx([0.5, 0.25])
    learner.finish_warm_start()
    rates = [learner.update(batch_of(groups, step=step), groups).metrics["learning_rate"] for step in range(2)]
    assert rates == pytest.approx([0.006, 0.002])  # of four updates with 4, 3, 2, 1 quarters


def test_a_fresh_optimizer_survives_the_round_trip(base: str, tmp_path: Path) -> None:
    groups = ragged_groups()
    learner, resumed = _learner(base), _learner(base)
    learner.save(str(tmp_path / "shards"))
    resumed.load(str(tmp_path / "shards"))
    untouched = _learner(base)
    for rank in (learner, resumed, untouched):
        rank.update(batch_of(groups), groups)
    assert _largest_difference(_weights(learner), _weights(untouched)) == 0
    assert _largest_difference(_weights(resumed), _weights(untouched)) == 0


def test_load_says_what_is_wrong(base: str, tmp_path: Path) -> None:
    learner = _learner(base)
    with pytest.raises(CheckpointError, match="missing or unfinished"):
        learner.load(str(tmp_path / "nowhere"))
    learner.save(str(tmp_path / "shards"))
    other = Learner(
        learner_config(), base_path=build_tiny_model(tmp_path / "untied", tied=False), token_loss=SurrogateLoss()
    )
    with pytest.raises(CheckpointError, match="doesn't fit this run"):
        other.load(str(tmp_path / "shards"))


def test_export_loads_in_transformers_with_the_same_log_probs(base: str, tmp_path: Path) -> None:
    learner, groups = _learner(base), ragged_groups()
    learner.update(batch_of(groups), groups)
    learner.export(str(tmp_path / "exported"))
    again = Learner(learner_config(), base_path=str(tmp_path / "exported"), token_loss=SurrogateLoss())
    assert _largest_difference(_weights(again), _weights(learner)) == 0
    logprobs = reference_logprobs(tmp_path / "exported", groups[0], 0, temperature=0.7)
    assert not torch.allclose(logprobs, reference_logprobs(base, groups[0], 0, temperature=0.7))


def test_activation_checkpointing_gives_the_same_update(base: str) -> None:
    groups, results = ragged_groups(), []
    for enabled in (False, True):
        learner = _learner(
            base, learner={"activation_checkpointing": enabled, "logprob_chunk_tokens": 7, "optimizer": OPTIMIZER}
        )
        learner.update(batch_of(groups), groups)
        results.append(_weights(learner))
    assert _largest_difference(*results) < 1e-5


def test_activation_checkpointing_turns_no_dropout_on(base: str, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**settings, "attention_dropout": 0.5}))
    groups = ragged_groups()
    results, num_forwards = [], []
    for checkpointing in (False, True):
        learner = _learner(
            str(tmp_path / "model"), learner={"activation_checkpointing": checkpointing, "optimizer": OPTIMIZER}
        )
        attention = learner.policy.causal_lm.model.layers[0].self_attn
        passes: list[None] = []
        attention.register_forward_hook(lambda *_, passes=passes: passes.append(None))
        learner.update(batch_of(groups), groups)
        results.append(_weights(learner))
        num_forwards.append(len(passes))
    assert _largest_difference(*results) < 1e-5
    assert num_forwards[0] < num_forwards[1]  # the blocks were computed again on the way back


def test_bfloat16_keeps_float32_master_weights(base: str) -> None:
    learner = _learner(base, learner={"dtype": "bfloat16", "optimizer": {"learning_rate": 1e-6}})
    groups, before = ragged_groups(), _weights(learner)
    metrics = learner.update(batch_of(groups), groups).metrics
    after = _weights(learner)
    assert np.isfinite(metrics["grad_norm"])
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    assert 0 < _largest_difference(before, after) < 1e-5  # bfloat16 weights could not move by so little


def test_a_missing_model_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        _learner(str(tmp_path / "nowhere"))
