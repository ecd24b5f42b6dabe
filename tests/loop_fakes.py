"""In-process fakes of a running system, and a loop over them: no cluster, no torch model."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gvm_ray.allocators import AllocationDriver
from gvm_ray.background import drain
from gvm_ray.config import RunConfig, parse_config
from gvm_ray.exceptions import SystemFailure
from gvm_ray.loop import System, train
from gvm_ray.system import assemble
from gvm_ray.types import (
    Allocation,
    AllocationReport,
    CheckpointState,
    FloatArray,
    GroupOutcome,
    GroupRef,
    Histograms,
    IndexArray,
    IntArray,
    Metrics,
    Pooling,
    Prompt,
    SampleRequest,
    SampleText,
    SamplingParameters,
    TrainBatch,
    TrainedNorms,
    UpdateResult,
    WeightsRef,
)
from tests.builders import prompt

START = CheckpointState(step=0, policy_version=0, cursor={}, allocator={}, costs={})


def run_config(**changes: Any) -> RunConfig:
    values = {
        "name": "loop",
        "num_steps": 6,
        "prompts_per_step": 4,
        "samples_per_prompt": 8,
        "model": {"type": "scratch"},
        "prompts": {"train": {"type": "arithmetic"}},
        "allocator": {"type": "uniform"},
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
    unscored: bool = False  # all of them
    unscored_first: bool = False  # the first two samples of every prompt
    slow_call: int = -1  # this call of sample_and_score is slow
    publish_s: float = 0.0
    events: list[str] = field(default_factory=list)
    num_calls: int = 0

    async def sample_and_score(
        self,
        requests: Sequence[SampleRequest],
        sampling: SamplingParameters,
        *,
        on_scored: Callable[[int], None] = lambda number: None,
    ) -> list[GroupOutcome]:
        version, call = self.version, self.num_calls
        self.num_calls += 1
        self.events.append(f"sample {call}")
        await asyncio.sleep(0.2 if call == self.slow_call else 0.002)
        self.events.append(f"sampled {call}")
        self.requests.extend(requests)
        on_scored(sum(len(request.seeds) for request in requests))
        return [self._outcome(request, version) for request in requests]

    def _outcome(self, request: SampleRequest, version: int) -> GroupOutcome:
        n = len(request.seeds)
        difficulty = int(request.prompt.prompt_id) % 4 / 4
        rewards = np.array([float(np.random.default_rng(s).random() > difficulty) for s in request.seeds])
        if self.unscored_first:
            rewards[np.array(request.sample_indices) < 2] = np.nan
        return GroupOutcome(
            prompt_id=request.prompt.prompt_id,
            sample_indices=request.sample_indices,
            rewards=np.full(n, np.nan) if self.unscored else rewards,
            num_tokens=np.full(n, 5, dtype=np.int32),
            policy_versions=np.full(n, version, dtype=np.int32),
            truncated=np.zeros(n, dtype=bool),
            ref=GroupRef(ref=(), index=0),
        )

    async def publish(self, weights: WeightsRef) -> None:
        await asyncio.sleep(self.publish_s)
        self.events.append(f"published {weights.policy_version}")
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
    measures_norms: bool = False  # 2 for a sample of positive advantage, 3 for one of negative
    events: list[str] = field(default_factory=list)

    async def gradient_norms(self, outcomes: Sequence[GroupOutcome]) -> list[GroupOutcome]:
        return [replace(o, gradient_norms=np.where(o.rewards > 0.5, 2.0, np.nan)) for o in outcomes]

    async def response_states(self, outcomes: Sequence[GroupOutcome]) -> list[GroupOutcome]:
        """[n, 2] states: the reward with some noise, and noise."""
        drawn = [np.random.default_rng([*map(ord, o.prompt_id), *o.sample_indices]) for o in outcomes]
        states = [rng.standard_normal((len(o.rewards), 2)) for o, rng in zip(outcomes, drawn, strict=True)]
        for outcome, rows in zip(outcomes, states, strict=True):
            rows[:, 0] += np.nan_to_num(outcome.rewards)
        return [o.with_response_states(rows.astype(np.float32)) for o, rows in zip(outcomes, states, strict=True)]

    async def prompt_states(self, prompts: Sequence[Prompt], *, pooling: Pooling) -> tuple[FloatArray, int]:
        width = {"mean": 4, "last": 4, "both": 8, "entropy": 1}[pooling]
        seeds = [prompt.token_ids for prompt in prompts]
        rows = [np.random.default_rng(seed).standard_normal(width, dtype=np.float32) for seed in seeds]
        return np.array(rows), sum(map(len, seeds))

    async def update(self, batch: TrainBatch) -> UpdateResult:
        self.events.append(f"update {batch.step}")
        await asyncio.sleep(0.003)
        if batch.step == self.fail_at:
            raise SystemFailure("learner died")
        self.batches.append(batch)
        norms = tuple(np.where(group.advantages > 0, 2.0, -3.0) * group.advantages for group in batch.groups)
        return UpdateResult(
            weights=WeightsRef(policy_version=batch.step + 1, location=()),
            metrics={"num_updates": 4.0, "logprob_difference/mean": 0.0},
            gradient_norms=norms if self.measures_norms else (),
        )

    async def save(self, folder: str) -> None: ...


@dataclass
class Records:
    """Keeps what the loop logs and saves."""

    steps: list[tuple[int, Metrics]] = field(default_factory=list)
    histograms: list[Histograms] = field(default_factory=list)
    texts: list[Sequence[SampleText]] = field(default_factory=list)
    saved: list[CheckpointState] = field(default_factory=list)

    def log_step(self, step: int, metrics: Metrics, *, histograms: Histograms, texts: Sequence[SampleText]) -> Metrics:
        self.steps.append((step, metrics))
        self.histograms.append(histograms)
        self.texts.append(texts)
        return metrics

    async def save(self, state: CheckpointState, learners: Any) -> None:
        self.saved.append(state)


class AsyncAllocator:
    """An allocator strategy behind the asynchronous protocol, without Ray."""

    def __init__(self, config: RunConfig) -> None:
        self.driver = AllocationDriver.of(config.allocator, accept_threshold=0.5)

    async def shortlist(self, prompts: Sequence[Prompt], **step: Any) -> IndexArray:
        return self.driver.shortlist(prompts, **step)

    async def plan(self, prompts: Sequence[Prompt], **step: Any) -> Allocation:
        return self.driver.plan(prompts, **step)

    async def observe(self, outcomes: Sequence[GroupOutcome], *, step: int) -> Allocation:
        return self.driver.observe(outcomes, step=step)

    async def report(self, *, step: int) -> AllocationReport:
        return self.driver.report(step=step)

    async def observe_training(self, norms: Sequence[TrainedNorms]) -> None:
        self.driver.observe_training(norms)

    async def state_dict(self) -> dict[str, Any]:
        return self.driver.state_dict()

    async def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.driver.load_state_dict(state)


class FakeEvaluator:
    """Always half right."""

    async def evaluate(self, policy_version: int) -> Metrics:
        return {"eval/accuracy": 0.5}


def fake_embeddings(token_ids: IntArray) -> FloatArray:
    """[U, 80] rows, each drawn by its token's number."""
    return np.array([np.random.default_rng(id_).standard_normal(80, dtype=np.float32) for id_ in token_ids])


def make_system(config: RunConfig) -> tuple[System, FakePools, FakeLearners, Records]:
    prompts = [prompt(i, text=str(i), token_ids=[i]) for i in range(24)]
    pools, learners, records = FakePools(), FakeLearners(), Records()
    learners.events = pools.events
    system = assemble(
        config,
        prompts=prompts,
        pools=pools,
        learners=learners,  # type: ignore[arg-type]
        allocator=AsyncAllocator(config),
        evaluator=FakeEvaluator(),
        log=records,
        checkpoints=records,
        embeddings=fake_embeddings,
    )
    return system, pools, learners, records


def run(config: RunConfig, **kwargs: Any) -> tuple[FakePools, FakeLearners, Records]:
    async def go() -> tuple[FakePools, FakeLearners, Records]:
        system, pools, learners, records = make_system(config)
        for name, value in kwargs.items():
            setattr(learners if hasattr(learners, name) else pools, name, value)
        await drain(train(system, config, start=START))
        return pools, learners, records

    return asyncio.run(go())
