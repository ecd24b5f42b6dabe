"""Drives a strategy's generators, one call for each round of a step, and keeps the books that all strategies share."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gvm_ray.allocators.base import Allocator, AllocatorConfig, Report, Rounds, Step
from gvm_ray.allocators.memory import PromptMemory
from gvm_ray.exceptions import ConfigError
from gvm_ray.types import (
    Allocation,
    AllocationReport,
    EstimatorTerms,
    Float64Array,
    FloatArray,
    GroupOutcome,
    Metrics,
    Prompt,
    TrainedNorms,
)


@dataclass(kw_only=True, eq=False)
class _OpenStep:
    """A step under way."""

    step: Step
    rounds: Rounds
    counts: Counter[str] = field(default_factory=Counter)  # samples to train on, of the rounds so far


class AllocationDriver:
    """The steps of one strategy, and one memory of the run. A step that fails is forgotten and can be planned again."""

    def __init__(self, strategy: Allocator, *, accept_threshold: float, seed: int = 0) -> None:
        """A driver with an empty memory.

        Args:
            strategy: decides.
            accept_threshold: a sample is accepted (a success) when its reward is at least this.
            seed: of what the strategy draws at random.
        """
        self._strategy = strategy
        self._accept_threshold = accept_threshold
        self._seed = seed
        self.memory = PromptMemory()
        self._open: dict[int, _OpenStep] = {}
        self._reports: dict[int, AllocationReport] = {}  # of finished steps, until they are asked for

    @classmethod
    def of(cls, settings: AllocatorConfig, *, accept_threshold: float, seed: int = 0) -> "AllocationDriver":
        """A driver of the strategy that these settings describe.

        Raises:
            ConfigError: a custom allocator can't be imported or made.
        """
        strategy = settings.build(accept_threshold=accept_threshold, seed=seed)
        return cls(strategy, accept_threshold=accept_threshold, seed=seed)

    def plan(
        self,
        prompts: Sequence[Prompt],
        *,
        step: int,
        budget: int,
        upcoming: Sequence[Prompt] = (),
        states: FloatArray | None = None,
    ) -> Allocation:
        """First round with anything to sample; empty where the step needs none.

        Raises:
            ConfigError: the strategy can't spend this budget on these prompts, or is no allocator.
        """
        assert prompts, "a step needs at least one prompt"
        assert step not in self._open, f"step {step} is under way and can't be planned a second time"
        assert step not in self._reports, f"step {step} is finished and its report was not asked for"
        rows = list({prompt.prompt_id: row for row, prompt in enumerate(prompts)}.values())
        shown = Step(
            number=step,
            prompts=[prompts[row] for row in rows],
            budget=budget,
            rng=np.random.default_rng((self._seed, step)),
            memory=self.memory,
            samples=PromptMemory(),
            upcoming=list({prompt.prompt_id: prompt for prompt in upcoming}.values()),
            states=None if states is None else states[rows],
        )
        return self._advance(_OpenStep(step=shown, rounds=self._strategy.rounds(shown)), None)

    def observe(self, outcomes: Sequence[GroupOutcome], *, step: int) -> Allocation:
        """Next round, given the outcomes of the last one; empty when the step is done."""
        assert step in self._open, f"step {step} waits for no outcomes; the steps under way are {list(self._open)}"
        under_way = self._open.pop(step)
        self._remember(outcomes, under_way.step.samples)
        return self._advance(under_way, outcomes)

    def report(self, *, step: int) -> AllocationReport:
        """Account of a finished step; once."""
        assert step in self._reports, f"step {step} has no report; the finished steps are {list(self._reports)}"
        return self._reports.pop(step)

    def observe_training(self, norms: Sequence[TrainedNorms]) -> None:
        """Pass on the gradient norms of a trained batch."""
        self._strategy.observe_training(norms)

    def state_dict(self) -> dict[str, Any]:
        """The run's counts and the strategy's own memory, as plain JSON values."""
        return {"prompts": self.memory.state_dict(), "strategy": self._strategy.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`'s memory."""
        self.memory.load_state_dict(state["prompts"])
        self._strategy.load_state_dict(state["strategy"])

    def _remember(self, outcomes: Sequence[GroupOutcome], samples: PromptMemory) -> None:
        """Fold a round into the step and into the run, whose earlier counts decay at the step's first scored sample."""
        seen = PromptMemory.of(outcomes, accept_threshold=self._accept_threshold)
        (_, before), (_, new) = samples.counts(seen.prompt_ids), seen.counts(seen.prompt_ids)
        self.memory.add(seen, decay=np.where((before == 0) & (new > 0), self._strategy.memory_decay, 1.0))
        samples.add(seen)

    def _advance(self, under_way: _OpenStep, outcomes: Sequence[GroupOutcome] | None) -> Allocation:
        number, rounds = under_way.step.number, under_way.rounds
        try:
            allocation = _allocation(next(rounds) if outcomes is None else rounds.send(outcomes))
            while not allocation.total:  # nothing to sample: go on with no outcomes
                allocation = _allocation(rounds.send([]))
        except StopIteration as done:
            if not isinstance(done.value, Report | None):
                raise ConfigError(
                    f"{type(self._strategy).__name__}.rounds returned {done.value!r}; end it with "
                    "`return Report(...)`, or without a value"
                ) from None
            self._reports[number] = _account(under_way, done.value or Report())
            return Allocation.empty()
        if allocation.trained_on:
            under_way.counts.update(allocation.counts)
        self._open[number] = under_way
        return allocation


def _allocation(decision: Mapping[str, int] | Allocation) -> Allocation:
    return decision if isinstance(decision, Allocation) else Allocation(counts=decision)


def _account(done: _OpenStep, report: Report) -> AllocationReport:
    """What the loop logs of a step, and what the algorithm has to know of it.

    Metrics are `allocation/min|max|total` of the samples per prompt, `allocation/zero`, the prompts that got none,
    `allocation/dropped`, those of which no sample is kept, and the strategy's own.
    """
    step, given = done.step, done.counts if report.counts is None else report.counts
    values = np.array([given.get(prompt_id, 0) for prompt_id in step.ids], dtype=np.int64)
    kept = report.kept or {}
    num_dropped = sum(not indices for indices in kept.values())
    metrics: Metrics = {
        "allocation/min": float(values.min()),
        "allocation/max": float(values.max()),
        "allocation/zero": float((values == 0).sum()),
        "allocation/total": float(values.sum()),
        **({} if report.kept is None else {"allocation/dropped": float(num_dropped)}),
        **report.metrics,
    }
    sampled = int((values > 0).sum()) - num_dropped
    return AllocationReport(
        estimator=EstimatorTerms(
            num_prompts=sampled if report.num_prompts is None else report.num_prompts,
            accept_rates=report.accept_rates,
            pilots=report.pilots,
            baselines=report.baselines,
            scales=report.scales,
            prompt_weights=report.prompt_weights,
            kept=kept,
        ),
        metrics=metrics,
        histograms={
            "samples_per_prompt": values.astype(np.float64),
            "accept_rate": _accept_rates(step, values),
            **report.histograms,
        },
    )


def _accept_rates(step: Step, sizes: np.ndarray) -> Float64Array:
    """[P] of the step's samples; 0 where none was scored, NaN where none was asked for."""
    return np.where(sizes > 0, np.nan_to_num(step.samples.accept_rates(step.ids), nan=0.0), np.nan)
