"""A simulated system without a model, and its settings: learners sleep for their work, and weights are plain bytes."""

import asyncio
import functools
import random
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import ray
from numpy.typing import NDArray

from gvm_ray.actors.context import RunContext
from gvm_ray.actors.generator_pool import GeneratorPool
from gvm_ray.config import RunConfig, parse_config
from gvm_ray.exceptions import ConfigError
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
PROMPT_TOKENS = 100
_STATE_WIDTH = 16


@dataclass(frozen=True, kw_only=True)
class LearnerLatency:
    """The durations of learner commands, in seconds of the clock."""

    constant_s: float  # duration of an empty update
    tokens_per_s: float  # speed of training, and of measuring gradient norms and prompt states


@dataclass(frozen=True, kw_only=True)
class SimulationSettings:
    """One arm of a sweep."""

    num_generators: int = 64
    max_staleness: int = 2
    allocator: Literal["gvm", "uniform"] = "gvm"
    num_steps: int = 10  # measured steps
    warm_up_steps: int | None = None  # earlier steps; None = 2 (max_staleness + 1), as the first come in one burst
    prompts_per_step: int = 1024
    samples_per_prompt: int = 8
    num_prompts: int = 8192
    max_num_seqs: int = 128  # number of slots of a generator
    max_tokens: int = 3072
    num_reward_actors: int = 2
    samples_per_s: float | None = 300.0  # in real time, with all slots full; None keeps the model's speed
    model: LatencyModel = field(default_factory=LatencyModel)
    slow_share: float = 0.0  # share of slow generators
    slow_factor: float = 2.0
    update_share: float = 0.5  # time to train on a step's samples / time to sample them with all slots full
    weights_mb: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_warm_up < 1 or self.num_steps < 1:
            raise ConfigError(
                f"warm_up_steps={self.warm_up_steps} and num_steps={self.num_steps}; write 1 or more of each: the "
                "measurement begins at the end of one step and ends at the end of another"
            )

    @property
    def num_warm_up(self) -> int:
        """The number of steps before the measured ones."""
        return 2 * (self.max_staleness + 1) if self.warm_up_steps is None else self.warm_up_steps

    @property
    def num_slow(self) -> int:
        """The number of generators that take `slow_factor` times as long."""
        return round(self.slow_share * self.num_generators)

    @property
    def mean_tokens(self) -> float:
        """The mean tokens of a response, after cutting at max_tokens."""
        lengths = [self.model.num_tokens(seed) for seed in range(20_000)]
        return float(np.minimum(lengths, self.max_tokens).mean())

    @property
    def modelled_samples_per_s(self) -> float:
        """The upper bound on samples/s in modelled time: all slots of all generators always full."""
        model, slots = self.model, self.max_num_seqs
        equivalents = self.num_generators - self.num_slow + self.num_slow / self.slow_factor
        return equivalents * slots / (model.decode_s(slots) * self.mean_tokens)

    @property
    def timed_model(self) -> LatencyModel:
        """The latency model at the speed that gives `samples_per_s`."""
        if self.samples_per_s is None:
            return self.model
        return replace(self.model, speed=self.samples_per_s / self.modelled_samples_per_s)

    @property
    def ideal_samples_per_s(self) -> float:
        """The upper bound on samples/s in real time."""
        return self.modelled_samples_per_s * self.timed_model.speed

    def run_config(self) -> RunConfig:
        """Build the run configuration of the real parts.

        Raises:
            ConfigError: a setting is out of range.
        """
        num_steps = self.num_warm_up + self.num_steps + self.max_staleness  # sampling must not run dry at the end
        gvm = {"type": "gvm", "pilot_samples": max(1, self.samples_per_prompt // 2)}
        return parse_config(
            {
                "name": "simulation",
                "seed": self.seed,
                "num_steps": num_steps,
                "prompts_per_step": self.prompts_per_step,
                "samples_per_prompt": self.samples_per_prompt,
                "max_staleness": self.max_staleness,
                "model": {"type": "scratch"},
                "reporting": {"ray_metrics": False},
                "prompts": {"train": {"type": "arithmetic"}},
                "sampling": {"max_tokens": self.max_tokens},
                "engine": {
                    "type": "custom",
                    "path": f"{SimulatedEngine.__module__}:{SimulatedEngine.__name__}",
                    "num_generators": self.num_generators,
                    "cpus_per_generator": 0.01,
                    "max_num_seqs": self.max_num_seqs,
                },
                "rewards": {
                    "terms": [{"type": "function", "path": REWARD_PATH}],
                    "num_actors": self.num_reward_actors,
                    "cpus_per_actor": 0.01,
                    "memory_mb": 1024,
                },
                "allocator": gvm if self.allocator == "gvm" else {"type": self.allocator},
                "checkpoint": {"every_steps": num_steps + 1},
                "evaluation": {"every_steps": num_steps + 1},
                "deadlines": {"start_s": 1800},
                "cluster": {"dashboard": False, "object_store_mb": 3000},
            }
        )

    @property
    def learners(self) -> LearnerLatency:
        """The durations of the learners' commands, in seconds of the clock."""
        tokens_per_s = self.ideal_samples_per_s * self.mean_tokens / self.update_share
        return LearnerLatency(constant_s=1.0 / self.timed_model.speed, tokens_per_s=tokens_per_s)

    @property
    def weights_bytes(self) -> int:
        """The size of a policy version."""
        return self.weights_mb * 2**20


def simulated_prompts(num_prompts: int, *, seed: int) -> list[Prompt]:
    """Create identical prompts, each with an accept rate drawn from a wide distribution, Beta(0.7, 0.7)."""
    accept_rates = np.random.default_rng(seed).beta(0.7, 0.7, size=num_prompts)
    token_ids = np.zeros(PROMPT_TOKENS, dtype=np.int32)
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


@dataclass(frozen=True, kw_only=True, eq=False)
class SimulatedBucket:
    """A stand-in for a `Bucket` of tensors."""

    data: NDArray[np.uint8]

    def tensors(self) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """Yield all bytes under one name."""
        yield "weights", self.data


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


class NoEvaluation:
    """An evaluator (protocol `Evaluator`) that returns nothing: there is no policy to evaluate."""

    async def evaluate(self, policy_version: int) -> Metrics:
        return {}


@asynccontextmanager
async def simulated_system(
    config: RunConfig, settings: SimulationSettings, *, log: StepLog, clock: PhaseClock
) -> AsyncIterator[tuple[System, GeneratorPool]]:
    """Start a system whose generators hold policy version 0; its actors are stopped on exit."""
    threshold = config.rewards.accept_threshold
    context = RunContext.of(config, clock=clock)
    model = ModelSpec(path=settings.timed_model.to_json(), max_model_len=PROMPT_TOKENS + config.sampling.max_tokens)
    pools = start_pools(config, model, kind="custom", context=context)
    allocator = start_allocator(config, context=context)
    learners = SimulatedLearners(
        settings.learners, weights_bytes=settings.weights_bytes, accept_threshold=threshold, clock=clock
    )
    try:
        await pools.start()
        if num_slow := settings.num_slow:
            await pools.generators.ask(functools.partial(_slow_down, num_slow=num_slow, factor=settings.slow_factor))
        await pools.publish(await learners.weights(0))
        system = assemble(
            config,
            prompts=simulated_prompts(settings.num_prompts, seed=config.seed),
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
