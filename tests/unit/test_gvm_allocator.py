"""GVM's rounds and blocks against hand-computed sample sizes."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from gvm_ray.allocators import AllocationDriver
from gvm_ray.allocators.gvm import GVMAllocatorConfig
from gvm_ray.exceptions import ConfigError
from gvm_ray.types import Allocation, GroupOutcome
from tests import builders
from tests.builders import NAN, prompts

# Without a prior and with a vanishing alpha, w = G / sqrt(p): 1 / sqrt(1/4) = 2, 2 / sqrt(1) = 2, 2 / sqrt(1/4) = 4.
PILOTS = {"a": ([1, 0, 0, 0], 1.0), "b": ([1, 1, 1, 1], 2.0), "c": ([0, 0, 0, 1], 2.0)}


def config(**settings) -> GVMAllocatorConfig:
    return GVMAllocatorConfig(**{"alpha": 1e-15, "prior_successes": 0, "prior_failures": 0, **settings})


def outcome(prompt_id: str, rewards: Sequence[float], norm: float = NAN, *, version: int = 0) -> GroupOutcome:
    """Every sample, accepted or not, has the norm; a wrong one's must not count, so it is made huge."""
    norms = np.where(np.array(rewards) >= 0.5, norm, 1e9)
    return builders.outcome(prompt_id, rewards, version=version, gradient_norms=norms)


def pilots(results: Mapping[str, tuple[Sequence[float], float]]) -> list[GroupOutcome]:
    return [outcome(id_, rewards, norm) for id_, (rewards, norm) in results.items()]


def gvm(settings: GVMAllocatorConfig) -> AllocationDriver:
    return AllocationDriver.of(settings, accept_threshold=0.5)


def after_pilots(settings: GVMAllocatorConfig) -> tuple[AllocationDriver, Allocation]:
    """Step 0 with a, b, c and a budget of 24, and its second round."""
    steps = gvm(settings)
    steps.plan(prompts("abc"), step=0, budget=24)
    return steps, steps.observe(pilots(PILOTS), step=0)


def test_pilots_come_first_and_are_measured() -> None:
    for reuse in (True, False):
        steps = gvm(config(pilot_samples=3, reuse_pilots=reuse))
        round_one = steps.plan(prompts("abc"), step=0, budget=24)
        assert round_one.counts == {"a": 3, "b": 3, "c": 3}
        assert round_one.needs_gradient_norms
        assert round_one.trained_on is reuse


def test_reused_pilots_are_part_of_the_sample_sizes() -> None:
    steps, round_two = after_pilots(config())
    # 24 over weights 2, 2, 4: 6, 6, 12, of which 4 each are drawn
    assert round_two.counts == {"a": 2, "b": 2, "c": 8}
    assert round_two.trained_on
    assert not round_two.needs_gradient_norms
    assert steps.observe([outcome("a", [0, 0])], step=0).total == 0
    assert steps.report(step=0).metrics == pytest.approx(
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
    steps, round_two = after_pilots(config(reuse_pilots=False))
    # 24 - 12 = 12 over weights 2, 2, 4
    assert round_two.counts == {"a": 3, "b": 3, "c": 6}
    steps.observe([], step=0)
    assert steps.report(step=0).metrics["allocation/total"] == 12


def test_the_pilots_are_a_floor_on_a_reused_total() -> None:
    steps = gvm(config())
    steps.plan(prompts("ab"), step=0, budget=12)
    # weights 100 and 1: b keeps its 4 pilots, a gets the rest, 8
    assert steps.observe(pilots({"a": ([1] * 4, 100.0), "b": ([1] * 4, 1.0)}), step=0).counts == {"a": 4, "b": 0}


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
    steps = gvm(config(prior_successes=prior, prior_failures=prior))
    steps.plan(prompts("ab"), step=0, budget=16)
    assert steps.observe(pilots(results), step=0).counts == {"a": 4, "b": 4}


def test_a_prompt_without_accepted_pilots_gets_the_priors_rate_and_the_mean_norm() -> None:
    results = {"a": ([1, 1, 1, 1], 2.0), "b": ([0, 0, 0, 0], 7.0), "c": ([1, 1, 1, 1], 4.0)}
    steps = gvm(config(prior_successes=1, prior_failures=0, pilot_samples=4))
    steps.plan(prompts("abc"), step=0, budget=60)
    # p: 1, (0 + 1) / (4 + 1) = 0.2, 1; G: 2, (2 + 4) / 2 = 3, 4; w: 2, 3 / sqrt(0.2) = 6.708, 4
    total = 2 + 3 / np.sqrt(0.2) + 4
    round_two = steps.observe(pilots(results), step=0)
    for prompt_id, weight in {"a": 2, "b": 3 / np.sqrt(0.2), "c": 4}.items():
        assert abs(round_two.counts[prompt_id] + 4 - 60 * weight / total) < 1
    # as published, without a prior: nothing more for b
    steps = gvm(config())
    steps.plan(prompts("abc"), step=0, budget=60)
    assert steps.observe(pilots(results), step=0).counts["b"] == 0


def test_several_outcomes_of_one_prompt_are_one_pilot_group() -> None:
    steps = gvm(config())
    steps.plan(prompts("abc"), step=0, budget=24)
    split = [outcome("b", [1], 5.0), outcome("c", [0, 1], 2.0), outcome("a", [1, 0, 0, 0], 1.0)]
    split += [outcome("c", [0, 0], 2.0), outcome("b", [1, 1, 1], 1.0)]  # b: mean norm (5 + 1 + 1 + 1) / 4 = 2
    assert steps.observe(split, step=0).counts == {"a": 2, "b": 2, "c": 8}


def test_a_block_of_steps_shares_one_pilot_round() -> None:
    steps = gvm(config(block_steps=3))
    round_one = steps.plan(prompts("a"), step=0, budget=8, upcoming=prompts("bc"))
    assert round_one.counts == {"a": 4, "b": 4, "c": 4}
    assert steps.observe(pilots(PILOTS), step=0).counts == {"a": 2}  # the block's 24: 6, 6, 12
    assert steps.observe([outcome("a", [1, 1])], step=0).total == 0
    report = steps.report(step=0)
    assert report.metrics["allocation/total"] == 6
    assert report.estimator.accept_rates == {"a": 1 / 4}  # of the pilots, which are named
    assert report.estimator.pilots == {"a": (0, 1, 2, 3)}
    later = steps.plan(prompts("b"), step=1, budget=8)
    assert later.counts == {"b": 2}
    assert not later.needs_gradient_norms
    assert steps.observe([outcome("b", [1, 0])], step=1).total == 0
    assert steps.report(step=1).estimator.accept_rates == {"b": 1}
    assert steps.plan(prompts("c"), step=2, budget=8, upcoming=prompts("xy")).counts == {"c": 8}
    assert steps.observe([], step=2).total == 0
    assert steps.report(step=2).metrics["allocation/total"] == 12
    # the block is spent: the next plan begins with pilots
    assert steps.plan(prompts("b"), step=3, budget=8).needs_gradient_norms


def test_a_plan_for_other_prompts_begins_a_new_block_and_leaves_the_old_one() -> None:
    steps = gvm(config(block_steps=2))
    steps.plan(prompts("a"), step=0, budget=8, upcoming=prompts("b"))
    steps.observe(pilots({"a": PILOTS["a"], "b": PILOTS["b"]}), step=0)
    assert steps.plan(prompts("c"), step=2, budget=8, upcoming=prompts("d")).needs_gradient_norms
    steps.observe(pilots({"c": PILOTS["c"], "d": PILOTS["a"]}), step=2)  # 16 over weights 4, 2
    assert steps.plan(prompts("b"), step=1, budget=8).counts == {"b": 4}  # 16 over weights 2, 2
    assert steps.plan(prompts("d"), step=3, budget=8).counts == {"d": 1}
    assert steps.plan(prompts("b"), step=4, budget=8).needs_gradient_norms


def test_of_blocks_that_are_never_finished_only_the_latest_are_kept() -> None:
    steps = gvm(config(block_steps=2))
    names = [chr(ord("A") + index) for index in range(34)]
    for block, (now, later) in enumerate(zip(names[::2], names[1::2], strict=True)):
        steps.plan(prompts(now), step=2 * block, budget=8, upcoming=prompts(later))
        steps.observe(pilots({now: PILOTS["a"], later: PILOTS["b"]}), step=2 * block)
    assert steps.plan(prompts(names[1]), step=1, budget=8).needs_gradient_norms
    assert steps.plan(prompts(names[3]), step=3, budget=8).counts == {names[3]: 4}
    assert steps.plan(prompts(names[33]), step=33, budget=8).counts == {names[33]: 4}


def test_loading_a_memory_forgets_the_blocks() -> None:
    steps = gvm(config(block_steps=2))
    steps.plan(prompts("a"), step=0, budget=8, upcoming=prompts("b"))
    steps.observe(pilots({"a": PILOTS["a"], "b": PILOTS["b"]}), step=0)
    steps.load_state_dict(steps.state_dict())
    assert steps.plan(prompts("b"), step=1, budget=8).needs_gradient_norms


def test_a_prompt_that_stands_twice_in_a_step_counts_once() -> None:
    steps = gvm(config())
    assert steps.plan(prompts("aab"), step=0, budget=12).counts == {"a": 4, "b": 4}
    now = steps.observe([outcome("a", [1] * 4, 1.0), outcome("b", [1] * 4, 1.0)], step=0)
    assert now.counts == {"a": 2, "b": 2}
    steps.observe([], step=0)
    assert steps.report(step=0).histograms["samples_per_prompt"].tolist() == [6, 6]


def test_pilots_are_named_to_the_step_that_trains_on_them() -> None:
    steps = gvm(config(block_steps=2))
    steps.plan(prompts("ab"), step=0, budget=16, upcoming=prompts("cd"))
    steps.observe(pilots({id_: ([id_ != "b"] * 4, 1.0) for id_ in "abcd"}), step=0)
    steps.observe([], step=0)
    terms = steps.report(step=0).estimator
    assert terms.pilots == {"a": (0, 1, 2, 3), "b": (0, 1, 2, 3)}
    assert terms.accept_rates == {"a": 1, "b": 0.5 / 5}  # no accepted pilot counts as half of one
    steps.plan(prompts("cd"), step=1, budget=16)
    steps.observe([], step=1)
    assert steps.report(step=1).estimator.pilots == {"c": (0, 1, 2, 3), "d": (0, 1, 2, 3)}


def test_nothing_left_after_the_pilots_ends_the_step() -> None:
    steps = gvm(config())
    steps.plan(prompts("abc"), step=0, budget=12)
    assert steps.observe(pilots(PILOTS), step=0).total == 0
    report = steps.report(step=0)
    assert report.histograms["accept_rate"][0] == 0.25  # folded, though no second round will be observed
    assert report.metrics["allocation/total"] == 12
    assert steps.plan(prompts("abc"), step=1, budget=24).counts == {"a": 4, "b": 4, "c": 4}
    assert steps.observe(pilots(PILOTS), step=1).counts == {"a": 2, "b": 2, "c": 8}


def test_memory_accumulates_over_blocks_and_keeps_the_latest_norm() -> None:
    steps = gvm(config())
    for version, norm in ((0, 1.0), (1, 3.0)):
        steps.plan(prompts("a"), step=version, budget=8)
        steps.observe([outcome("a", [1, 0, NAN, 0], norm, version=version)], step=version)
        steps.observe([outcome("a", [1, 1, 0, 0], version=version)], step=version)
    state = json.loads(json.dumps(steps.state_dict()))
    assert state["prompts"]["a"] == [14.0, 6.0, 3.0]  # scored, accepted, latest norm
    assert steps.report(step=1).histograms["accept_rate"] == pytest.approx([3 / 7])


def test_histograms_are_aligned_by_prompt() -> None:
    steps, _ = after_pilots(config())
    steps.observe([outcome("c", [1] * 8)], step=0)
    histograms = steps.report(step=0).histograms
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
    steps = gvm(config(**settings))
    with pytest.raises(ConfigError, match=message):
        steps.plan(prompts("abc"), step=0, budget=budget)
