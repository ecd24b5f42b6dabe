"""Settings of allocators that predict: what fits a run, the number of candidates, and what training has to measure."""

from typing import Any

import pytest

from gvm_ray.config import parse_config
from gvm_ray.exceptions import ConfigError

RUN = {
    "name": "x",
    "prompts_per_step": 4,
    "samples_per_prompt": 8,
    "model": {"type": "scratch"},
    "prompts": {"train": {"type": "arithmetic"}},
}


@pytest.mark.parametrize(
    ("allocator", "message"),
    [
        (
            {"type": "gvm_pool", "group_size": 33},
            "group_size=33 is above the step's budget of 32 samples; write group_size=8",
        ),
        (
            {"type": "gvm_pool", "group_size": 4, "max_samples": 3},
            "max_samples=3 is below group_size=4; write max_samples=4",
        ),
        ({"type": "gvm_pool", "candidates_per_step": 3}, "candidates_per_step=3 is below prompts_per_step=4"),
        ({"type": "gvm_online", "min_samples": 9}, "min_samples=9 is above samples_per_prompt=8; write 8 or less"),
        ({"type": "neyman", "max_samples": 7}, "max_samples=7 is below samples_per_prompt=8.*write max_samples=8"),
        ({"type": "neyman", "score": "gvm"}, "score"),
    ],
)
def test_settings_that_can_not_spend_the_budget_are_refused(allocator: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({**RUN, "allocator": allocator})


BY_STATES: dict[str, Any] = {"type": "gvm_pool", "group_size": 4, "states": {"pooling": "mean"}}


@pytest.mark.parametrize(
    ("changes", "candidates"),
    [
        ({"allocator": BY_STATES}, 64),  # 16 x 4: 32 samples of 3,072 tokens pay for 96 prompts of 1,024
        ({"sampling": {"max_tokens": 1024}, "allocator": BY_STATES}, 32),  # paid for
        ({"sampling": {"max_tokens": 64}, "allocator": BY_STATES}, 8),  # 2 prompts are paid for: twice the step's
        ({"sampling": {"max_tokens": 64}, "prefill_price": 0.05, "allocator": BY_STATES}, 40),
        ({"sampling": {"max_tokens": 64}, "prefill_price": 0, "allocator": BY_STATES}, 64),
        (
            {
                "sampling": {"max_tokens": 64},
                "prompts": {**RUN["prompts"], "max_tokens": 64},
                "allocator": BY_STATES,
            },
            32,
        ),
        ({"sampling": {"max_tokens": 64}, "allocator": {**BY_STATES, "group_size": 1}}, 8),
        ({"sampling": {"max_tokens": 64}, "allocator": {**BY_STATES, "group_size": 32}}, 8),
        ({"sampling": {"max_tokens": 64}, "allocator": {"type": "gvm_pool", "states": "none"}}, 1024),
        ({"sampling": {"max_tokens": 64}, "allocator": {"type": "gvm_pool"}}, 1024),  # looked up, not charged
        ({"prompts_per_step": 100, "allocator": {"type": "gvm_pool", "group_size": 8, "states": "none"}}, 1600),
        ({"prompts_per_step": 100, "allocator": {"type": "gvm_pool"}}, 3200),  # four for each of 800 groups
        ({"sampling": {"max_tokens": 64}, "allocator": {"type": "gvm_pool", "candidates_per_step": 1024}}, 1024),
        ({"sampling": {"max_tokens": 64}, "allocator": {"type": "gvm_online"}}, 4),  # no more than it samples
    ],
)
def test_candidates_follow_the_budget_of_the_step(changes: dict[str, Any], candidates: int) -> None:
    assert parse_config({**RUN, **changes}).candidates_per_step == candidates


def test_the_defaults_show_four_candidates_for_each_sample() -> None:
    values = {name: value for name, value in RUN.items() if name not in ("prompts_per_step", "samples_per_prompt")}
    assert parse_config(values).candidates_per_step == 4 * 64 * 8


@pytest.mark.parametrize(
    ("allocator", "measured"),
    [
        ({"type": "gvm_pool"}, False),
        ({"type": "gvm_pool", "score": "norm_neyman"}, True),
        ({"type": "gvm_pool", "score": "norm_neyman", "training_gradient_norms": False}, False),
        ({"type": "gvm_pool", "score": "neyman"}, False),
        ({"type": "gvm_online"}, True),
        ({"type": "gvm_online", "score": "log_neyman"}, False),
    ],
)
def test_gradient_norms_are_measured_for_scores_that_have_them(allocator: dict[str, Any], measured: bool) -> None:
    assert parse_config({**RUN, "allocator": allocator}).needs.training_norms == measured
