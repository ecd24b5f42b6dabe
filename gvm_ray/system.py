"""RunConfig to a placed, started System: actors up, policy warm-started or restored, first weights published."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gvm_ray.actors.allocator import ALLOCATOR_NAME, AllocatorClient
from gvm_ray.actors.cluster import namespace_of
from gvm_ray.actors.generator_pool import GeneratorPool
from gvm_ray.actors.learners import LearnerGroup
from gvm_ray.actors.metrics import RayGaugeSink
from gvm_ray.actors.pools import SamplingPools, fetch_groups
from gvm_ray.actors.recovery import RecoveringLearners
from gvm_ray.actors.reward import RewardPool
from gvm_ray.algorithms import create_algorithm, token_loss
from gvm_ray.checkpoints import CheckpointFolder, RestoredCheckpoint
from gvm_ray.config import RunConfig
from gvm_ray.evaluation.evaluator import EvaluationBeside, HeldOutEvaluator
from gvm_ray.failure_log import FailureLog
from gvm_ray.ledger import SampleTexts
from gvm_ray.loop import System
from gvm_ray.phase_clock import PhaseClock
from gvm_ray.prepare import Prepared
from gvm_ray.prompt_states import CachedPromptStates
from gvm_ray.reporting import Reporter
from gvm_ray.reporting.progress import ProgressLines
from gvm_ray.stop_request import StopRequest
from gvm_ray.tasks.prompt_set import demonstrations
from gvm_ray.tasks.prompt_stream import ShuffledPrompts
from gvm_ray.types import CheckpointState, Metrics, SamplingParameters


@dataclass(frozen=True, kw_only=True)
class Launched:
    """A running system and the state its loop starts from."""

    system: System
    start: CheckpointState
    learners: RecoveringLearners
    evaluator: HeldOutEvaluator


@asynccontextmanager
async def launched(
    config: RunConfig,
    prepared: Prepared,
    *,
    checkpoints: CheckpointFolder,
    restored: RestoredCheckpoint | None,
    run_dir: Path,
    log: Reporter,
    clock: PhaseClock,
    failures: FailureLog,
    stop: StopRequest,
) -> AsyncIterator[Launched]:
    """A started system; every actor that was started is stopped again on the way out."""
    pools = start_pools(config, prepared, clock=clock, failures=failures)
    own = pools_of_evaluation(config, prepared, pools, failures=failures)
    allocator = start_allocator(config, clock=clock, failures=failures)
    learners = make_learners(config, prepared, pools, run_dir=run_dir, clock=clock, failures=failures)
    fleets = [pools.generators] if own is None else [pools.generators, own.generators]
    for fleet in fleets:
        fleet.republish = learners.republish
    stream = prompt_stream(config, prepared)
    try:
        # The generators import and compile while the learners start and, where asked, learn from demonstrations.
        starting = [pools.rewards.start(), *(fleet.start() for fleet in fleets)]
        await asyncio.gather(*starting, start_learners(config, prepared, learners, restored=restored))
        states = CachedPromptStates(learners=learners, config=config.prompt_states)
        start = await starting_state(stream, states, allocator, restored=restored)
        await pools.publish(await learners.weights(start.policy_version))
        evaluator = make_evaluator(config, prepared, pools, by_time=config.reporting.progress)
        system = System(
            prompts=stream,
            states=states,
            allocator=allocator,
            pools=pools,
            learners=learners,
            algorithm=create_algorithm(config.algorithm, accept_threshold=config.rewards.accept_threshold),
            evaluator=evaluator,
            checkpoints=checkpoints,
            log=log,
            texts=sample_texts(config),
            beside=own and EvaluationBeside(make_evaluator(config, prepared, own), own, log=log.log_evaluation),
            stop=stop,
        )
        yield Launched(system=system, start=start, learners=learners, evaluator=evaluator)
    finally:
        await learners.stop()
        for fleet in fleets:
            fleet.close()
        pools.rewards.close()
        allocator.close()


def sharing(config: RunConfig, pools: SamplingPools) -> GeneratorPool | None:
    """The generators, if they share the learners' GPUs."""
    return pools.generators if config.cluster.placement == "colocated" else None


def make_learners(
    config: RunConfig,
    prepared: Prepared,
    pools: SamplingPools,
    *,
    run_dir: Path,
    clock: PhaseClock,
    failures: FailureLog,
) -> RecoveringLearners:
    """The learners, not started; the pools' weights are sent by them."""
    learners = RecoveringLearners(
        lambda: LearnerGroup(
            config,
            base_path=prepared.base.path,
            token_loss=token_loss(config.algorithm),
            run_dir=str(run_dir),
            namespace=namespace_of(config),
            clock=clock,
            transfer=prepared.transfer,
            generators=sharing(config, pools),
        ),
        failures=failures,
        handover_s=config.deadlines.handover_s,
    )
    pools.generators.send = learners.send
    return learners


def start_allocator(
    config: RunConfig, *, clock: PhaseClock, failures: FailureLog, name: str = ALLOCATOR_NAME
) -> AllocatorClient:
    """The allocator's actor, asked for but not awaited."""
    return AllocatorClient(
        config.allocator,
        accept_threshold=config.rewards.accept_threshold,
        seed=config.seed,
        timeout_s=config.deadlines.sample_s,
        failures=failures,
        clock=clock,
        name=name,
    )


def prompt_stream(config: RunConfig, prepared: Prepared) -> ShuffledPrompts:
    """The training prompts at their start; those that one allocation may name are all different."""
    return ShuffledPrompts(
        prepared.prompts.train,
        seed=config.seed,
        shuffle=config.prompts.shuffle,
        unique_within=min(config.candidates_per_step * config.block_steps, len(prepared.prompts.train)),
    )


async def starting_state(
    stream: ShuffledPrompts,
    states: CachedPromptStates,
    allocator: AllocatorClient,
    *,
    restored: RestoredCheckpoint | None,
) -> CheckpointState:
    """Where the loop begins; prompts, their states and the allocator go back to where a checkpoint left them."""
    if restored is None:
        return CheckpointState(step=0, policy_version=0, cursor=stream.state_dict(), allocator={}, costs={})
    stream.load_state_dict(restored.state.cursor)
    states.load_state_dict(restored.state.prompt_states)
    await allocator.load_state_dict(restored.state.allocator)
    return restored.state


def start_pools(
    config: RunConfig,
    prepared: Prepared,
    *,
    clock: PhaseClock | None = None,
    failures: FailureLog | None = None,
    prefix: str = "",
) -> SamplingPools:
    """Generator and reward actors, asked for but not awaited; `prefix` begins their names."""
    clock, failures = clock or PhaseClock(), failures or FailureLog(config.faults)
    return SamplingPools(
        generators=_generators(config, prepared, clock=clock, failures=failures, name=f"{prefix}generator"),
        rewards=RewardPool(
            config.rewards,
            max_tokens=config.sampling.max_tokens,
            deadlines=config.deadlines,
            failures=failures,
            environment=config.environment,
            name=f"{prefix}reward",
        ),
        clock=clock,
        gauges=RayGaugeSink(run=config.name) if config.reporting.ray_metrics else None,
    )


def pools_of_evaluation(
    config: RunConfig, prepared: Prepared, pools: SamplingPools, *, failures: FailureLog
) -> SamplingPools | None:
    """Generators for evaluation alone, where the run asks for them, asked for but not awaited; the reward actors are
    the training's."""
    if not (number := config.evaluation.num_generators):
        return None
    clock = PhaseClock()  # its phases aren't those of the training
    generators = _generators(
        config, prepared, clock=clock, failures=failures, name="evaluation-generator", num_generators=number
    )
    return SamplingPools(generators=generators, rewards=pools.rewards, clock=clock)


def _generators(
    config: RunConfig,
    prepared: Prepared,
    *,
    clock: PhaseClock,
    failures: FailureLog,
    name: str,
    num_generators: int | None = None,
) -> GeneratorPool:
    """As many as [engine] says, or another number of the same, which learners don't send weights to."""
    number = config.engine.num_generators if num_generators is None else num_generators
    return GeneratorPool(
        config.engine.model_copy(update={"num_generators": number, "sleep": config.generators_sleep}),
        kind=prepared.engine_kind,
        placement=config.cluster.placement,
        model_path=prepared.base.path,
        max_model_len=prepared.max_model_len,
        max_tokens=config.sampling.max_tokens,
        revision=prepared.base.revision,
        trust_remote_code=prepared.base.trust_remote_code,
        deadlines=config.deadlines,
        failures=failures,
        clock=clock,
        name=name,
        transfer=prepared.transfer if num_generators is None else "object_store",
    )


async def start_learners(
    config: RunConfig,
    prepared: Prepared,
    learners: RecoveringLearners,
    *,
    restored: RestoredCheckpoint | None,
) -> None:
    """Learners up, and either restored from a checkpoint or, where asked and not cached, warm-started."""
    await learners.start()
    if restored is not None:
        await learners.restore(str(restored.learner), policy_version=restored.state.policy_version)
    else:
        await warm_start(config, prepared, learners)


async def warm_start(config: RunConfig, prepared: Prepared, learners: LearnerGroup | RecoveringLearners) -> None:
    """Learn from demonstrations, where that is asked for and no cached result takes its place; the result is cached."""
    if config.warm_start is not None and prepared.base.warm_start_folder is not None:
        examples = demonstrations(
            config.prompts,
            prepared.tokenizer,
            num=config.warm_start.num_demonstrations,
            seed=config.warm_start.seed,
            end_token_ids=prepared.end_token_ids,
        )
        tell = _warm_start_lines(config.warm_start.num_updates, by_time=config.reporting.progress)
        await learners.warm_start(examples, on_progress=tell)
        await learners.export(str(prepared.base.warm_start_folder))


def _warm_start_lines(num_updates: int, *, by_time: bool) -> Callable[[int, Metrics], None]:
    """Prints what came of the warm start, and with `by_time` on the way how far it is."""
    lines = ProgressLines("warm start", num_updates)

    def on_progress(done: int, metrics: Metrics) -> None:
        loss = f"loss {metrics['loss']:.3f}"
        if by_time:
            lines.at(done, note=loss)
        if done == num_updates:
            print(f"warm start {done}/{num_updates}  {loss}", flush=True)

    return on_progress


def sample_texts(config: RunConfig) -> SampleTexts:
    """The looks at what is sampled that the run asks for."""
    return SampleTexts(
        every_steps=config.reporting.samples_every_steps,
        fetch=partial(fetch_groups, timeout_s=config.deadlines.sample_s),
    )


def make_evaluator(
    config: RunConfig, prepared: Prepared, pools: SamplingPools, *, by_time: bool = False
) -> HeldOutEvaluator:
    """The evaluator of prompts.eval with the run's evaluation settings; with `by_time` it prints how far it is."""
    return HeldOutEvaluator(
        prompts=prepared.prompts.eval[: config.evaluation.num_prompts],
        pools=pools,
        sampling=SamplingParameters(
            temperature=config.evaluation.temperature,
            top_p=config.evaluation.top_p,
            max_tokens=config.sampling.max_tokens,
        ),
        num_samples=config.evaluation.num_samples,
        progress=(lambda total: ProgressLines("evaluation, samples", total).add) if by_time else None,
        accept_threshold=config.rewards.accept_threshold,
        seed=config.seed,
    )
