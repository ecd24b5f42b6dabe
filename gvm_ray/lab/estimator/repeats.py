"""Repetitions of an arm's step on the pool: the allocator's rounds, the algorithm's batch, the gradient estimate."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gvm_ray.algorithms import create_algorithm
from gvm_ray.allocators import AllocationDriver
from gvm_ray.allocators.base import states_kind
from gvm_ray.allocators.gvm import GVMAllocatorConfig
from gvm_ray.allocators.uniform import UniformAllocatorConfig
from gvm_ray.config import EstimatorConfig, RunConfig
from gvm_ray.lab.estimator.moments import SampleSizes
from gvm_ray.lab.estimator.pool import SamplePool
from gvm_ray.learner.norms import measured_samples
from gvm_ray.types import Allocation, EstimatorTerms, Float64Array, GroupOutcome, IndexArray, TrainBatch, TrainedNorms


@dataclass(frozen=True, kw_only=True, eq=False)
class RepeatedSteps:
    """The results of R independent steps of one arm."""

    estimates: Float64Array  # [R, D] gradient of the log-likelihood, with the batch's weights
    num_samples: float  # mean number of samples drawn in a step, including pilots
    num_tokens: float  # mean number of tokens drawn in a step, including pilots
    max_samples: int  # largest n of a prompt in any step
    sizes: SampleSizes | None  # of the target prompts; None if a step's n depend on samples that it also trains on


@dataclass(frozen=True, kw_only=True, eq=False)
class _Step:
    batch: TrainBatch
    drawn: dict[str, int]  # prompt_id -> samples
    num_tokens: int
    terms: EstimatorTerms
    one_round: bool
    own_baseline: bool  # the algorithm's, of whose error moments tell


def repeated_steps(config: RunConfig, pool: SamplePool, *, estimator: EstimatorConfig, arm: int) -> RepeatedSteps:
    """Run `num_repeats` steps on the target prompts, each by a new allocator after its own warm-up.

    Allocators whose earlier steps don't affect later ones are not warmed up.

    Args:
        config: the arm's run.
        pool: the pool to draw from.
        estimator: the measurement's settings.
        arm: number of the arm, so that its random draws differ from other arms'.

    Raises:
        ConfigError: the allocator can't spend the budget on these prompts.
    """
    remembers = not isinstance(config.allocator, UniformAllocatorConfig | GVMAllocatorConfig)
    steps = []
    for repeat in range(estimator.num_repeats):
        arm_steps = _ArmSteps(config, pool, rng=np.random.default_rng((estimator.seed, arm, repeat)), seed=repeat)
        for step in range(estimator.warm_up_steps if remembers else 0):
            arm_steps.take(np.arange(pool.num_targets, len(pool.prompts)), step=step)
        steps.append(arm_steps.take(np.arange(pool.num_targets), step=estimator.warm_up_steps))
    coefficients = np.stack([batch_coefficients(step.batch, pool) for step in steps])
    return RepeatedSteps(
        estimates=coefficients @ pool.gradients,
        num_samples=float(np.mean([sum(step.drawn.values()) for step in steps])),
        num_tokens=float(np.mean([step.num_tokens for step in steps])),
        max_samples=max(max(step.drawn.values()) for step in steps),
        sizes=_sizes(steps, [prompt.prompt_id for prompt in pool.prompts[: pool.num_targets]]),
    )


def batch_coefficients(batch: TrainBatch, pool: SamplePool) -> Float64Array:
    """Compute the coefficient [V], weight x advantage, of each response's gradient in the batch's gradient estimate.

    At the policy that sampled, importance ratios are 1. Without KL and entropy terms, the gradient of the batch loss is
    minus the sum over samples of weight x advantage x gradient of ln pi(response).
    """
    coefficients = np.zeros(len(pool.gradients))
    for group in batch.groups:
        np.add.at(coefficients, group.ref.ref[group.sample_indices], group.weights * group.advantages)
    return coefficients


def _sizes(steps: Sequence[_Step], prompt_ids: Sequence[str]) -> SampleSizes | None:
    """Return each step's n and factors if they were fixed before its samples were drawn and nothing else was changed,
    else None."""
    if not all(step.one_round and not step.terms.kept and step.own_baseline for step in steps):
        return None
    factors = [
        [step.terms.prompt_weights.get(prompt_id, 1.0) / step.terms.num_prompts for prompt_id in prompt_ids]
        for step in steps
    ]
    counts = [[step.drawn.get(prompt_id, 0) for prompt_id in prompt_ids] for step in steps]
    return SampleSizes(counts=np.array(counts, dtype=np.float64), factors=np.array(factors))


class _ArmSteps:
    """Runs the steps of one allocator, one after the other."""

    def __init__(self, config: RunConfig, pool: SamplePool, *, rng: np.random.Generator, seed: int) -> None:
        threshold = config.rewards.accept_threshold
        self._config = config
        self._pool = pool
        self._rng = rng
        self._allocator = AllocationDriver.of(config.allocator, accept_threshold=threshold, seed=seed)
        self._algorithm = create_algorithm(config.algorithm, accept_threshold=threshold)
        self._index_of = pool.index_of()
        accepted = pool.rewards >= threshold
        self._pilot_norms = np.where(accepted, pool.pilot_norms[config.needs.pilot_norms or "embed_tokens"], np.nan)

    def take(self, prompts: IndexArray, *, step: int) -> _Step:
        """Run a step on a random choice of these prompts, as many as the run has candidates in a step.

        If there are fewer prompts than a step has, the budget shrinks in proportion.
        """
        config = self._config
        shown = min(config.candidates_per_step, len(prompts))
        chosen = np.sort(self._rng.choice(prompts, size=shown, replace=False)) if shown < len(prompts) else prompts
        budget = min(config.prompts_per_step, len(prompts)) * config.samples_per_prompt
        if config.needs.shortlist is not None:
            candidates = [self._pool.prompts[index] for index in chosen]
            chosen = chosen[self._allocator.shortlist(candidates, step=step, budget=budget)]
        kind = states_kind(config.prompt_states)
        drawn = dict.fromkeys((self._pool.prompts[index].prompt_id for index in chosen), 0)
        kept: list[GroupOutcome] = []
        num_tokens = num_rounds = 0
        allocation = self._allocator.plan(
            [self._pool.prompts[index] for index in chosen],
            step=step,
            budget=budget,
            states=self._pool.states[kind][chosen] if kind else None,
        )
        while allocation.total:
            outcomes = self._draw(allocation, drawn)
            num_rounds += 1
            num_tokens += sum(int(outcome.num_tokens.sum()) for outcome in outcomes)
            if allocation.needs_gradient_norms:
                outcomes = [o.with_gradient_norms(self._pilot_norms[o.ref.ref]) for o in outcomes]
            if allocation.trained_on:
                kept += outcomes
            allocation = self._allocator.observe(outcomes, step=step)
        report = self._allocator.report(step=step)
        batch = self._algorithm.build_batch(kept, step=step, terms=report.estimator)
        if config.training_gradient_norms:
            self._allocator.observe_training(self._trained_norms(batch))
        return _Step(
            batch=batch,
            drawn=drawn,
            num_tokens=num_tokens,
            terms=report.estimator,
            one_round=num_rounds == 1,
            own_baseline=not (config.algorithm.takes_baselines and report.estimator.baselines),
        )

    def _draw(self, allocation: Allocation, drawn: dict[str, int]) -> list[GroupOutcome]:
        outcomes = []
        for prompt_id, count in allocation.sampled():
            prompt = self._index_of[prompt_id]
            outcomes.append(self._pool.draw(prompt, num=count, first_index=drawn[prompt_id], rng=self._rng))
            drawn[prompt_id] += count
        return outcomes

    def _trained_norms(self, batch: TrainBatch) -> Sequence[TrainedNorms]:
        """The norms that training on the batch would measure with shared prompts."""
        measured = measured_samples(batch, per_class=self._config.needs.norm_samples)
        ends = np.cumsum([len(group.advantages) for group in batch.groups])[:-1]
        return [
            TrainedNorms(
                prompt_id=group.prompt_id,
                positive=group.advantages > 0,
                norms=np.where(
                    chosen & (group.advantages != 0),
                    self._pool.training_norms[group.ref.ref[group.sample_indices]],
                    np.nan,
                ),
            )
            for group, chosen in zip(batch.groups, np.split(measured, ends), strict=False)  # one part of no groups
        ]
