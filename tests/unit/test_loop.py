"""The loop with in-process fakes: no cluster, no torch model."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from gvm_ray.algorithms import create_algorithm
from gvm_ray.allocators import AllocatorSteps, create_allocator
from gvm_ray.config import RunConfig, parse_config
from gvm_ray.envs.prompt_stream import ShuffledPrompts
from gvm_ray.exceptions import SystemFailure
from gvm_ray.loop import System, train
from gvm_ray.types import (
    Allocation,
    AllocationReport,
    CheckpointState,
    GroupOutcome,
    GroupRef,
    Metrics,
    Prompt,
    SampleRequest,
    SamplingParameters,
    TrainBatch,
    UpdateResult,
    WeightsRef,
)

START = CheckpointState(step=0, policy_version=0, cursor={}, allocator={}, costs={})


def run_config(**changes: Any) -> RunConfig:
    values = {
        "name": "loop",
        "num_steps": 6,
        "prompts_per_step": 4,
        "samples_per_prompt": 8,
        "model": {"type": "scratch"},
        "prompts": {"train": {"type": "arithmetic"}},
        "evaluation": {"every_steps": 3},
        "checkpoint": {"every_steps": 2},
        **changes,
    }
    return parse_config(values)


@dataclass
class FakePools:
    """Samples with the current version after a moment; rewards are a fixed function of the seed."""

    version: int = 0
    requests: list[SampleRequest] = field(default_factory=list)
    condition: asyncio.Condition = field(default_factory=asyncio.Condition)
    unscored: bool = False

    async def sample_and_score(
        self, requests: Sequence[SampleRequest], sampling: SamplingParameters
    ) -> list[GroupOutcome]:
        version = self.version
        await asyncio.sleep(0.002)
        self.requests.extend(requests)
        return [self._outcome(request, version) for request in requests]

    def _outcome(self, request: SampleRequest, version: int) -> GroupOutcome:
        n = len(request.seeds)
        difficulty = int(request.prompt.prompt_id) % 4 / 4
        rewards = np.array([float(np.random.default_rng(s).random() > difficulty) for s in request.seeds])
        return GroupOutcome(
            prompt_id=request.prompt.prompt_id,
            rewards=np.full(n, np.nan) if self.unscored else rewards,
            num_tokens=np.full(n, 5, dtype=np.int32),
            policy_versions=np.full(n, version, dtype=np.int32),
            truncated=np.zeros(n, dtype=bool),
            ref=GroupRef(ref=(), index=0),
        )

    async def publish(self, weights: WeightsRef) -> None:
        async with self.condition:
            self.version = weights.policy_version
            self.condition.notify_all()

    async def wait_for_version(self, policy_version: int) -> None:
        async with self.condition:
            await self.condition.wait_for(lambda: self.version >= policy_version)


@dataclass
class FakeLearners:
    """Remembers its batches; every update makes the next version."""

    batches: list[TrainBatch] = field(default_factory=list)
    fail_at: int | None = None

    async def gradient_norms(self, outcomes: Sequence[GroupOutcome]) -> list[GroupOutcome]:
        return [replace(o, gradient_norms=np.where(o.rewards > 0.5, 2.0, np.nan)) for o in outcomes]

    async def update(self, batch: TrainBatch) -> UpdateResult:
        await asyncio.sleep(0.003)
        if batch.step == self.fail_at:
            raise SystemFailure("learner died")
        self.batches.append(batch)
        return UpdateResult(
            weights=WeightsRef(policy_version=batch.step + 1, location=()),
            metrics={"num_updates": 4.0, "logprob_difference/mean": 0.0},
        )

    async def save(self, folder: str) -> None: ...


@dataclass
class Records:
    """Keeps what the loop logs and saves."""

    steps: list[tuple[int, Metrics]] = field(default_factory=list)
    saved: list[CheckpointState] = field(default_factory=list)

    def log_step(self, step: int, metrics: Metrics, *, histograms: Mapping[str, Any]) -> None:
        self.steps.append((step, metrics))

    async def save(self, state: CheckpointState, learners: Any) -> None:
        self.saved.append(state)


class AsyncAllocator:
    """An allocator strategy behind the asynchronous protocol, without Ray."""

    def __init__(self, config: RunConfig) -> None:
        self.strategy = create_allocator(config.allocator, accept_threshold=0.5)
        self.steps = AllocatorSteps(self.strategy)

    async def plan(
        self, prompts: Sequence[Prompt], *, step: int, budget: int, upcoming: Sequence[Prompt] = ()
    ) -> Allocation:
        return self.steps.plan(prompts, step=step, budget=budget, upcoming=upcoming)

    async def observe(self, outcomes: Sequence[GroupOutcome], *, step: int) -> Allocation:
        return self.steps.observe(outcomes, step=step)

    async def accept_rates(self, prompt_ids: Sequence[str]) -> dict[str, float]:
        return self.strategy.accept_rates(prompt_ids)

    async def report(self, *, step: int) -> AllocationReport:
        return self.steps.report(step=step)

    async def state_dict(self) -> dict[str, Any]:
        return self.strategy.state_dict()

    async def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.strategy.load_state_dict(state)


class FakeEvaluator:
    """Always half right."""

    async def evaluate(self) -> Metrics:
        return {"eval/accuracy": 0.5}


def make_system(config: RunConfig) -> tuple[System, FakePools, FakeLearners, Records]:
    prompts = [
        Prompt(prompt_id=str(i), text=str(i), token_ids=np.array([i], dtype=np.int32), answer="1") for i in range(24)
    ]
    pools, learners, records = FakePools(), FakeLearners(), Records()
    system = System(
        prompts=ShuffledPrompts(
            prompts, seed=config.seed, shuffle=True, unique_within=config.prompts_per_step * config.block_steps
        ),
        allocator=AsyncAllocator(config),
        pools=pools,
        learners=learners,  # type: ignore[arg-type]
        algorithm=create_algorithm(config.algorithm, accept_threshold=0.5),
        evaluator=FakeEvaluator(),
        checkpoints=records,
        log=records,
    )
    return system, pools, learners, records


def run(config: RunConfig, **kwargs: Any) -> tuple[FakePools, FakeLearners, Records]:
    async def go() -> tuple[FakePools, FakeLearners, Records]:
        system, pools, learners, records = make_system(config)
        for name, value in kwargs.items():
            setattr(learners if hasattr(learners, name) else pools, name, value)
        await train(system, config, start=START)
        return pools, learners, records

    return asyncio.run(go())


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


def test_a_failing_learner_ends_the_run_with_its_error() -> None:
    with pytest.raises(ExceptionGroup) as error:
        run(run_config(), fail_at=2)
    assert error.group_contains(SystemFailure, match="learner died")


def test_too_many_unscored_samples_stop_the_run() -> None:
    with pytest.raises(ExceptionGroup) as error:
        run(run_config(), unscored=True)
    assert error.group_contains(SystemFailure, match="max_unscored_fraction")
