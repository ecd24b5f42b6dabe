"""The page: two loops and a bounded queue, as a generator of steps.

One code path serves both modes. With ``max_staleness = 0`` the loops alternate (strictly on-policy). With
``max_staleness = k`` sampling runs up to k updates ahead: the generators already have the next batches' requests while
a batch's last samples are being generated, scored, measured and trained on.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from gvm_ray.background import Background
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
from gvm_ray.step_metrics import step_metrics
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
    beside: EvaluationBeside | None = None  # if evaluation runs beside training
    stop: StopRequest = field(default_factory=StopRequest)


@dataclass(frozen=True, kw_only=True, eq=False)
class StepResult:
    """A completed step."""

    step: int  # from 0
    metrics: Metrics  # as logged


@dataclass(frozen=True, kw_only=True, eq=False)
class StepPrompts:
    """The prompts of one step, and the stream's position after them."""

    step: int
    prompts: Sequence[Prompt]
    cursor: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredBatch:
    """A scored training batch and its metrics: the rollout loop's output, the update loop's input."""

    batch: TrainBatch
    metrics: Metrics
    histograms: Histograms
    texts: Sequence[SampleText]
    costs: Mapping[str, float]  # of this batch
    cursor: Mapping[str, Any]  # position of the prompt stream after this batch


async def train(system: System, config: RunConfig, *, start: CheckpointState) -> AsyncGenerator[StepResult]:
    """Train; yields the steps start.step .. num_steps - 1 as they are completed.

    Ends early when the token budget is spent or a stop is requested. The generators must already hold policy version
    start.step. Sampling continues while the caller handles a step.
    """
    if is_over(config, start.step, start.costs):
        return
    batches: asyncio.Queue[ScoredBatch] = asyncio.Queue(maxsize=config.max_staleness + 1)
    async with Background() as background, aclosing(update_loop(system, config, batches, start, background)) as updates:
        rollouts = background.create_task(rollout_loop(system, config, batches, start))
        while (result := await background.guard(anext(updates, None))) is not None:
            yield result
        rollouts.cancel()  # when the token budget is spent, samples under way are no longer needed


async def rollout_loop(
    system: System, config: RunConfig, batches: asyncio.Queue[ScoredBatch], start: CheckpointState
) -> None:
    """Consumes prompts; produces scored batches; waits for a policy version within max_staleness of the steps that will
    train on the samples; unblocked by a weight publish. Several blocks are sampled at once if max_staleness allows it.
    """
    previous: asyncio.Task[None] | None = None
    async with asyncio.TaskGroup() as tasks:
        for first in range(start.step, config.num_steps, config.block_steps):
            steps = range(first, min(first + config.block_steps, config.num_steps))
            # The block's first step also samples pilots that the last step trains on.
            await system.pools.wait_for_version(min(first, steps[-1] - config.max_staleness))
            block = [take_prompts(system, config, step=step) for step in steps]
            previous = tasks.create_task(sample_block(system, config, batches, block, previous))


async def sample_block(
    system: System,
    config: RunConfig,
    batches: asyncio.Queue[ScoredBatch],
    block: Sequence[StepPrompts],
    previous: asyncio.Task[None] | None,
) -> None:
    """Sample and score one block of steps, which share an allocation. Batches are queued in step order: wait for the
    previous block's task before each put.
    """
    ledger = RolloutLedger(run_seed=config.seed, max_unscored_fraction=config.max_unscored_fraction)
    for step_prompts in block:
        step = step_prompts.step
        await system.pools.wait_for_version(step - config.max_staleness)
        if config.max_staleness == 0:
            await batches.join()  # a concurrent evaluation would change the engine's batches, and so their rounding
        upcoming = [prompt for later in block[1:] for prompt in later.prompts] if step == block[0].step else ()
        await sample_in_rounds(system, config, ledger, step_prompts, upcoming=upcoming)
        scored = await scored_batch(system, config, ledger, step_prompts)
        if previous is not None:
            await previous
        await batches.put(scored)


def take_prompts(system: System, config: RunConfig, *, step: int) -> StepPrompts:
    """Take a step's prompts from the stream; some allocators select from them."""
    prompts = system.prompts.next(min(config.candidates_per_step, len(system.prompts)))
    return StepPrompts(step=step, prompts=prompts, cursor=system.prompts.state_dict())


async def sample_in_rounds(
    system: System, config: RunConfig, ledger: RolloutLedger, step_prompts: StepPrompts, *, upcoming: Sequence[Prompt]
) -> None:
    """Spend the step's budget in the allocator's rounds, and record the outcomes in the ledger."""
    step, prompts = step_prompts.step, step_prompts.prompts
    sampling = SamplingParameters(temperature=config.sampling.temperature, max_tokens=config.sampling.max_tokens)
    if config.needs.shortlist is not None:
        rows = await system.allocator.shortlist(prompts, step=step, budget=config.samples_per_step)
        prompts = [prompts[row] for row in rows]
    states, num_tokens = await system.states.of(prompts, step=step)
    ledger.charge_prefill(num_tokens)
    allocation = await system.allocator.plan(
        prompts, step=step, budget=config.samples_per_step, upcoming=upcoming, states=states
    )
    while allocation.total:
        requests = ledger.requests(allocation, prompts=[*prompts, *upcoming], step=step)
        outcomes = await system.pools.sample_and_score(requests, sampling)
        if refill := ledger.refill(outcomes, requests, step=step):
            outcomes += await system.pools.sample_and_score(refill, sampling)
        if allocation.needs_gradient_norms:
            outcomes = await system.learners.gradient_norms(outcomes)
        if allocation.needs_response_states:
            outcomes = await system.learners.response_states(outcomes)
        ledger.record(outcomes, allocation)
        allocation = await system.allocator.observe(outcomes, step=step)


async def scored_batch(
    system: System, config: RunConfig, ledger: RolloutLedger, step_prompts: StepPrompts
) -> ScoredBatch:
    """Build a training batch from the step's outcomes, with everything needed to log and checkpoint it."""
    step = step_prompts.step
    outcomes = ledger.take(step_prompts.prompts)
    report = await system.allocator.report(step=step)
    batch = system.algorithm.build_batch(outcomes, step=step, terms=report.estimator)
    staleness = staleness_metrics(outcomes, step=step, max_staleness=config.max_staleness)
    threshold = config.rewards.accept_threshold
    metrics, arrays = step_metrics(outcomes, batch=batch, terms=report.estimator, accept_threshold=threshold)
    return ScoredBatch(
        batch=batch,
        metrics={**batch.metrics, **report.metrics, **metrics, **staleness, **turn_metrics(outcomes)},
        histograms={**report.histograms, **arrays, **sample_histograms(outcomes)},
        texts=await system.texts.of(outcomes, step=step),
        costs=ledger.take_costs(),
        cursor=step_prompts.cursor,
    )


async def update_loop(
    system: System,
    config: RunConfig,
    batches: asyncio.Queue[ScoredBatch],
    start: CheckpointState,
    background: Background,
) -> AsyncGenerator[StepResult]:
    """Consumes batches; produces policy versions, metrics and checkpoints; waits for a batch; unblocked by
    rollout_loop. New weights are published in the background while the learners continue.
    """
    costs = Counter(start.costs)
    publishing: asyncio.Task[None] | None = None
    for step in range(start.step, config.num_steps):
        scored = await batches.get()
        result = await system.learners.update(scored.batch)
        if norms := trained_norms(scored.batch, result):
            await system.allocator.observe_training(norms)
        costs.update({**scored.costs, "cost/optimizer_updates": result.metrics["num_updates"]})
        is_last = is_over(config, step + 1, costs)
        is_stopped = system.stop.is_set
        # Taken before the new weights are published: without staleness, no later step has begun yet.
        is_due = is_last or is_stopped or (step + 1) % config.checkpoint.every_steps == 0
        state = await checkpoint_state(system, scored, step=step, costs=costs) if is_due else None
        if publishing is not None:
            await publishing
        publishing = background.create_task(system.pools.publish(result.weights))
        evaluated = await evaluation(system, config, publishing, result.weights, background, is_last=is_last)
        costs_now = {**costs, "cost/charged_tokens": charged_tokens(config, costs)}
        queued = {"queue/batches": float(batches.qsize())}
        metrics = {**scored.metrics, **result.metrics, **costs_now, **queued, **evaluated}
        batches.task_done()
        metrics = system.log.log_step(step, metrics, histograms=scored.histograms, texts=scored.texts)
        if state is not None:
            await system.checkpoints.save(state, system.learners)
        yield StepResult(step=step, metrics=metrics)
        if is_last or is_stopped:
            return


def is_over(config: RunConfig, completed_steps: int, costs: Mapping[str, float]) -> bool:
    """Whether the last step is completed or the token budget is spent."""
    is_spent = config.token_budget is not None and charged_tokens(config, costs) >= config.token_budget
    return completed_steps >= config.num_steps or is_spent


def charged_tokens(config: RunConfig, costs: Mapping[str, float]) -> float:
    """Tokens charged to the budget: generated ones, plus `prefill_price` times those prefilled for the allocator."""
    return costs.get("cost/generated_tokens", 0.0) + config.prefill_price * costs.get("cost/prefill_tokens", 0.0)


async def evaluation(
    system: System,
    config: RunConfig,
    publishing: asyncio.Task[None],
    weights: WeightsRef,
    background: Background,
    *,
    is_last: bool,
) -> Metrics:
    """Evaluate a step's new policy, where one is due by `config.evaluation` and after the last step.

    Returns no metrics if none is due, or if it runs beside the next steps and logs its own.
    """
    if not is_last and not config.evaluation.is_due(weights.policy_version):
        return {}
    if system.beside is not None and not is_last:
        await system.beside.begin(weights.policy_version - 1, weights, background)
        return {}
    await publishing
    return await system.evaluator.evaluate(weights.policy_version)


async def checkpoint_state(
    system: System, scored: ScoredBatch, *, step: int, costs: Mapping[str, float]
) -> CheckpointState:
    """The driver's part of the checkpoint after a step, including the allocator's memory.

    With max_staleness > 0 that memory may already hold samples of later steps, which a resumed run draws again.
    """
    return CheckpointState(
        step=step + 1,
        policy_version=step + 1,
        cursor=scored.cursor,
        allocator=await system.allocator.state_dict(),
        costs=dict(costs),
        prompt_states=system.states.state_dict(step=step + 1),
    )
