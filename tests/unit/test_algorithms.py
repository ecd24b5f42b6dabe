"""Batches of every algorithm against hand-computed advantages and weights; the token losses they go with."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from gvm_ray.algorithms import create_algorithm, token_loss
from gvm_ray.config.strategy import (
    AlgorithmSettings,
    DrGRPOConfig,
    GRPOConfig,
    ImportanceConfig,
    KLConfig,
    RaftConfig,
    RaftPlusPlusConfig,
    ReinforcePlusPlusConfig,
    RLOOConfig,
    Weighting,
)
from gvm_ray.exceptions import ConfigError
from gvm_ray.maths.losses import ImportanceCorrection
from gvm_ray.types import EstimatorTerms, TrainBatch
from tests import builders
from tests.builders import NAN


def outcome(prompt_id: str, rewards: Sequence[float], *, num_tokens: Sequence[int] | None = None, ref: str = ""):
    """Samples of which the first one was cut."""
    return builders.outcome(
        prompt_id,
        rewards,
        num_tokens=num_tokens or [10] * len(rewards),
        truncated=[index == 0 for index in range(len(rewards))],
        ref=ref or prompt_id,
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
    # inverse: 1 / (m n p), p from the allocator: a has n = 4 scored samples and b 2
    batch = build(RaftConfig(weighting="inverse"), OUTCOMES, accept_rates={"a": 0.25, "b": 1, "c": 0.5})
    assert by_ref(batch, "weights") == {"a1": [1 / 4], "b": [1 / 8, 1 / 8], "a2": [1 / 4]}
    # token_mean: 1 / (2 + 6 + 8 + 3) accepted tokens
    batch = build(RaftConfig(weighting="token_mean"), OUTCOMES)
    np.testing.assert_allclose(np.concatenate([g.weights for g in batch.groups]), [1 / 19] * 4)


# A policy with three responses to each prompt: probability, reward, and gradient of ln pi.
RESPONSES = {"a": ((0.2, 1.0, 3.0), (0.1, 1.0, -6.0), (0.7, 0.0, 5.0)), "b": ((0.5, 1.0, 2.0), (0.5, 0.0, 7.0))}
TRUE_RATES = {"a": 0.3, "b": 0.5}
# Mean gradient of the accepted responses: a (0.2 * 3 - 0.1 * 6) / 0.3 = 0, b 2
MEAN_GRADIENTS = {"a": 0.0, "b": 2.0}


def expectation(weighting: Weighting, sizes: dict[str, int], **terms) -> tuple[float, dict[str, float]]:
    """E[sum of weight x gradient] over all that can be sampled of RESPONSES, and E[sum of weights] of each prompt."""
    estimate, masses = 0.0, dict.fromkeys(sizes, 0.0)
    per_prompt = [itertools.product(RESPONSES[id_], repeat=n) for id_, n in sizes.items()]
    for drawn in itertools.product(*per_prompt):
        outcomes = [outcome(id_, [r for _, r, _ in group]) for id_, group in zip(sizes, drawn, strict=True)]
        probability = math.prod(p for group in drawn for p, _, _ in group)
        batch = build(RaftConfig(weighting=weighting), outcomes, num_prompts=len(sizes), **terms)
        for group in batch.groups:
            gradients = [drawn[list(sizes).index(group.prompt_id)][i][2] for i in group.sample_indices]
            estimate += probability * float(group.weights @ gradients)
            masses[group.prompt_id] += probability * float(group.weights.sum())
    return estimate, masses


def test_inverse_weighting_is_unbiased_with_the_true_accept_rates() -> None:
    """Lemma 1 by exact enumeration: every prompt's mean accepted gradient counts 1 / m, whatever n is."""
    estimate, masses = expectation("inverse", {"a": 3, "b": 2}, accept_rates=TRUE_RATES)
    assert estimate == pytest.approx((MEAN_GRADIENTS["a"] + MEAN_GRADIENTS["b"]) / 2, rel=1e-12)
    assert masses == pytest.approx({"a": 1 / 2, "b": 1 / 2}, rel=1e-12)


def test_an_accept_rate_that_is_off_scales_its_prompt_alone() -> None:
    _, masses = expectation("inverse", {"a": 3, "b": 2}, accept_rates={"a": 0.6, "b": 0.5})
    assert masses == pytest.approx({"a": 0.3 / 0.6 / 2, "b": 1 / 2}, rel=1e-12)


def test_the_prompt_mean_leaves_out_prompts_without_accepted_samples() -> None:
    """So would dividing by the samples' own rate: each prompt counts as often as it has an accepted sample."""
    estimate, masses = expectation("prompt_mean", {"a": 3, "b": 2})
    assert masses == pytest.approx({"a": (1 - 0.7**3) / 2, "b": (1 - 0.5**2) / 2}, rel=1e-12)
    assert estimate == pytest.approx(0.75 * MEAN_GRADIENTS["b"] / 2, rel=1e-12)


def test_inverse_weighting_leaves_the_pilots_out_of_the_sum() -> None:
    """Whatever the pilots were, and the accept rate that they told, the sum is that of the other samples."""
    first = outcome("a", [1.0, 1.0])
    second = dataclasses.replace(outcome("a", [1.0, 0.0, 1.0], ref="a2"), sample_indices=(2, 3, 4))
    terms = {"accept_rates": {"a": 0.75}, "pilots": {"a": (0, 1)}}
    batch = build(RaftConfig(weighting="inverse"), [first, second], num_prompts=1, **terms)
    assert by_ref(batch, "sample_indices") == {"a2": [0, 2]}
    assert by_ref(batch, "weights")["a2"] == pytest.approx([1 / (3 * 0.75)] * 2)
    assert batch.metrics["samples/kept"] == 2
    everything = build(RaftConfig(), [first, second], num_prompts=1, **terms)  # other weightings take them all
    assert by_ref(everything, "weights") == {"a": [1 / 4, 1 / 4], "a2": [1 / 4, 1 / 4]}
    only_pilots = build(RaftConfig(weighting="inverse"), [first], num_prompts=1, **terms)
    assert only_pilots.groups == ()


def test_inverse_weighting_counts_kept_samples_and_takes_an_empty_group() -> None:
    outcomes = [outcome("a", [1.0, 1.0, 0.0, NAN]), outcome("b", [])]
    rates = {"a": 0.5, "b": 0.5}
    batch = build(RaftConfig(weighting="inverse"), outcomes, accept_rates=rates, kept={"a": (0, 2, 3)}, num_prompts=2)
    assert by_ref(batch, "weights") == {"a": [1 / (2 * 2 * 0.5)]}


@pytest.mark.parametrize("rate", [None, 0.0, 1.5, NAN])
def test_inverse_weighting_refuses_a_prompt_without_an_accept_rate(rate: float | None) -> None:
    rates = {"a": 0.5, "c": 0.5} | ({} if rate is None else {"b": rate})
    with pytest.raises(ConfigError, match=rf"reports {rate} for 'b'; give every sampled prompt a rate in \(0, 1\]"):
        build(RaftConfig(weighting="inverse"), OUTCOMES, accept_rates=rates)


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
            "groups/alone": 0,
            "samples/kept": 4,
            "samples/not_kept": 0,
            "samples/unscored": 1,
            "samples/truncated_fraction": 4 / 9,
            "length/mean": 5.0,
            "length/max": 9,
            "advantage/mean_abs": value / 2,
        }
    )


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


@pytest.mark.parametrize(
    ("config", "advantage"),
    [
        (GRPOConfig(), 1.5),
        (DrGRPOConfig(), 0.75),
        (RLOOConfig(), 0.75),
        (ReinforcePlusPlusConfig(advantage_normalization="none"), 0.75),
    ],
)
def test_grpo_alone_divides_by_the_predicted_deviation(config, advantage: float) -> None:
    batch = build(config, [outcome("a", [1.0])], baselines={"a": 0.25}, deviations={"a": 0.5}, num_prompts=1)
    assert by_ref(batch, "advantages")["a"] == [advantage]


@pytest.mark.parametrize("config_class", [GRPOConfig, DrGRPOConfig, RLOOConfig, ReinforcePlusPlusConfig])
@pytest.mark.parametrize("over", ["samples", "tokens"])
def test_advantages_are_normalised_after_the_allocator_s_baselines(config_class, over: str) -> None:
    outcomes = [outcome("a", [1.0], num_tokens=[1]), outcome("b", [0.0, NAN], num_tokens=[3, 9])]
    config = config_class(advantage_normalization=over)
    batch = build(config, outcomes, baselines={"a": 0.5, "b": 0.25}, scales={"b": 0.5}, num_prompts=2)
    # A = 1/2 and -1/2; over samples mean 0 and variance 1/2, over tokens mean -1/4 and variance (9/16 + 3/16) / 3 = 1/4
    expected = {"samples": [0.5**0.5, -(0.5**0.5)], "tokens": [1.5, -0.5]}[over]
    assert [*by_ref(batch, "advantages")["a"], *by_ref(batch, "advantages")["b"]] == pytest.approx(expected, rel=1e-5)
    assert config.mixes_prompts


def test_groups_of_equal_rewards_train_where_advantages_are_shrunk_to_other_groups() -> None:
    outcomes = [outcome("a", [1.0, 0.0]), outcome("b", [1.0, 1.0]), outcome("c", [0.0, 0.0]), outcome("d", [0.0, 1.0])]
    batch = build(RLOOConfig(shrinkage=True), outcomes)  # as worked out in test_advantages.py
    assert by_ref(batch, "advantages")["b"] == pytest.approx([1 / 2, 1 / 2], rel=1e-12)
    assert by_ref(batch, "advantages")["c"] == pytest.approx([-1 / 2, -1 / 2], rel=1e-12)
    with pytest.raises(ValueError, match=r"tolerance=0\.1 takes rewards .*; leave out one of them"):
        RLOOConfig(shrinkage=True, tolerance=0.1)


@pytest.mark.parametrize("weighting", ["prompt_mean", "inverse", "token_mean"])
def test_prompt_weights_multiply_the_samples_weights(weighting) -> None:
    rates = {"a": 0.5, "b": 0.5, "c": 0.5}
    plain = by_ref(build(RaftConfig(weighting=weighting), OUTCOMES, accept_rates=rates), "weights")
    weighted = build(RaftConfig(weighting=weighting), OUTCOMES, accept_rates=rates, prompt_weights={"a": 3.0})
    given = by_ref(weighted, "weights")
    assert given["a1"] == pytest.approx([3 * weight for weight in plain["a1"]])
    assert given["b"] == plain["b"]
