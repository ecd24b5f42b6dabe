"""The page: two loops and a bounded queue.

One code path serves both modes. With ``max_staleness = 0`` the loops alternate (strictly on-policy); with
``max_staleness = k`` sampling runs up to k updates ahead of training.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gvm_ray.config import RunConfig
from gvm_ray.protocols import (
    Algorithm,
    Allocator,
    Checkpoints,
    Evaluator,
    Learners,
    PromptStream,
    RolloutPools,
    StepLog,
)
from gvm_ray.rollouts import RolloutLedger, staleness_metrics
from gvm_ray.types import CheckpointState, Float64Array, Metrics, Prompt, SamplingParameters, TrainBatch


@dataclass(frozen=True, kw_only=True)
class System:
    """The parts of a running system, as the loop sees them."""

    prompts: PromptStream
    allocator: Allocator
    pools: RolloutPools
    learners: Learners
    algorithm: Algorithm
    evaluator: Evaluator
    checkpoints: Checkpoints
    log: StepLog


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredBatch:
    """What the rollout loop hands to the update loop."""

    batch: TrainBatch
    metrics: Metrics
    histograms: Mapping[str, Float64Array]
    costs: Mapping[str, float]  # cumulative, after this batch
    cursor: Mapping[str, Any]  # of the prompts, after this batch
    allocator: Mapping[str, Any] | None  # memory after this batch, where a checkpoint follows it


async def train(system: System, config: RunConfig, *, start: CheckpointState) -> None:
    """Run steps start.step .. num_steps - 1. The generators hold policy version start.step already."""
    batches: asyncio.Queue[ScoredBatch] = asyncio.Queue(maxsize=config.max_staleness + 1)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(rollout_loop(system, config, batches, start))
        tasks.create_task(update_loop(system, config, batches, start))


async def rollout_loop(
    system: System, config: RunConfig, batches: asyncio.Queue[ScoredBatch], start: CheckpointState
) -> None:
    """Consumes prompts; produces scored batches; waits for a policy version within max_staleness of the step that will
    train on the samples; unblocked by a weight publish.
    """
    ledger = RolloutLedger(
        run_seed=config.seed,
        max_unscored_fraction=config.max_unscored_fraction,
        generated_samples=int(start.costs.get("cost/generated_samples", 0)),
        generated_tokens=int(start.costs.get("cost/generated_tokens", 0)),
    )
    for step in range(start.step, config.num_steps):
        # A block's first step also samples pilots that its last step trains on.
        ahead = min(config.block_steps, config.num_steps - step) - 1 if step % config.block_steps == 0 else 0
        await system.pools.wait_for_version(min(step, step + ahead - config.max_staleness))
        prompts = system.prompts.next(config.prompts_per_step)
        upcoming = system.prompts.peek(ahead * config.prompts_per_step)
        await sample_in_rounds(system, config, ledger, step=step, prompts=prompts, upcoming=upcoming)
        await batches.put(await scored_batch(system, config, ledger, step=step, prompts=prompts))


async def sample_in_rounds(
    system: System,
    config: RunConfig,
    ledger: RolloutLedger,
    *,
    step: int,
    prompts: Sequence[Prompt],
    upcoming: Sequence[Prompt],
) -> None:
    """Spend the step's budget as the allocator decides, round by round, into the ledger."""
    sampling = SamplingParameters(temperature=config.sampling.temperature, max_tokens=config.sampling.max_tokens)
    allocation = await system.allocator.plan(prompts, step=step, budget=config.samples_per_step, upcoming=upcoming)
    while allocation.total:
        requests = ledger.requests(allocation, prompts=[*prompts, *upcoming], step=step)
        outcomes = await system.pools.sample_and_score(requests, sampling)
        if allocation.needs_gradient_norms:
            outcomes = await system.learners.gradient_norms(outcomes)
        ledger.record(outcomes, trained_on=allocation.trained_on)
        allocation = await system.allocator.observe(outcomes, step=step)


async def scored_batch(
    system: System, config: RunConfig, ledger: RolloutLedger, *, step: int, prompts: Sequence[Prompt]
) -> ScoredBatch:
    """The step's outcomes as a training batch, with all that the update loop needs to log and to checkpoint it."""
    outcomes = ledger.take(prompts)
    rates = await system.allocator.accept_rates([prompt.prompt_id for prompt in prompts])
    batch = system.algorithm.build_batch(outcomes, step=step, accept_rates=rates, num_prompts=len(prompts))
    report = await system.allocator.report(step=step)
    staleness = staleness_metrics(outcomes, step=step, max_staleness=config.max_staleness)
    return ScoredBatch(
        batch=batch,
        metrics={**batch.metrics, **report.metrics, **staleness},
        histograms=report.histograms,
        costs={
            "cost/generated_samples": ledger.generated_samples,
            "cost/generated_tokens": ledger.generated_tokens,
        },
        cursor=system.prompts.state_dict(),
        allocator=await system.allocator.state_dict() if checkpoint_due(config, step + 1) else None,
    )


async def update_loop(
    system: System, config: RunConfig, batches: asyncio.Queue[ScoredBatch], start: CheckpointState
) -> None:
    """Consumes batches; produces policy versions, metrics and checkpoints; waits for a batch; unblocked by
    rollout_loop.
    """
    num_updates = start.costs.get("cost/optimizer_updates", 0.0)
    for step in range(start.step, config.num_steps):
        scored = await batches.get()
        result = await system.learners.update(scored.batch)
        await system.pools.publish(result.weights)
        num_updates += result.metrics["num_updates"]
        costs = {**scored.costs, "cost/optimizer_updates": num_updates}
        evaluation = await system.evaluator.evaluate() if evaluation_due(config, step + 1) else {}
        system.log.log_step(
            step, {**scored.metrics, **result.metrics, **costs, **evaluation}, histograms=scored.histograms
        )
        if scored.allocator is not None:
            state = CheckpointState(
                step=step + 1,
                policy_version=step + 1,
                cursor=scored.cursor,
                allocator=scored.allocator,
                costs=costs,
            )
            await system.checkpoints.save(state, system.learners)


def evaluation_due(config: RunConfig, completed_steps: int) -> bool:
    """Every so many steps, and after the last."""
    return completed_steps % config.evaluation.every_steps == 0 or completed_steps == config.num_steps


def checkpoint_due(config: RunConfig, completed_steps: int) -> bool:
    """Every so many steps, and after the last."""
    return completed_steps % config.checkpoint.every_steps == 0 or completed_steps == config.num_steps
