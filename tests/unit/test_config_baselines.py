"""A prompt's only sample has nothing to be compared with."""

from typing import Any

import pytest

from gvm_ray.config import parse_config
from gvm_ray.exceptions import ConfigError

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
            {"allocator": {"type": "gvm_pool", "group_size": 1}},
            "group_size=1 gives .*; write .*predicted_baseline=true",
        ),
    ],
)
def test_groups_of_one_are_refused_where_the_group_is_the_baseline(
    algorithm: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({**RUN, **settings, "algorithm": {"type": algorithm}})


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        ("raft++", {"samples_per_prompt": 1, "allocator": {"type": "uniform"}}),
        ("reinforce++", {"samples_per_prompt": 1, "allocator": {"type": "uniform"}}),
        ("raft++", {"allocator": {"type": "gvm_pool", "group_size": 1}}),
        ("grpo", {"allocator": {"type": "gvm_pool", "group_size": 1, "predicted_baseline": True}}),
        ("grpo", {"samples_per_prompt": 2, "allocator": {"type": "uniform"}}),
    ],
)
def test_groups_of_one_are_taken_where_something_else_is(algorithm: str, settings: dict[str, Any]) -> None:
    config = parse_config({**RUN, **settings, "algorithm": {"type": algorithm}})
    assert config.algorithm.type == algorithm
