"""Pooled hidden states of prompts against a plain transformers forward pass of each prompt alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from gvm_ray.learner.learner import Learner
from gvm_ray.types import FloatArray, IntArray, Pooling
from tests.learner_cases import SurrogateLoss, batch_of, build_tiny_model, learner_config, ragged_groups


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_tiny_model(tmp_path_factory.mktemp("base"))


def _learner(base: str, **settings: object) -> Learner:
    return Learner(learner_config(learner=settings), base_path=base, token_loss=SurrogateLoss())


def _prompts() -> list[IntArray]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 90, size=length).astype(np.int32) for length in (5, 1, 23, 11, 11, 2)]


@torch.no_grad()
def _one_by_one(folder: str | Path, prompts: list[IntArray], *, pooling: Pooling) -> FloatArray:
    model = AutoModelForCausalLM.from_pretrained(folder).model
    states = []
    for ids in prompts:
        hidden = model(torch.from_numpy(ids).long().unsqueeze(0)).last_hidden_state[0]
        states.append({"mean": hidden.mean(0), "last": hidden[-1], "both": torch.cat([hidden.mean(0), hidden[-1]])})
    return np.stack([state[pooling].numpy() for state in states])


@pytest.mark.parametrize("max_tokens", [1, 30, 100_000])
@pytest.mark.parametrize("pooling", ["mean", "last", "both"])
def test_equal_to_a_forward_pass_of_each_prompt_alone(base: str, pooling: Pooling, max_tokens: int) -> None:
    states = _learner(base, micro_batch_tokens=max_tokens).prompt_states(_prompts(), pooling=pooling)
    assert states.dtype == np.float32
    np.testing.assert_allclose(states, _one_by_one(base, _prompts(), pooling=pooling), atol=1e-5)


def test_of_the_present_weights_and_without_a_trace(base: str, tmp_path: Path) -> None:
    groups, measured, plain = ragged_groups(), _learner(base), _learner(base)
    measured.prompt_states(_prompts(), pooling="mean")
    assert measured.update(batch_of(groups), groups).metrics == plain.update(batch_of(groups), groups).metrics
    states = measured.prompt_states(_prompts(), pooling="mean")
    measured.export(str(tmp_path / "exported"))
    np.testing.assert_allclose(states, _one_by_one(tmp_path / "exported", _prompts(), pooling="mean"), atol=1e-5)
    assert np.abs(states - plain.prompt_states(_prompts(), pooling="mean")).max() == 0


def test_bfloat16_with_activation_checkpointing_comes_near(base: str) -> None:
    states = _learner(base, dtype="bfloat16", activation_checkpointing=True).prompt_states(_prompts(), pooling="both")
    assert states.dtype == np.float32
    np.testing.assert_allclose(states, _one_by_one(base, _prompts(), pooling="both"), atol=0.1)


def test_no_prompts_give_no_rows(base: str) -> None:
    assert _learner(base).prompt_states([], pooling="both").shape == (0, 64)
