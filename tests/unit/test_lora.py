"""Adapters: what is trained, what leaves the learner, what is saved, and what the reference is."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from transformers import AutoModelForCausalLM

from gvm_ray.exceptions import CheckpointError, ConfigError
from gvm_ray.learner.learner import Learner
from gvm_ray.learner.lora import base_name, is_adapter
from gvm_ray.learner.norms import PolicyMeasurements
from gvm_ray.learner.policy import local_shards
from gvm_ray.learner.sequences import BatchLayout, TrainSample, train_sample
from gvm_ray.types import FloatArray
from tests.builders import completion, group, prompt
from tests.learner_cases import (
    OPTIMIZER,
    SurrogateLoss,
    batch_of,
    build_tiny_model,
    copy_demonstrations,
    learner_config,
    ragged_groups,
    reference_logprobs,
    with_training_norms,
)

LORA = {"lora": {"rank": 4, "alpha": 8.0}, "optimizer": OPTIMIZER}
NEAR_BASE = SurrogateLoss(kl_coefficient=0.1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_tiny_model(tmp_path_factory.mktemp("base"))


def _learner(base: str, *, norms: bool = False, loss: SurrogateLoss = NEAR_BASE, **tables: Any) -> Learner:
    config = learner_config(**({"learner": LORA} | tables))
    return Learner(with_training_norms(config) if norms else config, base_path=base, token_loss=loss)


def _merged(learner: Learner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.named_full_tensors()}


def _parameters(learner: Learner) -> dict[str, Tensor]:
    """Of the policy in this process: the base's, under their own names, and the adapters'."""
    named = learner.policy.causal_lm.named_parameters()
    return {base_name(name): local_shards([parameter.detach()])[0].clone() for name, parameter in named}


def _logprobs(learner: Learner, samples: list[TrainSample]) -> list[FloatArray]:
    """[T] of each sample under the policy as it is trained, its adapters apart from their base."""
    layout = BatchLayout(max_tokens=100_000, packed=False, device=torch.device("cpu"))
    return PolicyMeasurements(learner.policy, layout=layout).logprobs(samples)


def _largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def _of_folder(folder: str | Path) -> dict[str, Tensor]:
    state = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}


def _saved(shards: Path) -> list[str]:
    """The names of the tensors in a checkpoint."""
    return [*FileSystemReader(shards).read_metadata().state_dict_metadata]


@pytest.mark.parametrize("tied", [True, False])
def test_the_first_policy_is_the_base(tmp_path: Path, tied: bool) -> None:
    learner = _learner(build_tiny_model(tmp_path, tied=tied))
    weights = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    if tied:
        del weights["lm_head.weight"]
    assert _largest_difference(_merged(learner), weights) == 0


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_an_update_moves_the_adapters_alone(base: str, tmp_path: Path, targets: Any) -> None:
    settings = LORA | {"lora": {"rank": 4, "target_modules": targets}}
    learner, groups = _learner(base, learner=settings), ragged_groups()
    before = _parameters(learner)
    for step in range(2):  # A gets a gradient once B isn't 0
        assert learner.update(batch_of(groups, step=step), groups).metrics["num_updates"] == 1
    moved = {name for name, tensor in _parameters(learner).items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if is_adapter(name)}
    assert len(moved) == 2 * 2 * (7 if targets == "all-linear" else 2)  # A and B in each of two blocks
    learner.save(str(tmp_path))
    moments = [name for name in _saved(tmp_path) if name.startswith("optimizer.")]
    assert moments
    assert all(is_adapter(name) for name in moments)


@pytest.mark.parametrize("rank_stabilized", [False, True])
def test_merged_weights_are_those_of_peft(base: str, rank_stabilized: bool) -> None:
    adapters = {"rank": 4, "alpha": 8.0, "rank_stabilized": rank_stabilized}
    learner, groups = _learner(base, learner=LORA | {"lora": adapters}), ragged_groups()
    for step in range(2):
        learner.update(batch_of(groups, step=step), groups)
    trained = _parameters(learner)

    settings = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", use_rslora=rank_stabilized)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings)
    for name, parameter in model.base_model.model.named_parameters():
        parameter.data.copy_(trained[base_name(name)])
    expected = model.merge_and_unload().state_dict()
    merged = _merged(learner)
    assert _largest_difference(merged, {name: expected[name] for name in merged}) < 1e-6
    assert _largest_difference(_parameters(learner), trained) == 0  # merging left the trained weights alone
    assert _largest_difference(merged, _of_folder(base)) > 1e-3


def test_an_export_has_the_log_probs_of_the_policy(base: str, tmp_path: Path) -> None:
    learner, groups = _learner(base), ragged_groups()
    for step in range(2):
        learner.update(batch_of(groups, step=step), groups)
    learner.export(str(tmp_path))
    expected = reference_logprobs(tmp_path, groups[3], 2, temperature=0.7)
    (logprobs,) = _logprobs(learner, [train_sample(groups[3], 2)])
    np.testing.assert_allclose(logprobs, expected, atol=1e-5)
    assert float((expected - reference_logprobs(base, groups[3], 2, temperature=0.7)).abs().max()) > 1e-2


def test_the_reference_is_the_base(base: str, tmp_path: Path) -> None:
    learner, groups = _learner(base), ragged_groups()
    assert learner.update(batch_of(groups), groups).metrics["kl"] == 0
    learner.export(str(tmp_path))
    differences = [
        reference_logprobs(tmp_path, group, i, temperature=0.7) - reference_logprobs(base, group, i, temperature=0.7)
        for group in groups
        for i in range(len(group.completions))
    ]
    metrics = learner.update(batch_of(groups, step=1), groups).metrics
    assert metrics["kl"] == pytest.approx(float(torch.cat(differences).mean()), abs=1e-5)
    assert abs(metrics["kl"]) > 1e-3


def test_save_and_load_go_on_as_if_nothing_had_happened(base: str, tmp_path: Path) -> None:
    learner, groups = _learner(base), ragged_groups()
    for step in range(2):
        learner.update(batch_of(groups, step=step), groups)
    learner.save(str(tmp_path / "shards"))
    expected = learner.update(batch_of(groups, step=2), groups).metrics

    resumed = _learner(base)
    resumed.load(str(tmp_path / "shards"))
    assert resumed.update(batch_of(groups, step=2), groups).metrics == expected
    assert _largest_difference(_parameters(resumed), _parameters(learner)) == 0
    assert not [name for name in _saved(tmp_path / "shards") if name.startswith(("base.", "reference."))]


def test_a_checkpoint_belongs_to_its_base(base: str, tmp_path: Path) -> None:
    _learner(base).save(str(tmp_path / "shards"))
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 5] += 1e-3
    other = shutil.copytree(base, tmp_path / "other")
    model.save_pretrained(other)
    with pytest.raises(CheckpointError, match="adapters for a base model with other weights"):
        _learner(str(other)).load(str(tmp_path / "shards"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_warm_start_trains_the_base(base: str, tmp_path: Path, dtype: str) -> None:
    settings, groups = LORA | {"dtype": dtype}, ragged_groups()
    learner = _learner(base, learner=settings)
    losses = [learner.supervised_update(copy_demonstrations())["loss"] for _ in range(30)]
    assert losses[-1] < 0.7 < 3 < losses[0]
    learner.finish_warm_start()
    learner.export(str(tmp_path / "warm"))
    assert learner.update(batch_of(groups), groups).metrics["kl"] == 0
    learner.save(str(tmp_path / "shards"))
    expected = learner.update(batch_of(groups, step=1), groups).metrics
    assert expected["kl"] != 0

    for number, start in enumerate((base, str(tmp_path / "warm"))):  # a rank is replaced; the run is resumed
        resumed = _learner(start, learner=settings)
        resumed.load(str(tmp_path / "shards"))
        resumed.save(str(tmp_path / f"again{number}"))
        assert resumed.update(batch_of(groups, step=1), groups).metrics == expected
        assert _largest_difference(_parameters(resumed), _parameters(learner)) == 0
        has_base = [name for name in _saved(tmp_path / f"again{number}") if name.startswith("base.")]
        assert bool(has_base) == (start == base)


@pytest.mark.parametrize("tied", [True, False])
def test_gradient_norms_are_those_of_the_whole_policy(tmp_path: Path, tied: bool) -> None:
    """At the first policy, which is the base, though here the embedding is frozen."""
    base, groups, results = build_tiny_model(tmp_path, tied=tied), ragged_groups(), []
    for settings in (LORA, LORA | {"activation_checkpointing": True}, {"optimizer": OPTIMIZER}):
        learner = _learner(base, norms=True, learner=settings)
        measured = learner.gradient_norms(groups)
        results.append((measured, learner.update(batch_of(groups), groups).gradient_norms))
    *with_adapters, expected = results
    for computed in with_adapters:
        for norms, expected_norms in zip(computed, expected, strict=True):
            np.testing.assert_allclose(np.concatenate(norms), np.concatenate(expected_norms), rtol=1e-4)


@pytest.mark.parametrize(
    "settings", [{"micro_batch_tokens": 40}, {"activation_checkpointing": True}], ids=["micro-batches", "checkpointing"]
)
def test_how_it_is_computed_changes_nothing(base: str, settings: dict[str, Any]) -> None:
    groups, results = ragged_groups(), []
    for changes in ({}, settings):
        learner = _learner(base, learner=LORA | changes)
        for step in range(2):
            learner.update(batch_of(groups, step=step), groups)
        results.append(_merged(learner))
    assert _largest_difference(*results) < 1e-5


def test_bfloat16_keeps_float32_adapters(base: str) -> None:
    tiny_steps = {"dtype": "bfloat16", "optimizer": {"learning_rate": 1e-6}}
    learner, groups = _learner(base, learner=LORA | tiny_steps), ragged_groups()
    before = _parameters(learner)
    learner.update(batch_of(groups), groups)
    after = _parameters(learner)
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    assert 0 < _largest_difference(before, after) < 1e-5


def test_reinforcement_learning_raises_the_reward(base: str) -> None:
    """Sampled tokens of an even number are rewarded: their probability, about a half at first, comes near 1."""
    learner, rng = _learner(base, loss=SurrogateLoss()), np.random.default_rng(0)
    asked = prompt(token_ids=[5, 9, 20])
    every_token = [completion(token_ids=[token]) for token in range(learner.policy.causal_lm.config.vocab_size)]
    vocabulary = [train_sample(group(asked, every_token), i) for i in range(len(every_token))]
    rewards = []
    for step in range(25):
        probabilities = np.exp(np.concatenate(_logprobs(learner, vocabulary)).astype(np.float64))
        rewards.append(probabilities[::2].sum())
        tokens = rng.choice(len(every_token), size=32, p=probabilities / probabilities.sum())
        sampled = group(asked, [completion(token_ids=[token]) for token in tokens], rewards=tokens % 2 == 0)
        batch = batch_of([sampled], step=step)
        batch.groups[0].advantages[:] = sampled.rewards - sampled.rewards.mean()
        learner.update(batch, [sampled])
    assert 0.2 < rewards[0] < 0.8
    assert rewards[-1] > 0.9


def test_unknown_target_modules_are_refused(base: str) -> None:
    settings = {"lora": {"target_modules": ["q_proj", "lm_head"]}}
    with pytest.raises(ConfigError, match=r"names 'lm_head', .*'down_proj', 'gate_proj', 'k_proj', .*; write some"):
        _learner(base, learner=settings)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0}, {"target_modules": []}, {"target_modules": "all"}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"lora.{next(iter(wrong))}"):
        learner_config(learner={"lora": wrong})
