"""The page: two loops and a bounded queue.

One code path serves both modes. With ``max_staleness = 0`` the loops alternate (strictly on-policy). With
``max_staleness = k`` sampling runs up to k updates ahead: the next batches' requests are with the generators while the
last samples of a batch are under way, scored, measured and trained on.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gvm_ray.config import RunConfig
from gvm_ray.evaluation.evaluator import EvaluationBeside
from gvm_ray.ledger import (
    RolloutLedger,
    SampleTexts,
    sample_histograms,
    staleness_metrics,
    trained_norms,
    turn_metrics,
)
from gvm_ray.protocols import (
    Algorithm,
    Allocator,
    Checkpoints,
    Evaluator,
    Learners,
    PromptStateSource,
    PromptStream,
    RolloutPools,
    StepLog,
)
from gvm_ray.stop_request import StopRequest
from gvm_ray.types import (
    CheckpointState,
    Histograms,
    Metrics,
    Prompt,
    SampleText,
    SamplingParameters,
    TrainBatch,
    WeightsRef,
)


@dataclass(frozen=True, kw_only=True)
class System:
    """The parts of a running system, as the loop sees them."""

    prompts: PromptStream
    states: PromptStateSource
    allocator: Allocator
    pools: RolloutPools
    learners: Learners
    algorithm: Algorithm
    evaluator: Evaluator
    checkpoints: Checkpoints
    log: StepLog
    texts: SampleTexts = field(default_factory=SampleTexts)
    beside: EvaluationBeside | None = None  # where evaluation doesn't stop training
    stop: StopRequest = field(default_factory=StopRequest)


@dataclass(frozen=True, kw_only=True, eq=False)
class StepPrompts:
    """The prompts of one step, and where the stream stood after them."""

    step: int
    prompts: Sequence[Prompt]
    cursor: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredBatch:
    """What the rollout loop hands to the update loop."""

    batch: TrainBatch
    metrics: Metrics
    histograms: Histograms
    texts: Sequence[SampleText]
    costs: Mapping[str, float]  # of this batch
    cursor: Mapping[str, Any]  # of the prompts, after this batch


async def train(system: System, config: RunConfig, *, start: CheckpointState) -> None:
    """Run steps start.step .. num_steps - 1, or until the token budget is spent or a stop is asked for. The generators
    hold policy version start.step already.
    """
    if is_over(config, start.step, start.costs):
        return
    batches: asyncio.Queue[ScoredBatch] = asyncio.Queue(maxsize=config.max_staleness + 1)
    async with asyncio.TaskGroup() as tasks:
        rollouts = tasks.create_task(rollout_loop(system, config, batches, start))
        await update_loop(system, config, batches, start)
        rollouts.cancel()  # what is under way when the token budget is spent is of no use


async def rollout_loop(
    system: System, config: RunConfig, batches: asyncio.Queue[ScoredBatch], start: CheckpointState
) -> None:
    """Consumes prompts; produces scored batches; waits for a policy version within max_staleness of the steps that will
    train on the samples; unblocked by a weight publish. So many blocks are sampled at once as that leaves room for.
    """
    turn: asyncio.Task[None] | None = None
    async with asyncio.TaskGroup() as tasks:
        for first in range(start.step, config.num_steps, config.block_steps):
            steps = range(first, min(first + config.block_steps, config.num_steps))
            # A block's first step also samples pilots that its last step trains on.
            await system.pools.wait_for_version(min(first, steps[-1] - config.max_staleness))
            block = [take_prompts(system, config, step=step) for step in steps]
            turn = tasks.create_task(sample_block(system, config, batches, block, turn))


async def sample_block(
    system: System,
    config: RunConfig,
    batches: asyncio.Queue[ScoredBatch],
    block: Sequence[StepPrompts],
    turn: asyncio.Task[None] | None,
) -> None:
    """The batches of the steps that share one allocation, each put after those of the block before, whose `turn` it is
    until it ends.
    """
    ledger = RolloutLedger(run_seed=config.seed, max_unscored_fraction=config.max_unscored_fraction)
    for part in block:
        await system.pools.wait_for_version(part.step - config.max_staleness)
        if config.max_staleness == 0:
            await batches.join()  # an evaluation beside it would change the engine's batches, and so their rounding
        upcoming = [prompt for later in block if later.step > part.step for prompt in later.prompts]
        await sample_in_rounds(system, config, ledger, part, upcoming=upcoming if part is block[0] else ())
        scored = await scored_batch(system, config, ledger, part)
        if turn is not None:
            await turn
        await batches.put(scored)


def take_prompts(system: System, config: RunConfig, *, step: int) -> StepPrompts:
    """The stream's next prompts: what the allocator selects from, where it does."""
    prompts = system.prompts.next(min(config.candidates_per_step, len(system.prompts)))
    return StepPrompts(step=step, prompts=prompts, cursor=system.prompts.state_dict())


async def sample_in_rounds(
    system: System, config: RunConfig, ledger: RolloutLedger, part: StepPrompts, *, upcoming: Sequence[Prompt]
) -> None:
    """Spend the step's budget as the allocator decides, round by round, into the ledger."""
    sampling = SamplingParameters(temperature=config.sampling.temperature, max_tokens=config.sampling.max_tokens)
    states, num_tokens = await system.states.of(part.prompts, step=part.step)
    ledger.charge_prefill(num_tokens)
    allocation = await system.allocator.plan(
        part.prompts, step=part.step, budget=config.samples_per_step, upcoming=upcoming, states=states
    )
    while allocation.total:
        requests = ledger.requests(allocation, prompts=[*part.prompts, *upcoming], step=part.step)
        outcomes = await system.pools.sample_and_score(requests, sampling)
        if refill := ledger.refill(outcomes, requests, step=part.step):
            outcomes += await system.pools.sample_and_score(refill, sampling)
        if allocation.needs_gradient_norms:
            outcomes = await system.learners.gradient_norms(outcomes)
        ledger.record(outcomes, allocation)
        allocation = await system.allocator.observe(outcomes, step=part.step)


async def scored_batch(system: System, config: RunConfig, ledger: RolloutLedger, part: StepPrompts) -> ScoredBatch:
    """The step's outcomes as a training batch, with all that the update loop needs to log and to checkpoint it."""
    outcomes = ledger.take(part.prompts)
    report = await system.allocator.report(step=part.step)
    batch = system.algorithm.build_batch(outcomes, step=part.step, terms=report.estimator)
    staleness = staleness_metrics(outcomes, step=part.step, max_staleness=config.max_staleness)
    return ScoredBatch(
        batch=batch,
        metrics={**batch.metrics, **report.metrics, **staleness, **turn_metrics(outcomes)},
        histograms={**report.histograms, **sample_histograms(outcomes)},
        texts=await system.texts.of(outcomes, step=part.step),
        costs=ledger.take_costs(),
        cursor=part.cursor,
    )


async def update_loop(
    system: System, config: RunConfig, batches: asyncio.Queue[ScoredBatch], start: CheckpointState
) -> None:
    """Consumes batches; produces policy versions, metrics and checkpoints; waits for a batch; unblocked by
    rollout_loop. New weights go out while the learners go on.
    """
    costs = Counter(start.costs)
    publishing: asyncio.Task[None] | None = None
    async with asyncio.TaskGroup() as tasks:
        for step in range(start.step, config.num_steps):
            scored = await batches.get()
            result = await system.learners.update(scored.batch)
            if norms := trained_norms(scored.batch, result):
                await system.allocator.observe_training(norms)
            costs.update({**scored.costs, "cost/optimizer_updates": result.metrics["num_updates"]})
            is_last = is_over(config, step + 1, costs)
            is_stopped = system.stop.is_set
            # Before the new weights go out: without staleness, no later step has begun.
            is_due = is_last or is_stopped or (step + 1) % config.checkpoint.every_steps == 0
            state = await checkpoint_state(system, scored, step=step, costs=costs) if is_due else None
            if publishing is not None:
                await publishing
            publishing = tasks.create_task(system.pools.publish(result.weights))
            metrics = {
                **scored.metrics,
                **result.metrics,
                **costs,
                "cost/charged_tokens": charged_tokens(config, costs),
                "queue/batches": float(batches.qsize()),
                **await evaluation(system, config, publishing, result.weights, tasks, is_last=is_last),
            }
            batches.task_done()
            system.log.log_step(step, metrics, histograms=scored.histograms, texts=scored.texts)
            if state is not None:
                await system.checkpoints.save(state, system.learners)
            if is_last or is_stopped:
                break


def is_over(config: RunConfig, completed_steps: int, costs: Mapping[str, float]) -> bool:
    """After the last step, or with the token budget spent."""
    is_spent = config.token_budget is not None and charged_tokens(config, costs) >= config.token_budget
    return completed_steps >= config.num_steps or is_spent


def charged_tokens(config: RunConfig, costs: Mapping[str, float]) -> float:
    """Generated tokens, and at their price those that were prefilled for the allocator alone."""
    return costs.get("cost/generated_tokens", 0.0) + config.prefill_price * costs.get("cost/prefill_tokens", 0.0)


async def evaluation(
    system: System,
    config: RunConfig,
    publishing: asyncio.Task[None],
    weights: WeightsRef,
    tasks: asyncio.TaskGroup,
    *,
    is_last: bool,
) -> Metrics:
    """Metrics of the policy that comes of a step, every so many steps and after the last; or none yet, where its
    evaluation goes on beside the next steps.
    """
    if not is_last and weights.policy_version % config.evaluation.every_steps:
        return {}
    if system.beside is not None and not is_last:
        await system.beside.begin(weights.policy_version - 1, weights, tasks)
        return {}
    await publishing
    return await system.evaluator.evaluate()


async def checkpoint_state(
    system: System, scored: ScoredBatch, *, step: int, costs: Mapping[str, float]
) -> CheckpointState:
    """The driver's part of the checkpoint after a step, the allocator's memory included.

    With max_staleness > 0 that may hold samples of later steps too, which a resumed run draws again.
    """
    return CheckpointState(
        step=step + 1,
        policy_version=step + 1,
        cursor=scored.cursor,
        allocator=await system.allocator.state_dict(),
        costs=dict(costs),
        prompt_states=system.states.state_dict(step=step + 1),
    )
