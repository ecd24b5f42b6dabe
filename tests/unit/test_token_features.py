"""Predicting from token counts in place of hidden states."""

from dataclasses import replace

import numpy as np
import pytest

from gvm_ray.allocators import AllocationDriver
from gvm_ray.allocators.base import PromptStatesConfig
from gvm_ray.allocators.gvm_pool import GVMPoolAllocatorConfig
from gvm_ray.config import parse_config
from gvm_ray.exceptions import ConfigError
from tests.builders import outcome, prompts

RATES = (1.0, 0.5, 0.0)  # of prompts whose middle token is 0, 1 or 2
RUN = {
    "name": "run",
    "model": {"type": "scratch"},
    "prompts": {"train": {"type": "arithmetic", "size": 64}},
    "rewards": {"terms": [{"type": "exact"}]},
}


def test_token_counts_alone_tell_the_prompts_near_one_half() -> None:
    config = GVMPoolAllocatorConfig.model_validate(
        {"group_size": 4, "states": "none", "predictor": {"token_features": 8}}
    )
    steps = AllocationDriver.of(config, accept_threshold=0.5, seed=0)
    share, error = np.zeros(3), np.inf
    for step in range(6):
        rng = np.random.default_rng(step)
        group = [
            replace(each, token_ids=np.array([7, index % 3, 7], dtype=np.int32))
            for index, each in enumerate(prompts(200, first=1000 * step))
        ]
        counts = steps.plan(group, step=step, budget=128).counts
        share = np.array([sum(counts[each.prompt_id] for each in group[level::3]) for level in range(3)]) / 128
        outcomes = [
            outcome(each.prompt_id, (rng.random(counts[each.prompt_id]) < RATES[each.token_ids[1]]).astype(np.float64))
            for each in group
            if counts[each.prompt_id]
        ]
        steps.observe(outcomes, step=step)
        rates = {each.prompt_id: RATES[each.token_ids[1]] for each in group}
        estimates = steps.report(step=step).estimator.expected_rates
        error = np.mean([(p - rates[id_]) ** 2 for id_, p in estimates.items()])
    assert share[1] > 0.6  # a third by chance
    assert error < 0.05


def test_states_can_be_refused_in_a_file() -> None:
    assert parse_config({**RUN, "allocator": {"type": "gvm_pool", "states": "none"}}).prompt_states is None
    assert parse_config({**RUN, "allocator": {"type": "gvm_pool"}}).prompt_states == "embedding"
    hidden = {"type": "gvm_pool", "states": {"pooling": "last"}}
    assert parse_config({**RUN, "allocator": hidden}).prompt_states == PromptStatesConfig(pooling="last")
    with pytest.raises(ConfigError, match=r"allocator.*states"):
        parse_config({**RUN, "allocator": {"type": "gvm_pool", "states": "some"}})
