"""What a run of a comparison leaves: its learning curve, its costs, and how well the allocator predicted."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from gvm_ray.arena.records import Calibration, Evaluation, RunCosts
from gvm_ray.evaluation.evaluator import HeldOutEvaluator
from gvm_ray.exceptions import SystemFailure
from gvm_ray.functional.calibration import brier_score, reliability_bins
from gvm_ray.phase_clock import PhaseClock
from gvm_ray.sample_text import SampleText
from gvm_ray.types import Float64Array, Histograms, Metrics


@dataclass(frozen=True, kw_only=True)
class ManyTests:
    """Protocol `Evaluator` over several tests, whose time doesn't count as the run's."""

    tests: Mapping[str, HeldOutEvaluator]
    log: "CurveLog"

    async def evaluate(self) -> Metrics:
        """`eval/accuracy/<test>` of each.

        Raises:
            SystemFailure: no sample of a test was scored, so that there is nothing to compare.
        """
        with self.log.apart():
            values = {name: (await test.evaluate())["eval/accuracy"] for name, test in self.tests.items()}
        for name, value in values.items():
            if math.isnan(value):
                raise SystemFailure(f"none of the samples of test {name!r} was scored; the reward actors' log says why")
        return {f"eval/accuracy/{name}": value for name, value in values.items()}


@dataclass(kw_only=True)
class CurveLog:
    """Protocol `StepLog`: keeps the evaluations, and of the steps what is predicted and what came of it."""

    clock: PhaseClock
    evaluations: list[Evaluation] = field(default_factory=list)
    predicted: list[Float64Array] = field(default_factory=list)  # accept rates expected of sampled prompts
    observed: list[Float64Array] = field(default_factory=list)
    last: Metrics = field(default_factory=dict)
    _apart_s: Counter[str] = field(default_factory=Counter)  # by phase, and "all"

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Work whose time is not the run's, such as an evaluation."""
        before = {"all": self.clock.elapsed, **self.clock.seconds()}
        try:
            yield
        finally:
            after = {"all": self.clock.elapsed, **self.clock.seconds()}
            self._apart_s.update({name: after[name] - before[name] for name in after})

    def log_step(
        self, step: int, metrics: Metrics, *, histograms: Histograms, texts: Sequence[SampleText] = ()
    ) -> None:
        """One finished step."""
        self.last = metrics
        if "predicted_accept_rate" in histograms:
            self.predicted.append(histograms["predicted_accept_rate"])
            self.observed.append(histograms["observed_accept_rate"])
        self.add(step + 1, metrics)

    def add(self, steps_done: int, metrics: Metrics) -> None:
        """A point of the curve, if there was an evaluation."""
        accuracy = {
            name.removeprefix("eval/accuracy/"): value
            for name, value in metrics.items()
            if name.startswith("eval/accuracy/")
        }
        if accuracy:
            self.evaluations.append(
                Evaluation(
                    step=steps_done,
                    updates=int(metrics.get("cost/optimizer_updates", 0)),
                    generated_tokens=int(metrics.get("cost/generated_tokens", 0)),
                    charged_tokens=metrics.get("cost/charged_tokens", 0.0),
                    seconds=max(self.clock.elapsed - self._apart_s["all"], 0.0),
                    accuracy=accuracy,
                )
            )

    def costs(self) -> RunCosts:
        """What the run has spent until now."""
        seconds = {name: max(s - self._apart_s[name], 0.0) for name, s in self.clock.seconds().items()}
        return RunCosts(
            generated_tokens=int(self.last.get("cost/generated_tokens", 0)),
            pilot_tokens=int(self.last.get("cost/pilot_tokens", 0)),
            prefill_tokens=int(self.last.get("cost/prefill_tokens", 0)),
            planning_s=seconds["planning"],
            prefill_s=seconds["prompt_states"],
            gradient_norms_s=seconds["gradient_norms"],
            sampling_s=seconds["sampling"],
            update_s=seconds["update"],
        )

    def calibration(self) -> Calibration | None:
        """Expected accept rates against observed ones; None for an allocator that expects none."""
        predicted = [each for each in self.predicted if each.size]
        if not predicted:
            return None
        p, y = np.concatenate(predicted), np.concatenate([each for each in self.observed if each.size])
        means, observed, counts = reliability_bins(p, y)
        return Calibration(
            brier=brier_score(p, y),
            predicted=tuple(means.tolist()),
            observed=tuple(observed.tolist()),
            counts=tuple(counts.tolist()),
        )
