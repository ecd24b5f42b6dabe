"""Batches of every algorithm against hand-computed advantages and weights; the token losses they go with."""

import functools
import math
import pickle
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from gvm_ray.algorithms import create_algorithm, token_loss
from gvm_ray.config.strategy import (
    AlgorithmSettings,
    CustomAlgorithmConfig,
    DrGRPOConfig,
    GRPOConfig,
    ImportanceConfig,
    KLConfig,
    RaftConfig,
    RaftPlusPlusConfig,
    ReinforcePlusPlusConfig,
    RLOOConfig,
)
from gvm_ray.functional.losses import ImportanceCorrection
from gvm_ray.protocols import Algorithm
from gvm_ray.types import EstimatorTerms, GroupOutcome, GroupRef, TrainBatch

NAN = float("nan")
ALL_CONFIGS = [
    RaftConfig,
    RaftPlusPlusConfig,
    GRPOConfig,
    DrGRPOConfig,
    RLOOConfig,
    ReinforcePlusPlusConfig,
    functools.partial(CustomAlgorithmConfig, path="examples.custom_algorithm:MeanNormalised"),
]


def outcome(prompt_id: str, rewards: Sequence[float], *, num_tokens: Sequence[int] | None = None, ref: str = ""):
    count = len(rewards)
    return GroupOutcome(
        prompt_id=prompt_id,
        sample_indices=tuple(range(count)),
        rewards=np.array(rewards, dtype=np.float64),
        num_tokens=np.array(num_tokens or [10] * count, dtype=np.int32),
        policy_versions=np.zeros(count, dtype=np.int32),
        truncated=np.arange(count) == 0,
        ref=GroupRef(ref=ref or prompt_id, index=0),
    )


def build(config: AlgorithmSettings, outcomes, *, accept_rates=None, num_prompts: int = 4, **terms) -> TrainBatch:
    algorithm = create_algorithm(config, accept_threshold=0.5)
    terms = EstimatorTerms(num_prompts=num_prompts, accept_rates=accept_rates or {}, **terms)
    return algorithm.build_batch(outcomes, step=3, terms=terms)


def by_ref(batch: TrainBatch, name: str) -> dict[str, list]:
    return {group.ref.ref: getattr(group, name).tolist() for group in batch.groups}


# Prompt a in two rounds, b all right, c all wrong; one sample of a is unscored.
OUTCOMES = [
    outcome("a", [1.0, 0.0], num_tokens=[2, 4], ref="a1"),
    outcome("b", [1.0, 1.0], num_tokens=[6, 8]),
    outcome("a", [NAN, 1.0, 0.0], num_tokens=[1, 3, 5], ref="a2"),
    outcome("c", [0.0, 0.0], num_tokens=[7, 9]),
]


@pytest.mark.parametrize("config", [RaftConfig(), RaftPlusPlusConfig()])
def test_raft_trains_on_the_accepted_samples_alone(config) -> None:
    batch = build(config, OUTCOMES)
    assert by_ref(batch, "sample_indices") == {"a1": [0], "b": [0, 1], "a2": [1]}
    assert by_ref(batch, "advantages") == {"a1": [1.0], "b": [1.0, 1.0], "a2": [1.0]}
    assert by_ref(batch, "num_tokens") == {"a1": [2], "b": [6, 8], "a2": [3]}
    assert (batch.step, batch.num_samples) == (3, 4)


def test_weights_of_raft() -> None:
    # prompt_mean: 1 / (m k), k = 2 accepted of a, 2 of b
    batch = build(RaftConfig(weighting="prompt_mean"), OUTCOMES)
    assert by_ref(batch, "weights") == {"a1": [1 / 8], "b": [1 / 8, 1 / 8], "a2": [1 / 8]}
    # inverse: 1 / (m n p): a has n = 4 scored and p from the allocator; b's own rate is 1, n = 2
    batch = build(RaftConfig(weighting="inverse"), OUTCOMES, accept_rates={"a": 0.25})
    assert by_ref(batch, "weights") == {"a1": [1 / 4], "b": [1 / 8, 1 / 8], "a2": [1 / 4]}
    # token_mean: 1 / (2 + 6 + 8 + 3) accepted tokens
    batch = build(RaftConfig(weighting="token_mean"), OUTCOMES)
    np.testing.assert_allclose(np.concatenate([g.weights for g in batch.groups]), [1 / 19] * 4)


def test_inverse_weighting_with_the_groups_own_rates_is_the_prompt_mean() -> None:
    inverse = build(RaftConfig(weighting="inverse"), OUTCOMES)
    prompt_mean = build(RaftConfig(weighting="prompt_mean"), OUTCOMES)
    assert by_ref(inverse, "weights") == by_ref(prompt_mean, "weights")


def test_inverse_weighting_is_unbiased_for_the_sum_over_prompts() -> None:
    """E[sum of weights of a prompt's accepted samples] = 1 / m whatever n is, when p is the true rate."""
    p, n = 0.3, 5
    expected = 0.0
    for accepted in range(n + 1):
        probability = math.comb(n, accepted) * p**accepted * (1 - p) ** (n - accepted)
        rewards = [1.0] * accepted + [0.0] * (n - accepted)
        batch = build(RaftConfig(weighting="inverse"), [outcome("a", rewards)], accept_rates={"a": p}, num_prompts=2)
        expected += probability * sum(group.weights.sum() for group in batch.groups)
    assert expected == pytest.approx(1 / 2, rel=1e-12)


def test_grpo_statistics_span_the_rounds_of_a_prompt() -> None:
    # a: rewards 1, 0, 1, 0: mean 1/2, sample std sqrt(1/3); b and c have no signal
    batch = build(GRPOConfig(epsilon=1e-9), OUTCOMES)
    value = 0.5 / (math.sqrt(1 / 3) + 1e-9)
    assert by_ref(batch, "sample_indices") == {"a1": [0, 1], "a2": [1, 2]}
    for advantages in by_ref(batch, "advantages").values():
        assert advantages == pytest.approx([value, -value], rel=1e-12)


@pytest.mark.parametrize(
    ("config", "advantage"), [(DrGRPOConfig(), 1 / 2), (RLOOConfig(), 2 / 3)], ids=["dr_grpo", "rloo"]
)
def test_dr_grpo_and_rloo(config, advantage: float) -> None:
    batch = build(config, OUTCOMES)
    for advantages in by_ref(batch, "advantages").values():
        assert advantages == pytest.approx([advantage, -advantage], rel=1e-12)


def test_reinforce_plus_plus_normalises_over_the_batch() -> None:
    # rewards 1 0 1 1 1 0 0 0: mean 1/2, sample std sqrt(8/4 / 7)
    batch = build(ReinforcePlusPlusConfig(epsilon=1e-9), OUTCOMES)
    value = 0.5 / (math.sqrt(2 / 7) + 1e-9)
    assert by_ref(batch, "advantages") == {
        "a1": pytest.approx([value, -value]),
        "b": pytest.approx([value, value]),
        "a2": pytest.approx([value, -value]),
        "c": pytest.approx([-value, -value]),
    }


def test_weights_of_an_algorithm_with_a_baseline() -> None:
    # prompt_mean and inverse: 1 / (m n), n = 4 scored samples of a
    for weighting in ("prompt_mean", "inverse"):
        batch = build(GRPOConfig(weighting=weighting), OUTCOMES, accept_rates={"a": 0.1})
        assert by_ref(batch, "weights") == {"a1": [1 / 16, 1 / 16], "a2": [1 / 16, 1 / 16]}
    # token_mean: over all scored tokens, those without a gradient too: 2 + 4 + 6 + 8 + 3 + 5 + 7 + 9 = 44
    batch = build(GRPOConfig(weighting="token_mean"), OUTCOMES)
    np.testing.assert_allclose(np.concatenate([g.weights for g in batch.groups]), [1 / 44] * 4)


@pytest.mark.parametrize("terms", [{"kl": KLConfig(coefficient=0.1)}, {"entropy_coefficient": 0.1}])
def test_samples_without_advantage_are_kept_for_the_other_terms(terms) -> None:
    batch = build(GRPOConfig(**terms), OUTCOMES)
    assert by_ref(batch, "sample_indices") == {"a1": [0, 1], "b": [0, 1], "a2": [1, 2], "c": [0, 1]}
    assert batch.metrics["groups/with_signal"] == 1


def test_metrics() -> None:
    metrics = build(GRPOConfig(), OUTCOMES, num_prompts=4).metrics  # a fourth prompt got no samples
    value = 0.5 / (math.sqrt(1 / 3) + 1e-6)
    assert metrics == pytest.approx(
        {
            "reward/mean": 0.5,
            "reward/std": 0.5,
            "reward/accept_rate": 0.5,
            "groups/with_signal": 1,
            "groups/no_signal": 3,
            "samples/kept": 4,
            "samples/not_kept": 0,
            "samples/unscored": 1,
            "samples/truncated_fraction": 4 / 9,
            "length/mean": 5.0,
            "length/max": 9,
            "advantage/mean_abs": value / 2,
        }
    )


@pytest.mark.parametrize("config_class", ALL_CONFIGS)
@pytest.mark.parametrize("outcomes", [[], [outcome("a", [])], [outcome("a", [NAN, NAN])], [outcome("a", [0.0])]])
def test_no_signal_gives_an_empty_batch(config_class, outcomes) -> None:
    batch = build(config_class(), outcomes, num_prompts=1)
    assert batch.groups == ()
    assert batch.metrics["groups/no_signal"] == 1
    assert batch.metrics["samples/kept"] == 0


@pytest.mark.parametrize("config_class", ALL_CONFIGS)
@pytest.mark.parametrize("weighting", ["prompt_mean", "inverse", "token_mean"])
def test_every_algorithm_on_ragged_groups(config_class, weighting: str) -> None:
    rng = np.random.default_rng(0)
    outcomes = [outcome(str(n), rng.integers(0, 2, n).tolist()) for n in (0, 1, 2, 37)]
    algorithm = create_algorithm(config_class(weighting=weighting), accept_threshold=0.5)
    assert isinstance(algorithm, Algorithm)
    batch = algorithm.build_batch(outcomes, step=0, terms=EstimatorTerms(num_prompts=4))
    assert 0 < batch.num_samples <= 40
    for group in batch.groups:
        assert len(group.sample_indices) == len(group.advantages) == len(group.weights) == len(group.num_tokens)
        assert group.sample_indices.dtype == np.int32
        assert (group.weights > 0).all()


@pytest.mark.parametrize("config_class", ALL_CONFIGS)
def test_token_loss_has_the_gradient_of_its_algorithm(config_class) -> None:
    """On policy, every loss has the gradient -A of the log-likelihood, with or without the ratio."""
    loss_function = pickle.loads(pickle.dumps(token_loss(config_class())))
    assert not loss_function.needs_reference
    assert not loss_function.needs_entropy
    logprobs = torch.tensor([[-0.5, -1.0], [-2.0, -0.1]], requires_grad=True)
    frozen = logprobs.detach()
    loss, diagnostics = loss_function(
        logprobs=logprobs,
        old_logprobs=frozen,
        engine_logprobs=frozen,
        ref_logprobs=None,
        entropy=None,
        advantages=torch.tensor([[1.0], [-2.0]]),
        mask=torch.ones(2, 2, dtype=torch.bool),
    )
    loss.sum().backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-1.0, -1.0], [2.0, 2.0]]))
    assert all(value.shape == (2, 2) for value in diagnostics.values())


def test_only_raft_has_no_clip() -> None:
    arguments = {
        "logprobs": torch.zeros(1, 1),
        "old_logprobs": torch.full((1, 1), -1.0),
        "engine_logprobs": torch.full((1, 1), -1.0),
        "ref_logprobs": None,
        "entropy": None,
        "advantages": torch.ones(1, 1),
        "mask": torch.ones(1, 1, dtype=torch.bool),
    }
    clipped = {
        config_class: token_loss(config_class())(**arguments)[1]["clip_fraction"].item() for config_class in ALL_CONFIGS
    }
    assert clipped == {config_class: float(config_class is not RaftConfig) for config_class in ALL_CONFIGS}


def test_importance_settings_reach_the_loss() -> None:
    off = token_loss(GRPOConfig(importance=ImportanceConfig(level="off")))
    assert off.importance is None
    masked = token_loss(GRPOConfig(importance=ImportanceConfig(level="sequence", mode="mask", cap=3.0, floor=0.25)))
    assert masked.importance == ImportanceCorrection(level="sequence", mode="mask", cap=3.0, floor=0.25)
    assert token_loss(GRPOConfig()).importance == ImportanceCorrection(level="token", mode="truncate", cap=2.0)


def test_token_loss_asks_for_what_its_terms_need() -> None:
    loss_function = token_loss(GRPOConfig(kl=KLConfig(coefficient=0.1, kind="k2"), entropy_coefficient=0.01))
    assert loss_function.needs_reference
    assert loss_function.needs_entropy
    zeros = torch.zeros(1, 1)
    with pytest.raises(ValueError, match=r"kl_coefficient=0\.1 needs ref_logprobs"):
        loss_function(
            logprobs=zeros,
            old_logprobs=zeros,
            engine_logprobs=zeros,
            ref_logprobs=None,
            entropy=zeros,
            advantages=zeros,
            mask=zeros == 0,
        )


def test_samples_that_the_allocator_does_not_keep_are_no_part_of_the_group() -> None:
    batch = build(DrGRPOConfig(), [outcome("a", [1.0, 1.0, 0.0, 0.0])], kept={"a": (0, 2, 3)}, num_prompts=1)
    assert by_ref(batch, "sample_indices") == {"a": [0, 2, 3]}
    assert by_ref(batch, "advantages")["a"] == pytest.approx([2 / 3, -1 / 3, -1 / 3])
    assert by_ref(batch, "weights")["a"] == pytest.approx([1 / 3] * 3)
    assert (batch.metrics["samples/not_kept"], batch.metrics["samples/unscored"]) == (1, 0)


@pytest.mark.parametrize("config_class", [GRPOConfig, DrGRPOConfig, RLOOConfig])
def test_the_allocator_s_baseline_takes_the_group_s_place(config_class) -> None:
    outcomes = [outcome("a", [1.0]), outcome("b", [1.0, 0.0])]
    batch = build(config_class(), outcomes, baselines={"a": 0.25}, scales={"a": 0.5}, num_prompts=2)
    without = build(config_class(), outcomes, num_prompts=2)
    assert by_ref(batch, "advantages")["a"] == [1.5]
    assert by_ref(batch, "advantages")["b"] == by_ref(without, "advantages")["b"]
    assert "a" not in by_ref(without, "advantages")  # alone, a sample is its own mean


@pytest.mark.parametrize("weighting", ["prompt_mean", "inverse", "token_mean"])
def test_prompt_weights_multiply_the_samples_weights(weighting) -> None:
    plain = by_ref(build(RaftConfig(weighting=weighting), OUTCOMES), "weights")
    given = by_ref(build(RaftConfig(weighting=weighting), OUTCOMES, prompt_weights={"a": 3.0}), "weights")
    assert given["a1"] == pytest.approx([3 * weight for weight in plain["a1"]])
    assert given["b"] == plain["b"]
