"""The driver of an allocation strategy: advances its generators round by round, and keeps counts and reports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gvm_ray.allocators.base import Allocator, AllocatorConfig, Report, Rounds, Step
from gvm_ray.allocators.memory import PromptMemory
from gvm_ray.exceptions import ConfigError
from gvm_ray.types import (
    Allocation,
    AllocationReport,
    Counts,
    EstimatorTerms,
    Float64Array,
    FloatArray,
    GroupOutcome,
    IndexArray,
    Metrics,
    Prompt,
    TrainedNorms,
)


@dataclass(kw_only=True, eq=False)
class _OpenStep:
    """A step under way."""

    step: Step
    rounds: Rounds
    sizes: IndexArray  # [P] samples to train on, over the rounds so far
    earlier_rates: dict[str, float]  # prompt_id -> accept rate of the run's samples before this step, where it has any


class AllocationDriver:
    """Runs the steps of one strategy, and holds the run's memory. A failed step is dropped and can be planned again."""

    def __init__(self, strategy: Allocator, *, accept_threshold: float, seed: int = 0) -> None:
        """Create a driver with an empty memory.

        Args:
            strategy: the allocator that decides the counts.
            accept_threshold: a sample is accepted (a success) when its reward is at least this.
            seed: seed of the strategy's random draws.
        """
        self._strategy = strategy
        self._accept_threshold = accept_threshold
        self._seed = seed
        self.memory = PromptMemory()
        self._open: dict[int, _OpenStep] = {}
        self._reports: dict[int, AllocationReport] = {}  # of finished steps, until `report` returns them

    @classmethod
    def of(cls, settings: AllocatorConfig, *, accept_threshold: float, seed: int = 0) -> "AllocationDriver":
        """Create a driver of the strategy that the settings describe.

        Raises:
            ConfigError: a custom allocator can't be imported or constructed.
        """
        strategy = settings.build(accept_threshold=accept_threshold, seed=seed)
        return cls(strategy, accept_threshold=accept_threshold, seed=seed)

    def shortlist(self, prompts: Sequence[Prompt], *, step: int, budget: int) -> IndexArray:
        """Choose the rows of the prompts that a step goes on with: `plan` is then given these alone, and states of them
        at most. It changes nothing that is remembered."""
        rows = _distinct_rows([prompt.prompt_id for prompt in prompts])
        shown = Step(
            number=step,
            prompts=[prompts[row] for row in rows],
            budget=budget,
            rng=np.random.default_rng((self._seed, step, 1)),  # unrelated to what the rounds draw
            memory=self.memory,
            samples=PromptMemory(),
        )
        return rows[self._strategy.shortlist(shown)]

    def plan(
        self,
        prompts: Sequence[Prompt],
        *,
        step: int,
        budget: int,
        upcoming: Sequence[Prompt] = (),
        states: FloatArray | None = None,
    ) -> Allocation:
        """Begin a step, and return its first round that has samples; empty if no round has any.

        Raises:
            ConfigError: the strategy can't spend this budget on these prompts, or is not an allocator.
        """
        assert prompts, "a step needs at least one prompt"
        assert step not in self._open, f"step {step} is under way and can't be planned a second time"
        assert step not in self._reports, f"step {step} is finished; call report before planning it again"
        shown = Step(
            number=step,
            prompts=prompts,
            budget=budget,
            rng=np.random.default_rng((self._seed, step)),
            memory=self.memory,
            samples=PromptMemory(),
            upcoming=list({prompt.prompt_id: prompt for prompt in upcoming}.values()),
            states=states,
        )
        if not _are_distinct(shown.ids):
            rows = _distinct_rows(shown.ids)
            distinct = [prompts[row] for row in rows]
            shown = replace(shown, prompts=distinct, states=None if states is None else states[rows])
        sizes = np.zeros(len(shown.prompts), dtype=np.int64)
        rounds, earlier_rates = self._strategy.rounds(shown), self._known_rates(shown.ids)
        return self._advance(_OpenStep(step=shown, rounds=rounds, sizes=sizes, earlier_rates=earlier_rates), None)

    def observe(self, outcomes: Sequence[GroupOutcome], *, step: int) -> Allocation:
        """Return the next round, given the outcomes of the last one; empty when the step is done."""
        assert step in self._open, f"step {step} is not waiting for outcomes; steps under way: {list(self._open)}"
        under_way = self._open.pop(step)
        self._remember(outcomes, under_way.step.samples)
        return self._advance(under_way, outcomes)

    def report(self, *, step: int) -> AllocationReport:
        """Return the report of a finished step, and drop it."""
        assert step in self._reports, f"step {step} has no report; finished steps: {list(self._reports)}"
        return self._reports.pop(step)

    def observe_training(self, norms: Sequence[TrainedNorms]) -> None:
        """Pass the gradient norms of a trained batch to the strategy."""
        self._strategy.observe_training(norms)

    def state_dict(self) -> dict[str, Any]:
        """The run's counts and the strategy's own memory, as plain JSON values."""
        return {"prompts": self.memory.state_dict(), "strategy": self._strategy.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the memory that `state_dict` returned."""
        self.memory.load_state_dict(state["prompts"])
        self._strategy.load_state_dict(state["strategy"])

    def _remember(self, outcomes: Sequence[GroupOutcome], samples: PromptMemory) -> None:
        """Add a round to the memories of the step and the run. A prompt's earlier counts in the run decay once a step,
        at its first scored sample."""
        seen = PromptMemory.of(outcomes, accept_threshold=self._accept_threshold)
        (_, before), (_, new) = samples.counts(seen.prompt_ids), seen.counts(seen.prompt_ids)
        self.memory.add(seen, decay=np.where((before == 0) & (new > 0), self._strategy.memory_decay, 1.0))
        samples.add(seen)

    def _advance(self, under_way: _OpenStep, outcomes: Sequence[GroupOutcome] | None) -> Allocation:
        number, rounds = under_way.step.number, under_way.rounds
        try:
            allocation = self._allocation(next(rounds) if outcomes is None else rounds.send(outcomes))
            while not allocation.total:  # nothing to sample: skip the round
                allocation = self._allocation(rounds.send([]))
        except StopIteration as done:
            if not isinstance(done.value, Report | None):
                raise ConfigError(
                    f"{type(self._strategy).__name__}.rounds returned {done.value!r}; end it with "
                    "`return Report(...)`, or without a value"
                ) from None
            self._reports[number] = _account(under_way, done.value or Report())
            return Allocation.empty()
        if allocation.trained_on:
            under_way.sizes = under_way.sizes + Counts.of(allocation.counts).at(under_way.step.ids)
        self._open[number] = under_way
        return allocation

    def _known_rates(self, ids: Sequence[str]) -> dict[str, float]:
        if not len(self.memory):
            return {}
        rates = self.memory.accept_rates(ids)
        known: list[int] = np.flatnonzero(~np.isnan(rates)).tolist()
        return {ids[row]: float(rates[row]) for row in known}

    def _allocation(self, decision: Mapping[str, int] | Allocation) -> Allocation:
        """The round as an `Allocation` with its counts as arrays."""
        round_ = decision if isinstance(decision, Allocation) else Allocation(counts=decision)
        try:
            return replace(round_, counts=Counts.of(round_.counts))
        except ValueError as error:
            raise ConfigError(f"{type(self._strategy).__name__}.rounds yielded a wrong round: {error}") from None


def _are_distinct(ids: Sequence[str]) -> bool:
    """True if no id comes twice; false may also mean two equal hashes. Of a million ids the hashes are sorted in a
    fraction of the time that a set takes."""
    hashes = np.sort(np.fromiter(map(hash, ids), dtype=np.int64, count=len(ids)))
    return bool((hashes[1:] != hashes[:-1]).all())


def _distinct_rows(ids: Sequence[str]) -> IndexArray:
    """One row of each id, in order of first appearance."""
    return np.array(list({prompt_id: row for row, prompt_id in enumerate(ids)}.values()), dtype=np.int64)


def _account(done: _OpenStep, report: Report) -> AllocationReport:
    """Build a step's report: metrics for the loop to log, and estimator terms for the algorithm.

    Metrics are `allocation/min|max|total` of the samples per prompt, `allocation/zero`: the number of prompts without
    samples, `allocation/dropped`: the number of prompts with no kept sample, and the strategy's own.
    """
    step = done.step
    values = done.sizes if report.counts is None else Counts.of(report.counts).at(step.ids)
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
            expected_rates=report.accept_rates or done.earlier_rates,
            baselines=report.baselines,
            sample_baselines=report.sample_baselines,
            scales=report.scales,
            deviations=report.deviations,
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
    """Accept rates [P] of the step's samples; 0 if no sample was scored, NaN if none was requested."""
    return np.where(sizes > 0, np.nan_to_num(step.samples.accept_rates(step.ids), nan=0.0), np.nan)
