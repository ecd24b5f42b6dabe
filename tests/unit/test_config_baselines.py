"""What an algorithm needs of the allocator: samples to compare a sample with, and accept rates to divide by."""

from typing import Any

import pytest

from gvm_ray.allocators import AllocatorSettings
from gvm_ray.config import parse_config
from gvm_ray.exceptions import ConfigError
from gvm_ray.settings import Settings
from tests.contract.union_cases import variants

RUN: dict[str, Any] = {
    "name": "baselines",
    "prompts_per_step": 8,
    "samples_per_prompt": 8,
    "model": {"type": "scratch"},
    "prompts": {"train": {"type": "arithmetic"}},
}


@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo", "rloo"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples_per_prompt": 1, "allocator": {"type": "uniform"}}, "samples_per_prompt=1 gives .*; write samples"),
        (
            {"allocator": {"type": "gvm_pool", "predicted_baseline": False}},
            "group_size=1 gives .*; write .*predicted_baseline=true",
        ),
        ({"allocator": {"type": "gvm_online"}}, "min_samples=0 gives .*; write allocator.min_samples=2 or more"),
        ({"allocator": {"type": "gvm_online", "min_samples": 1}}, "min_samples=1 gives "),
        ({"allocator": {"type": "neyman", "min_samples": 1}}, "min_samples=1 gives "),
        (
            {"allocator": {"type": "gvm", "pilot_samples": 1}},
            "pilot_samples=1 gives .*; write allocator.pilot_samples=2",
        ),
        (
            {"allocator": {"type": "gvm", "reuse_pilots": False}},
            "min_samples=0 gives .*; write allocator.min_samples=2",
        ),
        ({"allocator": {"type": "knapsack", "min_samples": 1}}, "min_samples=1 gives "),
        ({"allocator": {"type": "cures", "min_samples": 0}}, "min_samples=0 gives "),
        (
            {"allocator": {"type": "reinforce_ada_est", "min_samples": 1, "rescale_advantages": False}},
            "min_samples=1 gives .*; write .*rescale_advantages=true",
        ),
        ({"allocator": {"type": "reinforce_ada_seq", "round_samples": 1}}, "round_samples=1 gives "),
        (
            {"allocator": {"type": "reinforce_ada_seq", "kept_samples": 1, "pool_baseline": False}},
            "kept_samples=1 gives ",
        ),
    ],
)
def test_groups_of_one_are_refused_where_the_group_is_the_baseline(
    algorithm: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({**RUN, **settings, "algorithm": {"type": algorithm}})


@pytest.mark.parametrize(
    ("algorithm", "setting"),
    [
        ({"type": "grpo", "tolerance": 0.2}, "tolerance=0.2"),
        ({"type": "dr_grpo", "tolerance": 0.2}, "tolerance=0.2"),
        ({"type": "rloo", "tolerance": 0.2}, "tolerance=0.2"),
        ({"type": "rloo", "shrinkage": True}, "shrinkage=true"),
    ],
)
def test_settings_of_the_group_s_own_baseline_are_refused_beside_the_allocator_s(
    algorithm: dict[str, Any], setting: str
) -> None:
    message = rf"algorithm\.{setting} is of the group's own .* write allocator.predicted_baseline=false and groups of 2"
    with pytest.raises(ConfigError, match=message):
        parse_config({**RUN, "algorithm": algorithm})
    parse_config({**RUN, "algorithm": algorithm, "allocator": {"type": "gvm_pool", "group_size": 4}})


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        ("raft++", {"samples_per_prompt": 1, "allocator": {"type": "uniform"}}),
        ("reinforce++", {"samples_per_prompt": 1, "allocator": {"type": "uniform"}}),
        ("raft++", {"allocator": {"type": "gvm_pool", "group_size": 1}}),
        ("grpo", {"allocator": {"type": "gvm_pool", "group_size": 1, "predicted_baseline": True}}),
        ("grpo", {"samples_per_prompt": 2, "allocator": {"type": "uniform"}}),
        ("grpo", {"allocator": {"type": "spo"}}),
        ("grpo", {"samples_per_prompt": 1, "allocator": {"type": "ebpo"}}),
        ("raft++", {"allocator": {"type": "gvm_online"}}),
        ("grpo", {"allocator": {"type": "gvm_online", "min_samples": 2}}),
        ("grpo", {"allocator": {"type": "gvm", "pilot_samples": 1, "min_samples": 2}}),
        ("grpo", {"allocator": {"type": "reinforce_ada_est", "min_samples": 1}}),
        ("grpo", {"allocator": {"type": "reinforce_ada_seq", "kept_samples": 1}}),
        ("grpo", {"allocator": {"type": "custom", "path": "examples.custom_allocator:FewerForSolved"}}),
    ],
)
def test_groups_of_one_are_taken_where_something_else_is(algorithm: str, settings: dict[str, Any]) -> None:
    config = parse_config({**RUN, **settings, "algorithm": {"type": algorithm}})
    assert config.algorithm.type == algorithm


KNOW_NO_ACCEPT_RATES = {"uniform", "spo", "ebpo", "greso", "dapo", "dps", "pods", "poise", "reinforce_ada_seq"}


@pytest.mark.parametrize("variant", variants(AllocatorSettings), ids=lambda each: each.model_fields["type"].default)
@pytest.mark.parametrize("algorithm", ["raft", "raft++"])
def test_inverse_weighting_needs_accept_rates_from_elsewhere(algorithm: str, variant: type[Settings]) -> None:
    allocator = variant.model_fields["type"].default
    settings: dict[str, Any] = {"type": allocator}
    if "candidates_per_step" in variant.model_fields and allocator != "dapo":
        settings |= {"candidates_per_step": 8 if allocator == "speed" else 64}
    if allocator == "custom":
        settings |= {"path": "examples.custom_allocator:FewerForSolved", "candidates_per_step": 64}
    run = {**RUN, "allocator": settings}
    assert parse_config({**run, "algorithm": {"type": algorithm}}).allocator.type == allocator
    inverse = {**run, "algorithm": {"type": algorithm, "weighting": "inverse"}}
    if allocator not in KNOW_NO_ACCEPT_RATES:
        assert parse_config(inverse).algorithm.weighting == "inverse"
    else:
        with pytest.raises(ConfigError, match=rf"'inverse' divides .*type='{allocator}' has none .*; write .*gvm_pool"):
            parse_config(inverse)


def test_refills_choose_samples_by_their_rewards() -> None:
    allocator = {"type": "mopps", "candidates_per_step": 64, "refill": True}
    run = {**RUN, "allocator": allocator, "algorithm": {"type": "raft", "weighting": "inverse"}}
    with pytest.raises(ConfigError, match="it selects samples by their rewards"):
        parse_config(run)


@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo", "rloo", "reinforce++"])
def test_without_rejected_samples_inverse_weighting_needs_none(algorithm: str) -> None:
    run = {**RUN, "allocator": {"type": "uniform"}, "algorithm": {"type": algorithm, "weighting": "inverse"}}
    assert parse_config(run).algorithm.weighting == "inverse"
