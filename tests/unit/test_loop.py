"""The loop over in-process fakes: what it trains, logs and saves, and how far its parts overlap."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from loop_fakes import START, make_system, run, run_config

from gvm_ray.background import drain
from gvm_ray.exceptions import SystemFailure
from gvm_ray.loop import train
from gvm_ray.types import Metrics


def test_every_step_is_trained_once_and_logged_with_cumulative_costs() -> None:
    pools, learners, records = run(run_config())
    assert [batch.step for batch in learners.batches] == list(range(6))
    assert [step for step, _ in records.steps] == list(range(6))
    assert [m["cost/generated_samples"] for _, m in records.steps] == [32 * (i + 1) for i in range(6)]
    assert records.steps[-1][1]["cost/generated_tokens"] == 6 * 32 * 5
    assert records.steps[-1][1]["cost/optimizer_updates"] == 24
    assert pools.version == 6


def test_evaluation_and_checkpoints_come_when_due_and_at_the_end() -> None:
    _, _, records = run(run_config(num_steps=5))
    assert [step for step, m in records.steps if "eval/accuracy" in m] == [2, 4]
    assert [state.step for state in records.saved] == [2, 4, 5]
    assert records.saved[-1].costs["cost/generated_samples"] == 5 * 32


def test_strictly_on_policy_at_zero_staleness() -> None:
    _, _, records = run(run_config())
    assert all(m["staleness/max"] == 0 for _, m in records.steps)


@pytest.mark.parametrize("bound", [1, 2])
def test_sampling_runs_ahead_but_never_beyond_the_bound(bound: int) -> None:
    _, _, records = run(run_config(num_steps=12, max_staleness=bound))
    observed = [m["staleness/max"] for _, m in records.steps]
    assert max(observed) == bound
    assert min(observed) >= 0


def test_the_next_batch_is_being_sampled_while_a_straggler_holds_up_the_last() -> None:
    pools, learners, _ = run(run_config(num_steps=4, max_staleness=1), slow_call=1)
    events = pools.events
    assert events.index("sample 2") < events.index("sampled 1")
    assert events.index("sampled 2") < events.index("sampled 1")
    assert [batch.step for batch in learners.batches] == [0, 1, 2, 3]  # trained in order all the same


def test_nothing_is_sampled_before_the_update_at_zero_staleness() -> None:
    pools, _, _ = run(run_config(num_steps=3), slow_call=1)
    expected = [
        event
        for step in range(3)
        for event in (f"sample {step}", f"sampled {step}", f"update {step}", f"published {step + 1}")
    ]
    assert pools.events == expected


def test_new_weights_go_out_while_the_learners_go_on() -> None:
    pools, _, records = run(run_config(num_steps=4, max_staleness=2, evaluation={"every_steps": 4}), publish_s=0.05)
    events = pools.events
    assert events.index("update 1") < events.index("published 1")
    assert [e for e in events if e.startswith("published")] == [f"published {v}" for v in (1, 2, 3, 4)]
    assert [step for step, _ in records.steps] == [0, 1, 2, 3]


def test_an_evaluation_waits_for_the_weights_it_is_about() -> None:
    versions: list[int] = []

    async def go() -> None:
        config = run_config(num_steps=6, max_staleness=2, evaluation={"every_steps": 4, "at_steps": [1, 2]})
        system, pools, _, _ = make_system(config)
        pools.publish_s = 0.02

        class VersionEvaluator:
            async def evaluate(self, policy_version: int) -> Metrics:
                assert policy_version == pools.version
                versions.append(pools.version)
                return {"eval/accuracy": 0.5}

        await drain(train(replace(system, evaluator=VersionEvaluator()), config, start=START))

    asyncio.run(go())
    assert versions == [1, 2, 4, 6]


@pytest.mark.parametrize("max_staleness", [0, 2])
def test_at_zero_staleness_an_evaluation_has_the_generators_for_itself(max_staleness: int) -> None:
    """Else the engine's batches, and the last digits of what comes of them, would depend on who comes first."""
    events: list[str] = []

    async def go() -> None:
        config = run_config(num_steps=6, max_staleness=max_staleness, evaluation={"every_steps": 2})
        system, pools, _, _ = make_system(config)
        pools.events = events

        class SlowEvaluator:
            async def evaluate(self, policy_version: int) -> Metrics:
                events.append("evaluation begins")
                await asyncio.sleep(0.05)
                events.append("evaluation ends")
                return {"eval/accuracy": 0.5}

        await drain(train(replace(system, evaluator=SlowEvaluator()), config, start=START))

    asyncio.run(go())
    begun = [index for index, event in enumerate(events) if event == "evaluation begins"]
    assert len(begun) == 3
    alone = [events[index + 1] == "evaluation ends" for index in begun]
    assert alone == [True, True, True] if max_staleness == 0 else not alone[0]


def test_samples_without_a_reward_are_dropped_charged_and_replaced() -> None:
    pools, learners, records = run(run_config(num_steps=2), unscored_first=True)
    assert records.steps[0][1]["cost/generated_samples"] == 32 + 8
    assert records.steps[1][1]["cost/refilled_samples"] == 16
    indices = {r.sample_indices for r in pools.requests}
    assert indices == {tuple(range(8)), (8, 9)}
    assert all(np.isfinite(group.advantages).all() for batch in learners.batches for group in batch.groups)


def test_overlapping_blocks_stay_within_the_bound_and_the_budget() -> None:
    allocator = {"type": "gvm", "pilot_samples": 4, "block_steps": 2}
    pools, learners, records = run(run_config(num_steps=8, allocator=allocator, max_staleness=3), slow_call=2)
    assert [batch.step for batch in learners.batches] == list(range(8))
    assert records.steps[-1][1]["cost/generated_samples"] == 8 * 32
    assert max(m["staleness/max"] for _, m in records.steps) <= 3
    assert pools.events.index("sample 3") < pools.events.index("sampled 2")


def test_gvm_spends_the_budget_exactly_and_unevenly() -> None:
    pools, _, records = run(run_config(allocator={"type": "gvm", "pilot_samples": 4}))
    assert [m["allocation/total"] for _, m in records.steps] == [32] * 6
    assert records.steps[-1][1]["cost/generated_samples"] == 6 * 32
    assert any(m["allocation/max"] > m["allocation/min"] for _, m in records.steps)
    seeds = [seed for request in pools.requests for seed in request.seeds]
    assert len(seeds) == len(set(seeds))


def test_a_block_pilots_ahead_trains_on_the_pilots_and_keeps_its_budget() -> None:
    allocator = {"type": "gvm", "pilot_samples": 4, "block_steps": 2}
    _, learners, records = run(run_config(allocator=allocator, max_staleness=1))
    samples = [m["cost/generated_samples"] for _, m in records.steps]
    assert [samples[1], samples[3], samples[5]] == [64, 128, 192]
    assert samples[0] > 32  # the second step's pilots are drawn, and charged, in the first
    assert max(m["staleness/max"] for _, m in records.steps) <= 1
    assert len(learners.batches) == 6


def test_unused_pilots_are_charged_but_not_trained_on() -> None:
    allocator = {"type": "gvm", "pilot_samples": 4, "reuse_pilots": False}
    _, learners, records = run(run_config(allocator=allocator))
    assert records.steps[-1][1]["cost/generated_samples"] == 6 * 32
    assert all(sum(len(group.sample_indices) for group in batch.groups) <= 16 for batch in learners.batches)


CHOOSING = {
    "speed": {"screening_samples": 2, "candidates_per_step": 8},
    "greso": {"candidates_per_step": 12},
    "mopps": {"candidates_per_step": 12},
    "dps": {},
    "hive": {},
    "pods": {"kept_samples": 2},
    "offline_filter": {"candidates_per_step": 12, "measurement_samples": 4},
}


@pytest.mark.parametrize("name", CHOOSING)
def test_steps_of_allocators_that_choose_cost_their_budget(name: str) -> None:
    _, learners, records = run(run_config(allocator={"type": name, **CHOOSING[name]}))
    assert [m["cost/generated_samples"] for _, m in records.steps] == [32 * (i + 1) for i in range(6)]
    assert len(learners.batches) == 6


def test_groups_that_dapo_drops_are_charged_and_not_trained_on() -> None:
    _, learners, records = run(run_config(allocator={"type": "dapo", "max_batches": 2}, algorithm={"type": "grpo"}))
    costs = np.diff([0, *(m["cost/generated_samples"] for _, m in records.steps)])
    assert costs.min() >= 32
    assert 32 < costs.max() <= 64
    for batch in learners.batches:
        assert 0 < len(batch.groups) <= 4
        assert all(int(group.prompt_id) % 4 for group in batch.groups)  # every fourth prompt is always solved


def test_a_failing_learner_ends_the_run_with_its_error() -> None:
    with pytest.raises(SystemFailure, match="learner died"):
        run(run_config(), fail_at=2)


def test_too_many_unscored_samples_stop_the_run() -> None:
    with pytest.raises(ExceptionGroup) as error:
        run(run_config(), unscored=True)
    assert error.group_contains(SystemFailure, match="max_unscored_fraction")
