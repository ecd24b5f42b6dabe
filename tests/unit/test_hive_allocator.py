"""HIVE: the shortlist by history, the choice by prompt entropy, and what is charged for it."""

import asyncio
import json

import numpy as np
import pytest

from gvm_ray.allocators import AllocationDriver
from gvm_ray.allocators.base import PromptStatesConfig, RunShape
from gvm_ray.allocators.rivals.hive import HIVEAllocatorConfig
from gvm_ray.background import drain
from gvm_ray.loop import train
from gvm_ray.maths.rival_rules import draw_at_learning_edge
from gvm_ray.types import FloatArray, Pooling, Prompt
from tests.allocator_cases import all_equal, run_step
from tests.builders import outcome, prompts
from tests.loop_fakes import START, make_system, run_config


def hive(**settings):
    config = HIVEAllocatorConfig(**{"group_size": 4, **settings})
    return AllocationDriver.of(config, accept_threshold=0.5, seed=1)


def states(*entropies: float) -> FloatArray:
    return np.array(entropies, dtype=np.float32)[:, None]


def shape(**settings) -> RunShape:
    defaults = {"prompts_per_step": 4, "samples_per_prompt": 8, "max_staleness": 0, "checkpoint_every_steps": 1}
    return RunShape(**{**defaults, **settings})


def test_the_first_draw_is_in_proportion_to_p_one_minus_p_and_the_entropy() -> None:
    # p (1 - p) h = 1/4 * 2, 3/16 * 4, 1/4 * 0, and of the unknown h, which counts as their mean 2, 3/16 * 2
    rates, entropies = [0.5, 0.25, 0.5, 0.75], [2.0, 4.0, 0.0, float("nan")]
    expected = np.array([8, 12, 0, 6]) / 26
    rng = np.random.default_rng(0)
    drawn = np.zeros(4)
    for _ in range(4000):
        drawn[draw_at_learning_edge(rates, entropies, num_drawn=1, rng=rng)] += 1
    np.testing.assert_allclose(drawn / 4000, expected, atol=0.03)
    assert drawn[2] == 0
    assert draw_at_learning_edge(rates, entropies, num_drawn=3, rng=rng).tolist() == [0, 1, 3]
    assert draw_at_learning_edge([0.5] * 2, [float("nan")] * 2, num_drawn=2, rng=rng).tolist() == [0, 1]


def test_history_shortlists_two_candidates_for_each_group() -> None:
    strategy = hive(decay=1.0)
    # a and c are known to be solved and failed, so surely that they are drawn last; f's responses had no entropy
    strategy.load_state_dict(
        {
            "prompts": {"a": [1e12, 1e12, None], "c": [1e12, 0, None], "b": [8, 4, None], "f": [8, 4, None]},
            "strategy": {"entropies": {"a": 1.0, "c": 1.0, "b": 0.5, "f": 0.0}},
        }
    )
    before = strategy.state_dict()
    rows = strategy.shortlist(prompts("abcdefg"), step=0, budget=8)
    assert rows.tolist() == [1, 3, 4, 6]  # b, and the new d, e and g
    assert strategy.state_dict() == before
    assert strategy.shortlist(prompts("abc"), step=0, budget=8).tolist() == [0, 1, 2]  # fewer than four
    assert strategy.shortlist(prompts("aab"), step=0, budget=8).tolist() == [1, 2]  # distinct ones


def test_the_upper_half_by_prompt_entropy_gets_equal_groups() -> None:
    rounds, report = run_step(hive(), "abcd", budget=9, rewards=all_equal(), states=states(0.5, 2.0, 1.0, 3.0))
    assert [dict(allocation.counts) for allocation in rounds] == [{"d": 5, "b": 4}]
    assert report.metrics["allocation/prompt_entropy"] == 2.5
    assert report.histograms["prompt_entropy"].tolist() == [0.5, 2.0, 1.0, 3.0]
    assert report.estimator.accept_rates == {"d": 0.5, "b": 0.5}


def test_response_entropies_of_the_last_visit_are_remembered_and_resumed() -> None:
    strategy = hive()
    strategy.plan(prompts("abc"), step=0, budget=12)
    strategy.observe(
        [
            outcome("a", [1, 0], entropies=np.array([0.5, 1.5])),
            outcome("a", [1, 0], entropies=np.array([3.0, float("nan")])),  # a prompt's samples from two generators
            outcome("b", [1, 0, 1, 0], entropies=np.full(4, float("nan"))),
            outcome("c", [1, 0, 1, 0]),
        ],
        step=0,
    )
    state = json.loads(json.dumps(strategy.state_dict()))
    assert state["strategy"] == {"entropies": {"a": 5 / 3}}
    resumed = hive()
    resumed.load_state_dict(state)
    for step in range(1, 9):
        first, second = (
            each.shortlist(prompts("abcdefgh"), step=step, budget=4).tolist() for each in (strategy, resumed)
        )
        assert first == second


def test_prompts_off_the_shortlist_are_not_prefilled() -> None:
    config = run_config(allocator={"type": "hive", "candidates_per_step": 12}, num_steps=3)
    system, _, learners, records = make_system(config)
    asked: list[list[Prompt]] = []
    inner = learners.prompt_states

    async def prompt_states(wanted: list[Prompt], *, pooling: Pooling) -> tuple[FloatArray, int]:
        assert pooling == "entropy"
        asked.append(list(wanted))
        return await inner(wanted, pooling=pooling)

    learners.prompt_states = prompt_states  # type: ignore[method-assign]
    asyncio.run(drain(train(system, config, start=START)))
    assert [len(wanted) for wanted in asked] == [8, 8, 8]  # of 12 candidates, anew at every step
    charged = np.cumsum([sum(len(prompt.token_ids) for prompt in wanted) for wanted in asked])
    assert [metrics["cost/prefill_tokens"] for _, metrics in records.steps] == charged.tolist()


def test_needs_and_what_is_refused() -> None:
    needs = HIVEAllocatorConfig().needs(shape())
    assert (needs.candidates, needs.shortlist) == (16, 8)
    assert needs.states == PromptStatesConfig(pooling="entropy", refresh_steps=1)
    HIVEAllocatorConfig(candidates_per_step=9).check_fits(shape())
    with pytest.raises(ValueError, match=r"the shortlist has 8, two for each group of the budget; write .*_step=16"):
        HIVEAllocatorConfig(candidates_per_step=8).check_fits(shape())
    with pytest.raises(ValueError, match="write group_size=8"):
        HIVEAllocatorConfig(group_size=33).check_fits(shape())
