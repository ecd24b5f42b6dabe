"""GVM's rounds and blocks against hand-computed sample sizes."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from gvm_ray.allocators import GVMAllocator
from gvm_ray.config.strategy import GVMAllocatorConfig
from gvm_ray.exceptions import ConfigError
from gvm_ray.types import Allocation, GroupOutcome, GroupRef, Prompt

NAN = float("nan")

# Without a prior and with a vanishing alpha, w = G / sqrt(p): 1 / sqrt(1/4) = 2, 2 / sqrt(1) = 2, 2 / sqrt(1/4) = 4.
PILOTS = {"a": ([1, 0, 0, 0], 1.0), "b": ([1, 1, 1, 1], 2.0), "c": ([0, 0, 0, 1], 2.0)}


def config(**settings) -> GVMAllocatorConfig:
    return GVMAllocatorConfig(**{"alpha": 1e-15, "prior_successes": 0, "prior_failures": 0, **settings})


def prompts(ids: str) -> list[Prompt]:
    return [Prompt(prompt_id=id_, text=id_, token_ids=np.zeros(1, dtype=np.int32), answer="1") for id_ in ids]


def outcome(prompt_id: str, rewards: Sequence[float], norm: float = NAN, *, version: int = 0) -> GroupOutcome:
    """Every sample, accepted or not, has the norm; a wrong one's must not count, so it is made huge."""
    values = np.array(rewards, dtype=np.float64)
    return GroupOutcome(
        prompt_id=prompt_id,
        rewards=values,
        num_tokens=np.full(len(values), 3, dtype=np.int32),
        policy_versions=np.full(len(values), version, dtype=np.int32),
        truncated=np.zeros(len(values), dtype=np.bool_),
        ref=GroupRef(ref=prompt_id, index=0),
        gradient_norms=np.where(values >= 0.5, norm, 1e9),
    )


def pilots(results: Mapping[str, tuple[Sequence[float], float]]) -> list[GroupOutcome]:
    return [outcome(id_, rewards, norm) for id_, (rewards, norm) in results.items()]


def after_pilots(settings: GVMAllocatorConfig, *, budget: int = 24) -> tuple[GVMAllocator, Allocation]:
    allocator = GVMAllocator(settings, accept_threshold=0.5)
    allocator.plan(prompts("abc"), budget=budget)
    return allocator, allocator.observe(pilots(PILOTS))


def test_pilots_come_first_and_are_measured() -> None:
    for reuse in (True, False):
        allocator = GVMAllocator(config(pilot_samples=3, reuse_pilots=reuse), accept_threshold=0.5)
        round_one = allocator.plan(prompts("abc"), budget=24)
        assert round_one.counts == {"a": 3, "b": 3, "c": 3}
        assert round_one.needs_gradient_norms
        assert round_one.trained_on is reuse


def test_reused_pilots_are_part_of_the_sample_sizes() -> None:
    allocator, round_two = after_pilots(config())
    # 24 over weights 2, 2, 4: 6, 6, 12, of which 4 each are drawn
    assert round_two.counts == {"a": 2, "b": 2, "c": 8}
    assert round_two.trained_on
    assert not round_two.needs_gradient_norms
    assert allocator.observe([outcome("a", [0, 0])]).total == 0
    assert allocator.metrics() == pytest.approx(
        {
            "allocation/min": 6,
            "allocation/max": 12,
            "allocation/zero": 0,
            "allocation/total": 24,
            "allocation/p_hat_mean": 0.5,
            "allocation/gradient_norm_mean": 5 / 3,
        }
    )


def test_pilots_that_only_inform_are_charged_all_the_same() -> None:
    allocator, round_two = after_pilots(config(reuse_pilots=False))
    # 24 - 12 = 12 over weights 2, 2, 4
    assert round_two.counts == {"a": 3, "b": 3, "c": 6}
    assert allocator.metrics()["allocation/total"] == 12


def test_the_pilots_are_a_floor_on_a_reused_total() -> None:
    allocator = GVMAllocator(config(), accept_threshold=0.5)
    allocator.plan(prompts("ab"), budget=12)
    # weights 100 and 1: b keeps its 4 pilots, a gets the rest, 8
    assert allocator.observe(pilots({"a": ([1] * 4, 100.0), "b": ([1] * 4, 1.0)})).counts == {"a": 4, "b": 0}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_samples": 10}, {"a": 3, "b": 3, "c": 6}),  # c 10, the 14 others over weights 2, 2
        ({"min_samples": 7}, {"a": 3, "b": 3, "c": 6}),  # floors 7 and 7, c 10
        ({"filter_threshold": 0.9}, {"a": 3, "b": 0, "c": 9}),  # b keeps its pilots; 20 over weights 2, 4
        ({"min_expected_accepted": 2.0}, {"a": 0, "b": 3, "c": 9}),  # a: 6 / 4 < 2
    ],
)
def test_bounds_and_filters(settings, expected) -> None:
    _, round_two = after_pilots(config(**settings))
    assert round_two.counts == expected


def test_everything_filtered_out_is_spent_uniformly() -> None:
    _, round_two = after_pilots(config(filter_threshold=0.1))
    assert round_two.counts == {"a": 4, "b": 4, "c": 4}
    _, round_two = after_pilots(config(min_expected_accepted=100))
    assert round_two.counts == {"a": 4, "b": 4, "c": 4}


@pytest.mark.parametrize(
    "results",
    [
        {"a": ([0, 0, 0, 0], 1.0), "b": ([0, 0, 0, 0], 1.0)},
        {"a": ([NAN] * 4, 1.0), "b": ([NAN] * 4, 1.0)},
        {"a": ([1, 0, 0, 0], NAN), "b": ([1, 1, 1, 1], NAN)},
        {},
    ],
    ids=["none accepted", "none scored", "no norms", "no outcomes"],
)
@pytest.mark.parametrize("prior", [0.0, 0.5])
def test_without_signal_the_split_is_uniform(results, prior: float) -> None:
    allocator = GVMAllocator(config(prior_successes=prior, prior_failures=prior), accept_threshold=0.5)
    allocator.plan(prompts("ab"), budget=16)
    assert allocator.observe(pilots(results)).counts == {"a": 4, "b": 4}


def test_a_prompt_without_accepted_pilots_gets_the_priors_rate_and_the_mean_norm() -> None:
    results = {"a": ([1, 1, 1, 1], 2.0), "b": ([0, 0, 0, 0], 7.0), "c": ([1, 1, 1, 1], 4.0)}
    allocator = GVMAllocator(config(prior_successes=1, prior_failures=0, pilot_samples=4), accept_threshold=0.5)
    allocator.plan(prompts("abc"), budget=60)
    # p: 1, (0 + 1) / (4 + 1) = 0.2, 1; G: 2, (2 + 4) / 2 = 3, 4; w: 2, 3 / sqrt(0.2) = 6.708, 4
    total = 2 + 3 / np.sqrt(0.2) + 4
    round_two = allocator.observe(pilots(results))
    for prompt_id, weight in {"a": 2, "b": 3 / np.sqrt(0.2), "c": 4}.items():
        assert abs(round_two.counts[prompt_id] + 4 - 60 * weight / total) < 1
    # as published, without a prior: nothing more for b
    allocator = GVMAllocator(config(), accept_threshold=0.5)
    allocator.plan(prompts("abc"), budget=60)
    assert allocator.observe(pilots(results)).counts["b"] == 0


def test_several_outcomes_of_one_prompt_are_one_pilot_group() -> None:
    allocator = GVMAllocator(config(), accept_threshold=0.5)
    allocator.plan(prompts("abc"), budget=24)
    split = [outcome("b", [1], 5.0), outcome("c", [0, 1], 2.0), outcome("a", [1, 0, 0, 0], 1.0)]
    split += [outcome("c", [0, 0], 2.0), outcome("b", [1, 1, 1], 1.0)]  # b: mean norm (5 + 1 + 1 + 1) / 4 = 2
    assert allocator.observe(split).counts == {"a": 2, "b": 2, "c": 8}


def test_a_block_of_steps_shares_one_pilot_round() -> None:
    allocator = GVMAllocator(config(block_steps=3), accept_threshold=0.5)
    round_one = allocator.plan(prompts("a"), budget=8, upcoming=prompts("bc"))
    assert round_one.counts == {"a": 4, "b": 4, "c": 4}
    assert allocator.observe(pilots(PILOTS)).counts == {"a": 2}  # the block's 24: 6, 6, 12
    assert allocator.observe([outcome("a", [1, 1])]).total == 0
    assert allocator.metrics()["allocation/total"] == 6
    later = allocator.plan(prompts("b"), budget=8)
    assert later.counts == {"b": 2}
    assert not later.needs_gradient_norms
    assert allocator.observe([outcome("b", [1, 0])]).total == 0
    assert allocator.accept_rates(["a", "b", "c"]) == pytest.approx({"a": 3 / 6, "b": 5 / 6, "c": 1 / 4})
    assert allocator.plan(prompts("c"), budget=8, upcoming=prompts("xy")).counts == {"c": 8}
    assert allocator.metrics()["allocation/total"] == 12
    # the block is spent: the next plan begins with pilots
    assert allocator.plan(prompts("b"), budget=8).needs_gradient_norms


def test_a_plan_for_other_prompts_begins_a_new_block() -> None:
    allocator = GVMAllocator(config(block_steps=2), accept_threshold=0.5)
    allocator.plan(prompts("a"), budget=8, upcoming=prompts("b"))
    allocator.observe(pilots(PILOTS))
    assert allocator.plan(prompts("c"), budget=8).needs_gradient_norms
    allocator.observe(pilots({"c": PILOTS["c"]}))
    assert allocator.plan(prompts("b"), budget=8).needs_gradient_norms


def test_a_prompt_that_stands_twice_gets_a_share_for_each_time() -> None:
    allocator = GVMAllocator(config(block_steps=2, max_samples=6), accept_threshold=0.5)
    round_one = allocator.plan(prompts("aa"), budget=12, upcoming=prompts("ab"))
    assert round_one.counts == {"a": 12, "b": 4}
    now = allocator.observe([outcome("a", [1] * 12, 1.0), outcome("b", [1] * 4, 1.0)])
    assert now.counts == {"a": 4}
    assert allocator.plan(prompts("ba"), budget=12).counts == {"b": 2, "a": 2}


def test_nothing_left_after_the_pilots_ends_the_step() -> None:
    allocator = GVMAllocator(config(), accept_threshold=0.5)
    allocator.plan(prompts("abc"), budget=12)
    assert allocator.observe(pilots(PILOTS)).total == 0
    assert allocator.accept_rates(["a"]) == {"a": 0.25}  # folded, though no second round will be observed
    assert allocator.plan(prompts("abc"), budget=24).counts == {"a": 4, "b": 4, "c": 4}
    assert allocator.observe(pilots(PILOTS)).counts == {"a": 2, "b": 2, "c": 8}


def test_memory_accumulates_over_blocks_and_keeps_the_latest_norm() -> None:
    allocator = GVMAllocator(config(), accept_threshold=0.5)
    for version, norm in ((0, 1.0), (1, 3.0)):
        allocator.plan(prompts("a"), budget=8)
        allocator.observe([outcome("a", [1, 0, NAN, 0], norm, version=version)])
        allocator.observe([outcome("a", [1, 1, 0, 0], version=version)])
    state = json.loads(json.dumps(allocator.state_dict()))
    assert state["prompts"]["a"] == {"trials": 14.0, "successes": 6.0, "gradient_norm": 3.0, "policy_version": 1}
    assert allocator.accept_rates(["a"]) == pytest.approx({"a": 3 / 7})


def test_histograms_are_aligned_by_prompt() -> None:
    allocator, _ = after_pilots(config())
    allocator.observe([outcome("c", [1] * 8)])
    histograms = allocator.histograms()
    assert histograms["samples_per_prompt"].tolist() == [6, 6, 12]
    np.testing.assert_allclose(histograms["accept_rate"], [1 / 4, 1, 9 / 12])


@pytest.mark.parametrize(
    ("settings", "budget", "message"),
    [
        ({}, 11, "a budget of 11 samples for 3 prompts is below the 12"),
        ({"min_samples": 6}, 17, "below the 18"),
        ({"reuse_pilots": False, "min_samples": 2}, 17, "below the 18"),
        ({"max_samples": 5}, 16, "can't be spent with allocator.max_samples=5; write max_samples=6"),
        ({"reuse_pilots": False, "max_samples": 5}, 28, "can't be spent"),
    ],
)
def test_an_impossible_budget_is_refused_before_the_pilots(settings, budget: int, message: str) -> None:
    allocator = GVMAllocator(config(**settings), accept_threshold=0.5)
    with pytest.raises(ConfigError, match=message):
        allocator.plan(prompts("abc"), budget=budget)
