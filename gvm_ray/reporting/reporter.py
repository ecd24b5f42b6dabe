"""The reporter: writes each step to the run's rows, to sinks, and in one line on the console."""

import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gvm_ray.config import RunConfig
from gvm_ray.failure_log import FailureLog
from gvm_ray.phase_clock import PhaseClock
from gvm_ray.reporting.progress import accuracy_text, step_line
from gvm_ray.reporting.run_folder import RunFolder, json_text
from gvm_ray.reporting.sinks import GuardedSinks, RowSink, TensorBoardSink
from gvm_ray.types import Histograms, Metrics, SampleText

# Metrics in the files of every run, besides `step`, `time_s` and, for evaluated steps, `eval/accuracy`.
REQUIRED_KEYS = frozenset(
    {
        "cost/generated_samples",  # cumulative, pilots included
        "cost/generated_tokens",  # cumulative, pilots included
        "cost/optimizer_updates",  # cumulative
        "reward/mean",
        "allocation/total",
        "allocation/min",
        "allocation/max",
        "allocation/zero",  # prompts with no sample at all
        "staleness/mean",  # policy updates between sampling and training
        "staleness/max",
        "logprob_difference/mean",  # |learner - engine| per token, nats
    }
)


Callback = Callable[[int, Metrics], None]  # the index of a step, and its metrics


class Reporter:
    """Writes every step of a run to all its sinks. A context manager, whose exit closes the files."""

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        *,
        start_step: int = 0,
        sinks: GuardedSinks | None = None,
        callbacks: Sequence[Callback] = (),
        phases: PhaseClock | None = None,
        failures: FailureLog | None = None,
    ) -> None:
        """Open the files. When a run is resumed, its rows of `start_step` and later are removed.

        The `sinks` are the caller's, who closes them. Errors of `callbacks` are the caller's too: they end the run.
        With `phases`, every step's row also has the durations of the step and of each phase in it. With `failures`, it
        has the number of failures from which the run has recovered, once there was one.
        """
        self._folder = RunFolder(run_dir)
        self._folder.path.mkdir(parents=True, exist_ok=True)
        self._num_steps = config.num_steps
        self._callbacks = tuple(callbacks)
        self._phases = phases
        self._failures = failures
        self._seconds: dict[str, float] = {}  # of the steps so far, by phase and in all
        self._unknown_is_explained = False
        self._rows = RowSink(self._folder, start_step=start_step)
        self._time_s = self._rows.time_s
        self._clock = time.monotonic()
        self._own_sinks = GuardedSinks(
            [TensorBoardSink(self._folder.tensorboard, config, start_step=start_step)]
            if config.reporting.tensorboard
            else []
        )
        self._sinks = [self._own_sinks, sinks or GuardedSinks([])]
        # A bar in a log file is noise, so it is shown only on a terminal.
        self._bar = (
            tqdm(total=config.num_steps, initial=start_step, desc=config.name, unit="step", dynamic_ncols=True)
            if config.reporting.progress and sys.stderr.isatty()
            else None
        )

    def log_step(
        self,
        step: int,
        metrics: Metrics,
        *,
        histograms: Histograms | None = None,
        texts: Sequence[SampleText] = (),
    ) -> Metrics:
        """Write one step everywhere, and flush; the metrics with the times and failures that were added.

        Args:
            step: index of the step, from 0.
            metrics: scalars, including all of REQUIRED_KEYS.
            histograms: arrays of the step; arrays by prompt [P] have the same order.
            texts: a few of the step's samples.
        """
        missing = REQUIRED_KEYS - metrics.keys()
        assert not missing, f"step {step} lacks the metrics {sorted(missing)}"
        now = time.monotonic()
        step_s = now - self._clock
        self._clock = now
        self._time_s += step_s  # includes the time before a resume, but not the time in between
        numbers = {"time_s": round(self._time_s, 3), **{name: float(value) for name, value in metrics.items()}}
        numbers |= self._times()
        if failed := sum(sinks.num_failures for sinks in self._sinks):
            numbers["reporting/failed_writes"] = float(failed)
        if self._failures is not None and self._failures.counts:
            numbers |= self._failures.metrics
        arrays = {name: np.asarray(values, dtype=np.float64) for name, values in (histograms or {}).items()}
        self._write(step, numbers, histograms=arrays, texts=texts)
        for callback in self._callbacks:
            callback(step, numbers)
        self._print_line(step_line(step, num_steps=self._num_steps, metrics=numbers, step_s=step_s))
        self._explain_unknown(metrics)
        if self._bar is not None:
            self._bar.update()
        return numbers

    def log_base_evaluation(self, metrics: Metrics, *, notes: Sequence[str] = ()) -> None:
        """Write the evaluation of the starting policy, which a resumed run reads; empty if there is no evaluation.

        Notes are lines about that policy, printed before it.
        """
        for note in notes:
            self._print_line(note)
        self._folder.base_evaluation.write_text(json_text(metrics) + "\n", encoding="utf-8")
        if metrics:
            self._print_line(f"base held-out accuracy {accuracy_text(metrics['eval/accuracy'])}")
        self._explain_unknown(metrics)

    def log_evaluation(self, step: int, metrics: Metrics) -> None:
        """Write the evaluation of a step that was already written; callbacks aren't called."""
        self._write(step, metrics, histograms={}, texts=())
        if metrics:
            self._print_line(f"step {step + 1}/{self._num_steps}  eval {accuracy_text(metrics['eval/accuracy'])}")
        self._explain_unknown(metrics)

    def close(self) -> None:
        """Close the files and the progress bar."""
        self._own_sinks.close()
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write(self, step: int, metrics: Metrics, *, histograms: Histograms, texts: Sequence[SampleText]) -> None:
        """Write to the run's rows, whose errors end the run, and to the sinks."""
        self._rows.write(step, metrics, histograms=histograms, texts=texts)
        for sinks in self._sinks:
            sinks.write(step, metrics, histograms=histograms, texts=texts)

    def _times(self) -> dict[str, float]:
        """`time/<phase>_s` and `time/step_s` since the previous step."""
        if self._phases is None:
            return {}
        before, self._seconds = self._seconds, {**self._phases.seconds(), "step": self._phases.elapsed}
        return {f"time/{name}_s": s - before.get(name, 0.0) for name, s in self._seconds.items()}

    def _explain_unknown(self, metrics: Metrics) -> None:
        """Print an explanation, once, if an evaluation has no accuracy."""
        if self._unknown_is_explained or not math.isnan(metrics.get("eval/accuracy", 0.0)):
            return
        self._unknown_is_explained = True
        self._print_line(
            "no sample of the evaluation was scored, so its accuracy is unknown, and null in the run's files; see the "
            "reward actors' log for the reason"
        )

    def _print_line(self, line: str) -> None:
        if self._bar is None:
            print(line, flush=True)
        else:
            self._bar.write(line)
