"""The reporter: writes each step's metrics to files, TensorBoard, sinks, and one line on the console."""

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import indent
from typing import Protocol

import numpy as np
from tqdm import tqdm

from gvm_ray.config import RunConfig
from gvm_ray.failure_log import FailureLog
from gvm_ray.phase_clock import PhaseClock
from gvm_ray.reporting.progress import accuracy_text, step_line
from gvm_ray.reporting.run_folder import RunFolder, append_row, cut_rows, json_text
from gvm_ray.reporting.summary import flat_settings
from gvm_ray.types import Histograms, Metrics, SampleText

_RESULTS = ("eval/accuracy", "reward/mean", "cost/generated_tokens")  # columns next to the settings


class TensorBoardSink:
    """Writes the TensorBoard event files of one run."""

    def __init__(self, folder: Path, config: RunConfig, *, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self._writer = SummaryWriter(str(folder), purge_step=start_step if start_step else None)
        # SummaryWriter.add_hparams would write them as a separate run, in a subfolder.
        settings = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in flat_settings(config.model_dump(mode="json")).items()
        }
        experiment, start, _ = hparams(settings, dict.fromkeys(_RESULTS, 0.0))
        events = self._writer.file_writer
        assert events is not None  # until it is closed
        for summary in (experiment, start):
            events.add_summary(summary)

    def write(self, step: int, metrics: Metrics, *, histograms: Histograms, texts: Sequence[SampleText]) -> None:
        """Write and flush one step; arrays without a finite value are left out."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        for name, values in histograms.items():
            finite = values[np.isfinite(values)]
            if finite.size:
                self._writer.add_histogram(name, finite, step)
        for text in texts:
            self._writer.add_text(f"samples/{text.rank}", as_markdown(text), step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def as_markdown(text: SampleText) -> str:
    """Format a sample as Markdown, with the model's text in code blocks so that it isn't interpreted as Markdown."""
    truncated = ", cut" if text.truncated else ""
    parts = [
        f"**reward {text.reward:g}** for prompt `{text.prompt_id}`, {text.num_tokens} tokens{truncated}, "
        f"policy {text.policy_version}",
        *(indent(part, "    ", lambda _: True) for part in (text.prompt, text.completion)),
        "answer:",
        indent(text.answer, "    ", lambda _: True),
    ]
    # A text may contain half of a surrogate pair, which UTF-8 can't encode.
    return "\n\n".join(parts).encode("utf-8", errors="replace").decode("utf-8")


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


class MetricsSink(Protocol):
    """Protocol of an additional destination of each step's scalars, e.g. Ray's metrics."""

    def write(self, step: int, metrics: Metrics) -> None: ...

    def close(self) -> None: ...


Callback = Callable[[int, Metrics], None]  # the index of a step, and its metrics


class CallbackSink:
    """Passes each step to a user's function."""

    def __init__(self, callback: Callback) -> None:
        self._callback = callback

    def write(self, step: int, metrics: Metrics) -> None:
        self._callback(step, metrics)

    def close(self) -> None: ...


class Reporter:
    """Writes every step of a run to all its sinks. A context manager, whose exit closes the files."""

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        *,
        start_step: int = 0,
        sinks: Sequence[MetricsSink] = (),
        phases: PhaseClock | None = None,
        failures: FailureLog | None = None,
    ) -> None:
        """Open the files. When a run is resumed, its rows of `start_step` and later are removed.

        With `phases`, every step's row also has the durations of the step and of each phase in it. With `failures`, it
        has the number of failures from which the run has recovered, once there was one.
        """
        self._folder = RunFolder(run_dir)
        self._folder.path.mkdir(parents=True, exist_ok=True)
        self._num_steps = config.num_steps
        self._sinks = tuple(sinks)
        self._phases = phases
        self._failures = failures
        self._seconds: dict[str, float] = {}  # of the steps so far, by phase and in all
        self._unknown_is_explained = False
        kept = cut_rows(self._folder.metrics, start_step=start_step)
        cut_rows(self._folder.histograms, start_step=start_step)
        cut_rows(self._folder.samples, start_step=start_step)
        self._time_s = max((float(row["time_s"]) for row in kept if "time_s" in row), default=0.0)
        self._clock = time.monotonic()
        self._tensorboard = (
            TensorBoardSink(self._folder.tensorboard, config, start_step=start_step)
            if config.reporting.tensorboard
            else None
        )
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
        numbers = {name: float(value) for name, value in metrics.items()} | self._times()
        if self._failures is not None and self._failures.counts:
            numbers |= self._failures.metrics
        arrays = {name: np.asarray(values, dtype=np.float64) for name, values in (histograms or {}).items()}
        append_row(self._folder.metrics, {"step": step, "time_s": round(self._time_s, 3), **numbers})
        if arrays:
            append_row(self._folder.histograms, {"step": step, **{name: a.tolist() for name, a in arrays.items()}})
        for text in texts:
            append_row(self._folder.samples, {"step": step, **asdict(text)})
        if self._tensorboard is not None:
            self._tensorboard.write(step, numbers, histograms=arrays, texts=texts)
        for sink in self._sinks:
            sink.write(step, numbers)
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
        append_row(self._folder.metrics, {"step": step, **metrics})
        if self._tensorboard is not None:
            self._tensorboard.write(step, metrics, histograms={}, texts=())
        for sink in self._sinks:
            if not isinstance(sink, CallbackSink):
                sink.write(step, metrics)
        if metrics:
            self._print_line(f"step {step + 1}/{self._num_steps}  eval {accuracy_text(metrics['eval/accuracy'])}")
        self._explain_unknown(metrics)

    def close(self) -> None:
        """Close the files, the sinks and the progress bar."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        for sink in self._sinks:
            sink.close()
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

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
