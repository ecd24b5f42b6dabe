"""Pooled hidden states of prompts against a plain transformers forward pass of each prompt alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from gvm_ray.learner.learner import Learner
from gvm_ray.learner.sequences import common_prefix
from gvm_ray.types import FloatArray, IntArray, Pooling
from tests.learner_cases import SurrogateLoss, batch_of, build_tiny_model, learner_config, ragged_groups
from tests.model_families import build_family


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
    model = AutoModelForCausalLM.from_pretrained(folder)
    states = []
    for ids in prompts:
        hidden = model.model(torch.from_numpy(ids).long().unsqueeze(0)).last_hidden_state[0]
        mean, last = hidden.mean(0), hidden[-1]
        predicted = torch.distributions.Categorical(logits=model.lm_head(hidden) / 0.7)  # the sampling temperature
        entropy = predicted.entropy().mean().unsqueeze(0)
        states.append({"mean": mean, "last": last, "both": torch.cat([mean, last]), "entropy": entropy})
    return np.stack([state[pooling].numpy() for state in states])


@pytest.mark.parametrize("max_tokens", [1, 30, 100_000])
@pytest.mark.parametrize("pooling", ["mean", "last", "both", "entropy"])
def test_equal_to_a_forward_pass_of_each_prompt_alone(base: str, pooling: Pooling, max_tokens: int) -> None:
    states, num_tokens = _learner(base, micro_batch_tokens=max_tokens).prompt_states(_prompts(), pooling=pooling)
    assert num_tokens == 53
    assert states.dtype == np.float32
    np.testing.assert_allclose(states, _one_by_one(base, _prompts(), pooling=pooling), atol=1e-5)


def _with_prefix() -> tuple[list[IntArray], int]:
    """Prompts that begin with the same tokens, one of which has no others."""
    prefix = np.arange(30, 52, dtype=np.int32)
    rests = [*_prompts(), np.zeros(0, dtype=np.int32)]
    return [np.concatenate([prefix, rest]) for rest in rests], len(prefix)


@pytest.mark.parametrize(("max_tokens", "num_batches"), [(1, 6), (50, 3), (100_000, 1)])
@pytest.mark.parametrize("pooling", ["mean", "last", "both", "entropy"])
def test_first_tokens_of_all_prompts_are_read_once_in_a_micro_batch(
    base: str, pooling: Pooling, max_tokens: int, num_batches: int
) -> None:
    prompts, prefix = _with_prefix()
    states, num_tokens = _learner(base, micro_batch_tokens=max_tokens).prompt_states(prompts, pooling=pooling)
    np.testing.assert_allclose(states, _one_by_one(base, prompts, pooling=pooling), atol=1e-5)
    assert num_tokens == 53 + num_batches * prefix


@pytest.mark.parametrize(
    ("family", "changes", "shares"),
    [("gemma3_text", {"sliding_window": 8}, True), ("qwen2", {}, True), ("falcon_h1", {}, False)],
)
def test_families(tmp_path: Path, family: str, changes: dict[str, int], shares: bool) -> None:
    folder = str(build_family(tmp_path, family, **changes))
    prompts, prefix = _with_prefix()
    states, num_tokens = _learner(folder).prompt_states(prompts, pooling="both")
    np.testing.assert_allclose(states, _one_by_one(folder, prompts, pooling="both"), atol=2e-5)
    assert num_tokens == 53 + prefix * (1 if shares else len(prompts))


def test_padded_micro_batches_share_nothing(base: str) -> None:
    prompts, prefix = _with_prefix()
    states, num_tokens = _learner(base, packing="padded").prompt_states(prompts, pooling="both")
    np.testing.assert_allclose(states, _one_by_one(base, prompts, pooling="both"), atol=1e-5)
    assert num_tokens == 53 + prefix * len(prompts)


def test_common_prefixes() -> None:
    def ids(text: str) -> IntArray:
        return np.array([ord(letter) for letter in text], dtype=np.int32)

    cases = {"": [], "abc": ["abc"], "ab": ["abc", "ab", "abd"], "a": ["abc", "abd", "axc"], "x": ["xa", "xb", "xa"]}
    for prefix, texts in cases.items():
        assert common_prefix([ids(text) for text in texts]) == len(prefix)
    assert common_prefix([ids("a"), ids("b")]) == common_prefix([ids("ab"), ids("")]) == 0


def test_of_the_present_weights_and_without_a_trace(base: str, tmp_path: Path) -> None:
    groups, measured, plain = ragged_groups(), _learner(base), _learner(base)
    measured.prompt_states(_prompts(), pooling="mean")
    assert measured.update(batch_of(groups), groups).metrics == plain.update(batch_of(groups), groups).metrics
    states, _ = measured.prompt_states(_prompts(), pooling="mean")
    measured.export(str(tmp_path / "exported"))
    np.testing.assert_allclose(states, _one_by_one(tmp_path / "exported", _prompts(), pooling="mean"), atol=1e-5)
    assert np.abs(states - plain.prompt_states(_prompts(), pooling="mean")[0]).max() == 0


def test_bfloat16_with_activation_checkpointing_comes_near(base: str) -> None:
    learner = _learner(base, dtype="bfloat16", activation_checkpointing=True)
    states, _ = learner.prompt_states(_prompts(), pooling="both")
    assert states.dtype == np.float32
    np.testing.assert_allclose(states, _one_by_one(base, _prompts(), pooling="both"), atol=0.1)


def test_no_prompts_give_no_rows(base: str) -> None:
    states, num_tokens = _learner(base).prompt_states([], pooling="both")
    assert (states.shape, num_tokens) == ((0, 64), 0)
