"""Assembly of a running System from a RunConfig: actors, warm-started or restored policy, first weights published."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from gvm_ray.actors.allocator import ALLOCATOR_NAME, AllocatorClient
from gvm_ray.actors.context import RunContext
from gvm_ray.actors.generator_fleet import WeightSource
from gvm_ray.actors.generator_pool import GeneratorPool
from gvm_ray.actors.learners import LearnerGroup
from gvm_ray.actors.metrics import RayGaugeSink
from gvm_ray.actors.pools import SamplingPools, fetch_groups
from gvm_ray.actors.recovery import RecoveringLearners
from gvm_ray.actors.reward import RewardPool
from gvm_ray.algorithms import create_algorithm, token_loss
from gvm_ray.checkpoints import CheckpointFolder, NoCheckpoints, RestoredCheckpoint
from gvm_ray.config import RunConfig
from gvm_ray.engines import EngineKind
from gvm_ray.evaluation.evaluator import EvaluationBeside, HeldOutEvaluator, spread
from gvm_ray.ledger import SampleTexts
from gvm_ray.loop import System
from gvm_ray.phase_clock import PhaseClock
from gvm_ray.prepare import BaseModel, Prepared
from gvm_ray.pretrained import read_embeddings
from gvm_ray.prompt_states import CachedPromptStates, EmbeddingRows, EmbeddingStates
from gvm_ray.protocols import Allocator, Checkpoints, Evaluator, Learners, PromptStateSource, RolloutPools, StepLog
from gvm_ray.reporting import Reporter
from gvm_ray.reporting.progress import ProgressLines
from gvm_ray.stop_request import StopRequest
from gvm_ray.tasks.demonstrations import demonstrations
from gvm_ray.tasks.prompt_stream import ShuffledPrompts
from gvm_ray.types import CheckpointState, Metrics, ModelSpec, Prompt, SamplingParameters


def assemble(
    config: RunConfig,
    *,
    prompts: Sequence[Prompt],
    pools: RolloutPools,
    learners: Learners,
    allocator: Allocator,
    evaluator: Evaluator,
    log: StepLog,
    checkpoints: Checkpoints | None = None,
    texts: SampleTexts | None = None,
    beside: EvaluationBeside | None = None,
    stop: StopRequest | None = None,
    embeddings: EmbeddingRows | None = None,
) -> System:
    """Combine the given parts with the prompt stream, prompt states and algorithm into the system that the loop runs.

    Without `checkpoints` none are written. `embeddings`, of the starting policy, are needed by
    `allocator.states = "embedding"` alone.
    """
    return System(
        prompts=ShuffledPrompts(
            prompts,
            seed=config.seed,
            shuffle=config.prompts.shuffle,
            # One allocation must not name a prompt twice.
            unique_within=min(config.candidates_per_step * config.block_steps, len(prompts)),
        ),
        states=_prompt_states(config, prompts, learners, embeddings),
        allocator=allocator,
        pools=pools,
        learners=learners,
        algorithm=create_algorithm(config.algorithm, accept_threshold=config.rewards.accept_threshold),
        evaluator=evaluator,
        checkpoints=checkpoints or NoCheckpoints(),
        log=log,
        texts=texts or SampleTexts(),
        beside=beside,
        stop=stop or StopRequest(),
    )


def _prompt_states(
    config: RunConfig, prompts: Sequence[Prompt], learners: Learners, embeddings: EmbeddingRows | None
) -> PromptStateSource:
    if config.prompt_states == "embedding":
        assert embeddings is not None, 'allocator.states = "embedding" in a system without a model'
        return EmbeddingStates(prompts=prompts, read=embeddings)
    return CachedPromptStates(learners=learners, config=config.prompt_states)


def embeddings_of(base: BaseModel) -> EmbeddingRows:
    """The input embeddings of the starting policy; of the warm start's result if there is one, which must exist when
    they are read."""
    warm = base.warm_start_folder
    return partial(
        read_embeddings,
        base.path if warm is None else warm,
        revision=base.revision if warm is None else None,
        trust_remote_code=base.trust_remote_code,
    )


_FEWEST_TRIALS = 4  # samples of a prompt that show an accept rate


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
    context: RunContext,
    checkpoints: CheckpointFolder,
    restored: RestoredCheckpoint | None,
    run_dir: Path,
    log: Reporter,
    stop: StopRequest,
) -> AsyncIterator[Launched]:
    """Start the system; every actor is stopped again on exit."""
    learners = RecoveringLearners(context)
    pools = start_pools(config, prepared.model, kind=prepared.engine_kind, context=context, source=learners)
    eval_pools = pools_of_evaluation(config, prepared, pools, context=context, source=learners)
    allocator = start_allocator(config, context=context)
    fleets = [pools.generators] if eval_pools is None else [pools.generators, eval_pools.generators]
    make = partial(learner_group, config, prepared, pools, run_dir=run_dir, context=context)
    try:
        # The generators import and compile while the learners start and, if configured, learn from demonstrations.
        starting = [pools.rewards.start(), *(fleet.start() for fleet in fleets)]
        await asyncio.gather(*starting, start_learners(config, prepared, learners, make, restored=restored))
        evaluator = make_evaluator(config, prepared, pools, by_time=config.reporting.progress)
        system = assemble(
            config,
            prompts=prepared.prompts.train,
            pools=pools,
            learners=learners,
            allocator=allocator,
            evaluator=evaluator,
            log=log,
            checkpoints=checkpoints,
            texts=sample_texts(config),
            beside=eval_pools
            and EvaluationBeside(make_evaluator(config, prepared, eval_pools), eval_pools, log=log.log_evaluation),
            stop=stop,
            embeddings=embeddings_of(prepared.base),
        )
        start = await starting_state(system, restored=restored)
        await pools.publish(await learners.weights(start.policy_version))
        yield Launched(system=system, start=start, learners=learners, evaluator=evaluator)
    finally:
        await learners.stop()
        for fleet in fleets:
            fleet.close()
        pools.rewards.close()
        allocator.close()


def learner_group(
    config: RunConfig, prepared: Prepared, pools: SamplingPools, *, run_dir: Path, context: RunContext
) -> LearnerGroup:
    """The run's learners, not started. They share the generators' GPUs if the placement is "colocated"."""
    return LearnerGroup(
        config,
        base_path=prepared.base.path,
        token_loss=token_loss(config.algorithm),
        run_dir=str(run_dir),
        context=context,
        transfer=prepared.transfer,
        adapters=prepared.adapters is not None,
        generators=pools.generators if config.cluster.placement == "colocated" else None,
    )


def start_allocator(config: RunConfig, *, context: RunContext, name: str = ALLOCATOR_NAME) -> AllocatorClient:
    """Request the allocator's actor, without waiting for it."""
    return AllocatorClient(
        config.allocator,
        accept_threshold=config.rewards.accept_threshold,
        seed=config.seed,
        context=context,
        name=name,
    )


async def starting_state(system: System, *, restored: RestoredCheckpoint | None) -> CheckpointState:
    """The loop's initial state. With a checkpoint, also restore the prompt stream, prompt states and allocator."""
    if restored is None:
        return CheckpointState(step=0, policy_version=0, cursor=system.prompts.state_dict(), allocator={}, costs={})
    system.prompts.load_state_dict(restored.state.cursor)
    system.states.load_state_dict(restored.state.prompt_states)
    await system.allocator.load_state_dict(restored.state.allocator)
    return restored.state


def start_pools(
    config: RunConfig,
    model: ModelSpec,
    *,
    kind: EngineKind,
    context: RunContext,
    source: WeightSource | None = None,
    prefix: str = "",
) -> SamplingPools:
    """Request generator and reward actors, without waiting for them.

    Args:
        config: the run.
        model: loaded by the generators' engines.
        kind: of the engines, from `resolve_engine`.
        context: shared by the run's parts.
        source: restores lost weights and sends live ones.
        prefix: of the actors' names.
    """
    return SamplingPools(
        generators=_generators(
            config,
            model,
            kind=kind,
            context=context,
            source=source,
            name=f"{prefix}generator",
            num_threads=context.threads.generator,
        ),
        rewards=RewardPool(
            config.rewards,
            max_tokens=config.sampling.max_tokens,
            context=context,
            environment=config.environment,
            name=f"{prefix}reward",
        ),
        clock=context.clock,
        gauges=RayGaugeSink(run=config.name) if config.reporting.ray_metrics else None,
    )


def pools_of_evaluation(
    config: RunConfig, prepared: Prepared, pools: SamplingPools, *, context: RunContext, source: WeightSource
) -> SamplingPools | None:
    """Request the generators used only for evaluation, without waiting for them; None if the run has none.

    They get their weights from the object store, and share the reward actors of training.
    """
    if not (number := config.evaluation.num_generators):
        return None
    context = replace(context, clock=PhaseClock())  # its time must not count as training time
    generators = _generators(
        config,
        replace(prepared.model, transfer="object_store"),
        kind=prepared.engine_kind,
        context=context,
        source=source,
        name="evaluation-generator",
        num_threads=context.threads.evaluation_generator,
        num_generators=number,
    )
    return SamplingPools(generators=generators, rewards=pools.rewards, clock=context.clock)


def _generators(
    config: RunConfig,
    model: ModelSpec,
    *,
    kind: EngineKind,
    context: RunContext,
    source: WeightSource | None,
    name: str,
    num_threads: int,
    num_generators: int | None = None,
) -> GeneratorPool:
    """Request a pool of `num_generators`; None takes the number in [engine]."""
    number = config.engine.num_generators if num_generators is None else num_generators
    return GeneratorPool(
        config.engine.model_copy(update={"num_generators": number, "sleep": config.generators_sleep}),
        kind=kind,
        model=model,
        max_tokens=config.sampling.max_tokens,
        context=context,
        placement=config.cluster.placement,
        num_threads=num_threads,
        source=source,
        name=name,
    )


async def start_learners(
    config: RunConfig,
    prepared: Prepared,
    learners: RecoveringLearners,
    make: Callable[[], LearnerGroup],
    *,
    restored: RestoredCheckpoint | None,
) -> None:
    """Start the learners. Restore them from a checkpoint, or warm-start them if configured and not cached."""
    await learners.start(make)
    if restored is not None:
        await learners.restore(str(restored.learner), policy_version=restored.state.policy_version)
    else:
        await warm_start(config, prepared, learners)


async def warm_start(config: RunConfig, prepared: Prepared, learners: LearnerGroup | RecoveringLearners) -> None:
    """Learn from demonstrations and cache the result; does nothing if not configured or if a cached result exists."""
    if config.warm_start is not None and prepared.base.warm_start_folder is not None:
        examples = demonstrations(
            config.demonstrated,
            prepared.tokenizer,
            num=config.warm_start.num_demonstrations,
            seed=config.warm_start.seed,
            end_token_ids=prepared.end_token_ids,
            source_name=config.demonstration_source,
        )
        on_progress = _warm_start_lines(config.warm_start.num_updates, by_time=config.reporting.progress)
        await learners.warm_start(examples, on_progress=on_progress)
        await learners.export(str(prepared.base.warm_start_folder))


def _warm_start_lines(num_updates: int, *, by_time: bool) -> Callable[[int, Metrics], None]:
    """A callback that prints the warm start's final loss, and with `by_time` its progress too."""
    lines = ProgressLines("warm start", num_updates)

    def on_progress(done: int, metrics: Metrics) -> None:
        loss = f"loss {metrics['loss']:.3f}"
        if by_time:
            lines.at(done, note=loss)
        if done == num_updates:
            print(f"warm start {done}/{num_updates}  {loss}", flush=True)

    return on_progress


def trial_of_base(config: RunConfig, prepared: Prepared, evaluator: HeldOutEvaluator) -> HeldOutEvaluator:
    """Samples some training prompts as training does, on the same pools."""
    return replace(
        evaluator,
        prompts=spread(prepared.prompts.train, config.evaluation.base_prompts),
        sampling=SamplingParameters(temperature=config.sampling.temperature, max_tokens=config.sampling.max_tokens),
        num_samples=max(config.samples_per_prompt, _FEWEST_TRIALS),
        progress=None,
    )


def sample_texts(config: RunConfig) -> SampleTexts:
    """The sampled texts that the run wants to log."""
    return SampleTexts(
        every_steps=config.reporting.samples_every_steps,
        fetch=partial(fetch_groups, timeout_s=config.deadlines.sample_s),
    )


def make_evaluator(
    config: RunConfig, prepared: Prepared, pools: SamplingPools, *, by_time: bool = False
) -> HeldOutEvaluator:
    """The evaluator of prompts.eval with the run's evaluation settings; with `by_time` it prints its progress."""
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
        fresh_seeds=config.evaluation.fresh_seeds,
    )
