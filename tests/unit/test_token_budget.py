"""The loop of allocators that predict: what they are charged, when that ends a run, and how it is resumed."""

import asyncio
import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from loop_fakes import START, FakeLearners, FakePools, Records, make_system, run, run_config

from gvm_ray.background import drain
from gvm_ray.config import RunConfig
from gvm_ray.loop import charged_tokens, train
from gvm_ray.types import CheckpointState

STEP_TOKENS = 32 * 5
# Prompts of one token.
POOL = {"type": "gvm_pool", "candidates_per_step": 12, "group_size": 4, "states": {"pooling": "mean"}}


def resume(config: RunConfig, state: CheckpointState, **fakes: Any) -> tuple[FakePools, FakeLearners, Records]:
    """A run from a checkpoint all of which but arrays went through JSON."""
    plain = {name: value for name, value in vars(state).items() if name != "prompt_states"}
    state = CheckpointState(**json.loads(json.dumps(plain, allow_nan=False)), prompt_states=state.prompt_states)

    async def go() -> tuple[FakePools, FakeLearners, Records]:
        system, pools, learners, records = make_system(config)
        for name, value in fakes.items():
            setattr(learners, name, value)
        pools.version = state.policy_version
        system.prompts.load_state_dict(state.cursor)
        system.states.load_state_dict(state.prompt_states)
        await system.allocator.load_state_dict(state.allocator)
        await drain(train(system, config, start=state))
        return pools, learners, records

    return asyncio.run(go())


@pytest.mark.parametrize("max_staleness", [0, 2])
def test_the_step_that_spends_the_budget_is_the_last(max_staleness: int) -> None:
    config = run_config(num_steps=50, token_budget=2 * STEP_TOKENS + 1, max_staleness=max_staleness)
    pools, learners, records = run(config)
    assert [batch.step for batch in learners.batches] == [0, 1, 2]
    assert [m["cost/charged_tokens"] for _, m in records.steps] == [STEP_TOKENS * step for step in (1, 2, 3)]
    assert "eval/accuracy" in records.steps[-1][1]
    assert [state.step for state in records.saved] == [2, 3]
    assert pools.version == 3


def test_a_budget_that_the_steps_do_not_spend_changes_nothing() -> None:
    _, learners, records = run(run_config(num_steps=4, token_budget=100 * STEP_TOKENS))
    assert len(learners.batches) == 4
    assert records.saved[-1].step == 4


def test_a_run_that_is_over_is_not_gone_on_with() -> None:
    config = run_config(num_steps=50, token_budget=2 * STEP_TOKENS)
    _, _, records = run(config)
    pools, learners, again = resume(config, records.saved[-1])
    assert (pools.requests, learners.batches, again.steps) == ([], [], [])
    _, learners, _ = resume(run_config(num_steps=50, token_budget=3 * STEP_TOKENS), records.saved[-1])
    assert [batch.step for batch in learners.batches] == [2]
    _, learners, _ = resume(run_config(num_steps=1), records.saved[-1])
    assert learners.batches == []


def test_prefilled_tokens_are_charged_at_their_price() -> None:
    config = run_config(num_steps=50, allocator=POOL, prefill_price=2.5, token_budget=2 * (STEP_TOKENS + 30))
    _, _, records = run(config)
    assert [m["cost/prefill_tokens"] for _, m in records.steps] == [12, 24]
    assert [m["cost/charged_tokens"] for _, m in records.steps] == [190, 380]
    _, _, records = run(config.model_copy(update={"prefill_price": 0.0}))
    assert [m["cost/charged_tokens"] for _, m in records.steps] == [160, 320, 480]
    _, _, records = run(run_config(num_steps=2, allocator={**POOL, "states": None}, prefill_price=2.5))
    assert "cost/prefill_tokens" not in records.steps[-1][1]
    assert records.steps[-1][1]["cost/charged_tokens"] == 320
    assert charged_tokens(config, {}) == 0


def test_states_that_serve_several_steps_are_charged_once() -> None:
    _, _, records = run(run_config(num_steps=4, allocator={**POOL, "states": {"refresh_steps": 4}}))
    assert records.steps[-1][1]["cost/prefill_tokens"] == 24  # the set, which two steps go through


def test_pilots_are_charged_like_all_samples() -> None:
    _, _, records = run(run_config(num_steps=3, allocator={"type": "gvm", "pilot_samples": 4, "reuse_pilots": False}))
    assert records.steps[-1][1]["cost/charged_tokens"] == 3 * STEP_TOKENS
    assert records.steps[-1][1]["cost/pilot_tokens"] == 3 * 4 * 4 * 5


def test_the_norms_of_training_are_in_the_checkpoint_of_their_step() -> None:
    _, learners, records = run(run_config(num_steps=2, allocator=POOL), measures_norms=True)
    observed = records.saved[-1].allocator["strategy"]["predictor"]["observations"]
    measured = [(step, accepted) for step, *_, accepted, _ in observed["columns"] if accepted is not None]
    trained = {(batch.step, group.prompt_id) for batch in learners.batches for group in batch.groups}
    assert set(measured) == {(0.0, 4.0), (1.0, 4.0)}
    assert len(measured) == len(trained)
    _, _, records = run(run_config(num_steps=2, allocator=POOL))
    columns = records.saved[-1].allocator["strategy"]["predictor"]["observations"]["columns"]
    assert all(accepted is None for *_, accepted, _ in columns)


@pytest.mark.parametrize("refresh_steps", [1, 3])
@pytest.mark.parametrize("algorithm", ["raft++", "grpo"])
def test_a_resumed_run_goes_on_to_the_bit(algorithm: str, refresh_steps: int) -> None:
    config = run_config(
        num_steps=6,
        allocator={
            **POOL,
            "exploration": "thompson",
            "undo_selection": True,
            "score": "gradient_deviation",
            "states": {"refresh_steps": refresh_steps},
        },
        algorithm={"type": algorithm},
    )
    pools, learners, records = run(config, measures_norms=True)
    assert [state.step for state in records.saved] == [2, 4, 6]
    resumed_pools, resumed_learners, resumed = resume(config, records.saved[0], measures_norms=True)
    assert resumed.steps == records.steps[2:]
    for again, state in zip(resumed.saved, records.saved[1:], strict=True):
        np.testing.assert_equal(asdict(again), asdict(state))
    sampled = [(r.prompt.prompt_id, r.seeds) for r in resumed_pools.requests]
    assert sampled == [(r.prompt.prompt_id, r.seeds) for r in pools.requests][-len(sampled) :]
    assert [[g.prompt_id for g in batch.groups] for batch in resumed_learners.batches] == [
        [g.prompt_id for g in batch.groups] for batch in learners.batches[2:]
    ]


def test_the_start_counts_toward_the_budget() -> None:
    config = run_config(num_steps=50, token_budget=2 * STEP_TOKENS)
    spent = CheckpointState(**{**vars(START), "costs": {"cost/generated_tokens": float(STEP_TOKENS)}})

    async def go() -> list[int]:
        system, _, learners, _ = make_system(config)
        await drain(train(system, config, start=spent))
        return [batch.step for batch in learners.batches]

    assert asyncio.run(go()) == [0]
