"""A simulated system without a model: learners sleep instead of computing, and their weights are plain bytes."""

import asyncio
import functools
import random
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
import ray
from numpy.typing import NDArray

from gvm_ray.actors.context import RunContext
from gvm_ray.actors.generator_pool import GeneratorPool
from gvm_ray.config import RunConfig
from gvm_ray.lab.speed.simulated_engine import LatencyModel, SimulatedEngine
from gvm_ray.loop import System
from gvm_ray.phase_clock import PhaseClock
from gvm_ray.protocols import StepLog
from gvm_ray.system import assemble, start_allocator, start_pools
from gvm_ray.types import (
    Completion,
    Demonstration,
    FloatArray,
    GroupOutcome,
    Metrics,
    ModelSpec,
    Pooling,
    Prompt,
    TrainBatch,
    UpdateResult,
    WeightsRef,
)

REWARD_PATH = f"{__name__}:reward"


def simulated_prompts(
    num_prompts: int, *, num_tokens: int = 100, difficulty: tuple[float, float] = (0.7, 0.7), seed: int = 0
) -> list[Prompt]:
    """Create identical prompts, each with an accept rate drawn from Beta(*difficulty), by default a wide one."""
    accept_rates = np.random.default_rng(seed).beta(*difficulty, size=num_prompts)
    token_ids = np.zeros(num_tokens, dtype=np.int32)
    return [
        Prompt(
            prompt_id=f"simulated-{index}",
            text="",
            token_ids=token_ids,
            answer="",
            features={"accept_rate": float(accept_rate)},
        )
        for index, accept_rate in enumerate(accept_rates)
    ]


def reward(prompt: Prompt, completion: Completion) -> float:
    """Return 1 with the prompt's accept rate as probability, else 0; deterministic for a given text."""
    return float(random.Random(completion.text).random() < prompt.features["accept_rate"])


_STATE_WIDTH = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class SimulatedBucket:
    """A stand-in for a `Bucket` of tensors."""

    data: NDArray[np.uint8]

    def tensors(self) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """Yield all bytes under one name."""
        yield "weights", self.data


@dataclass(frozen=True, kw_only=True)
class LearnerLatency:
    """The durations of learner commands, in seconds of the clock."""

    constant_s: float  # duration of an empty update
    tokens_per_s: float  # speed of training, and of measuring gradient norms and prompt states


class SimulatedLearners:
    """Simulated learners (protocol `Learners`): one command at a time; longer responses have smaller gradient norms."""

    def __init__(
        self, latency: LearnerLatency, *, weights_bytes: int, accept_threshold: float, clock: PhaseClock
    ) -> None:
        self._latency = latency
        self._weights_bytes = weights_bytes
        self._accept_threshold = accept_threshold
        self._clock = clock
        self._command = asyncio.Lock()

    async def gradient_norms(self, outcomes: Sequence[GroupOutcome]) -> list[GroupOutcome]:
        """Add norms [n] to each outcome: NaN for rejected samples; deterministic for given samples."""
        accepted = [outcome.rewards >= self._accept_threshold for outcome in outcomes]
        num_tokens = sum(int(o.num_tokens[mask].sum()) for o, mask in zip(outcomes, accepted, strict=True))
        async with self._command:
            with self._clock.phase("gradient_norms"):
                await asyncio.sleep(num_tokens / self._latency.tokens_per_s)
        return [
            outcome.with_gradient_norms(np.where(mask, _norms(outcome), np.nan))
            for outcome, mask in zip(outcomes, accepted, strict=True)
        ]

    async def response_states(self, outcomes: Sequence[GroupOutcome]) -> list[GroupOutcome]:
        """Add standard normal states [n, 32] to each outcome; deterministic for given samples."""
        num_tokens = sum(int(outcome.num_tokens.sum()) for outcome in outcomes)
        async with self._command:
            with self._clock.phase("gradient_norms"):
                await asyncio.sleep(num_tokens / self._latency.tokens_per_s)
        return [
            outcome.with_response_states(
                _draw(outcome.prompt_id, *outcome.sample_indices).standard_normal(
                    (len(outcome.rewards), 2 * _STATE_WIDTH), dtype=np.float32
                )
            )
            for outcome in outcomes
        ]

    async def prompt_states(self, prompts: Sequence[Prompt], *, pooling: Pooling) -> tuple[FloatArray, int]:
        """Return standard normal states [P, 16], [P, 32] for both poolings or [P, 1] for entropies, deterministic for a
        given prompt; and the prompts' tokens."""
        num_tokens = sum(len(prompt.token_ids) for prompt in prompts)
        async with self._command:
            with self._clock.phase("prompt_states"):
                await asyncio.sleep(num_tokens / self._latency.tokens_per_s)
        width = {"mean": _STATE_WIDTH, "last": _STATE_WIDTH, "both": 2 * _STATE_WIDTH, "entropy": 1}[pooling]
        states = [_draw(prompt.prompt_id).standard_normal(width, dtype=np.float32) for prompt in prompts]
        return np.array(states, dtype=np.float32).reshape(len(prompts), width), num_tokens

    async def update(self, batch: TrainBatch) -> UpdateResult:
        """Sleep for the time of the batch's tokens, and return the next version."""
        num_tokens = sum(int(group.num_tokens.sum()) for group in batch.groups)
        async with self._command:
            with self._clock.phase("update"):
                await asyncio.sleep(self._latency.constant_s + num_tokens / self._latency.tokens_per_s)
        return UpdateResult(
            weights=await self.weights(batch.step + 1),
            metrics={"num_updates": 1.0, "learner/tokens": float(num_tokens)},
        )

    async def weights(self, policy_version: int) -> WeightsRef:
        """Put new bytes into the object store."""
        bucket = SimulatedBucket(data=np.full(self._weights_bytes, policy_version % 256, dtype=np.uint8))
        return WeightsRef(policy_version=policy_version, location=(ray.put(bucket),))

    async def supervised_update(self, demonstrations: Sequence[Demonstration]) -> Metrics:
        """Do nothing: there is nothing to learn."""
        return {"loss": 0.0}

    async def save(self, folder: str) -> None:
        """Do nothing: there is nothing to save."""

    def checkpointed(self, folder: str) -> None:
        """Do nothing: nothing was kept for a checkpoint."""

    async def export(self, folder: str) -> None:
        """Do nothing: there is nothing to export."""


def _norms(outcome: GroupOutcome) -> NDArray[np.float64]:
    """Draw log-normal norms [n] around 1 / sqrt(tokens), with a common factor for the group."""
    draw = _draw(outcome.prompt_id, *outcome.sample_indices)
    return (
        draw.lognormal(sigma=0.5)
        * draw.lognormal(sigma=0.3, size=len(outcome.num_tokens))
        / np.sqrt(outcome.num_tokens)
    )


def _draw(prompt_id: str, *sample_indices: int) -> np.random.Generator:
    """Create a generator seeded only by these."""
    return np.random.default_rng([zlib.crc32(prompt_id.encode()), *sample_indices])


PROMPT_TOKENS = 100


@dataclass(frozen=True, kw_only=True)
class SimulatedParts:
    """Settings of the simulated parts, and of those that a real run takes from data."""

    model: LatencyModel
    learners: LearnerLatency
    num_prompts: int  # in the whole set
    weights_bytes: int
    num_slow: int  # number of slow generators
    slow_factor: float  # factor on all their durations


class NoEvaluation:
    """An evaluator (protocol `Evaluator`) that returns nothing: there is no policy to evaluate."""

    async def evaluate(self, policy_version: int) -> Metrics:
        return {}


@asynccontextmanager
async def simulated_system(
    config: RunConfig, parts: SimulatedParts, *, log: StepLog, clock: PhaseClock
) -> AsyncIterator[tuple[System, GeneratorPool]]:
    """Start a system whose generators hold policy version 0; its actors are stopped on exit."""
    threshold = config.rewards.accept_threshold
    context = RunContext.of(config, clock=clock)
    model = ModelSpec(path=parts.model.to_json(), max_model_len=PROMPT_TOKENS + config.sampling.max_tokens)
    pools = start_pools(config, model, kind="custom", context=context)
    allocator = start_allocator(config, context=context)
    learners = SimulatedLearners(
        parts.learners, weights_bytes=parts.weights_bytes, accept_threshold=threshold, clock=clock
    )
    try:
        await pools.start()
        if parts.num_slow:
            await pools.generators.ask(functools.partial(_slow_down, num_slow=parts.num_slow, factor=parts.slow_factor))
        await pools.publish(await learners.weights(0))
        system = assemble(
            config,
            prompts=simulated_prompts(parts.num_prompts, num_tokens=PROMPT_TOKENS, seed=config.seed),
            pools=pools,
            learners=learners,
            allocator=allocator,
            evaluator=NoEvaluation(),
            log=log,
        )
        yield system, pools.generators
    finally:
        pools.close()
        allocator.close()


def _slow_down(engine: SimulatedEngine, *, num_slow: int, factor: float) -> None:
    """Slow the engine down if its generator is among the first `num_slow`. Runs in the generator's process."""
    name = ray.get_runtime_context().get_actor_name()
    assert name is not None
    if int(name.rpartition("-")[2]) < num_slow:
        engine.slow_down(factor)
