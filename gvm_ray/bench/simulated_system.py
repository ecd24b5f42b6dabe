"""The system of a simulation: every part is the real one, except that engines and learners sleep for their work."""

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import ray

from gvm_ray.actors.allocator import AllocatorClient
from gvm_ray.actors.generator_pool import GeneratorPool
from gvm_ray.actors.pools import SamplingPools
from gvm_ray.actors.reward import RewardPool
from gvm_ray.algorithms import create_algorithm
from gvm_ray.bench.latency_model import LatencyModel
from gvm_ray.bench.simulated_engine import SimulatedEngine
from gvm_ray.bench.simulated_learners import LearnerLatency, SimulatedLearners
from gvm_ray.bench.simulated_task import simulated_prompts
from gvm_ray.checkpoints import NoCheckpoints
from gvm_ray.config import RunConfig
from gvm_ray.envs.prompt_stream import ShuffledPrompts
from gvm_ray.failure_log import FailureLog
from gvm_ray.loop import System
from gvm_ray.phase_clock import PhaseClock
from gvm_ray.prompt_states import CachedPromptStates
from gvm_ray.protocols import StepLog
from gvm_ray.types import Metrics

PROMPT_TOKENS = 100


@dataclass(frozen=True, kw_only=True)
class SimulatedParts:
    """What a simulation knows of the parts that are not real, or that a run takes from data."""

    model: LatencyModel
    learners: LearnerLatency
    num_prompts: int  # of the whole set
    weights_bytes: int
    num_slow: int  # generators
    slow_factor: float  # times as long for everything


class NoEvaluation:
    """Protocol `Evaluator`: there is no policy to evaluate."""

    async def evaluate(self) -> Metrics:
        return {}


@asynccontextmanager
async def simulated_system(
    config: RunConfig, parts: SimulatedParts, *, log: StepLog, clock: PhaseClock
) -> AsyncIterator[tuple[System, GeneratorPool]]:
    """A started system whose generators hold policy version 0; its actors end with it."""
    threshold = config.rewards.accept_threshold
    failures = FailureLog(config.faults)
    pools = _pools(config, parts, clock=clock, failures=failures)
    allocator = AllocatorClient(
        config.allocator,
        accept_threshold=threshold,
        seed=config.seed,
        timeout_s=config.deadlines.sample_s,
        failures=failures,
    )
    learners = SimulatedLearners(
        parts.learners, weights_bytes=parts.weights_bytes, accept_threshold=threshold, clock=clock
    )
    try:
        await pools.start()
        if parts.num_slow:
            await pools.generators.ask(functools.partial(_slow_down, num_slow=parts.num_slow, factor=parts.slow_factor))
        await pools.publish(await learners.weights(0))
        system = System(
            prompts=ShuffledPrompts(
                simulated_prompts(parts.num_prompts, num_tokens=PROMPT_TOKENS, seed=config.seed),
                seed=config.seed,
                shuffle=True,
                unique_within=min(config.candidates_per_step * config.block_steps, parts.num_prompts),
            ),
            states=CachedPromptStates(learners=learners, config=config.prompt_states),
            allocator=allocator,
            pools=pools,
            learners=learners,
            algorithm=create_algorithm(config.algorithm, accept_threshold=threshold),
            evaluator=NoEvaluation(),
            checkpoints=NoCheckpoints(),
            log=log,
        )
        yield system, pools.generators
    finally:
        pools.close()
        allocator.close()


def _pools(config: RunConfig, parts: SimulatedParts, *, clock: PhaseClock, failures: FailureLog) -> SamplingPools:
    max_tokens = config.sampling.max_tokens
    return SamplingPools(
        generators=GeneratorPool(
            config.engine,
            kind="custom",
            model_path=parts.model.to_json(),
            max_model_len=PROMPT_TOKENS + max_tokens,
            max_tokens=max_tokens,
            deadlines=config.deadlines,
            failures=failures,
            clock=clock,
        ),
        rewards=RewardPool(config.rewards, max_tokens=max_tokens, deadlines=config.deadlines, failures=failures),
        clock=clock,
    )


def _slow_down(engine: SimulatedEngine, *, num_slow: int, factor: float) -> None:
    """In the generator's process: the first generators are the slow ones."""
    name = ray.get_runtime_context().get_actor_name()
    assert name is not None
    if int(name.rpartition("-")[2]) < num_slow:
        engine.slow_down(factor)
