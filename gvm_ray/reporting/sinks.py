"""Destinations of every step's numbers: the run's rows, TensorBoard, Weights & Biases, and sinks that settings name."""

import logging
import secrets
from collections.abc import Sequence
from dataclasses import asdict, fields
from importlib.util import find_spec
from pathlib import Path
from textwrap import indent
from typing import Any, Protocol, runtime_checkable

import numpy as np

from gvm_ray.config import RunConfig
from gvm_ray.config.run import WandbConfig
from gvm_ray.exceptions import ConfigError
from gvm_ray.reporting.run_folder import RunFolder, append_row, cut_rows
from gvm_ray.reporting.summary import flat_settings
from gvm_ray.settings import create_from_path, import_object
from gvm_ray.types import Histograms, Metrics, SampleText

logger = logging.getLogger(__name__)

_RESULTS = ("eval/accuracy", "reward/mean", "cost/generated_tokens")  # columns next to the settings
_CONNECT_S = 30.0  # for the first answer of the server
_UPLOAD_S = 120.0  # for what is still to be uploaded when the run is over


@runtime_checkable
class Sink(Protocol):
    """Protocol of a destination of steps. Writes come from one thread, in the order of the steps.

    After a run went back to a checkpoint, the steps since then come again. An evaluation that ran beside training comes
    as a second write of its step, with the metrics of the evaluation alone.
    """

    def write(self, step: int, metrics: Metrics, *, histograms: Histograms, texts: Sequence[SampleText]) -> None:
        """Write one step.

        Args:
            step: its index, from 0.
            metrics: scalars by name; they may be NaN or infinite.
            histograms: arrays by name; those by prompt [P] have the same order.
            texts: a few of the step's samples.
        """
        ...

    def close(self) -> None:
        """Write what is left; called once, at the end of the run."""
        ...


def check_sinks(config: RunConfig) -> None:
    """Check, before the start, that the sinks that the settings name can be made.

    Raises:
        ConfigError: a package or a class is missing, or there is no login for Weights & Biases.
    """
    if config.reporting.wandb is not None:
        check_wandb(config.reporting.wandb)
    for sink in config.reporting.sinks:
        try:
            made_by = import_object(sink.path)
        except ImportError as error:
            raise ConfigError(f"reporting.sinks: path {error}") from error
        if isinstance(made_by, type) and not issubclass(made_by, Sink):
            raise ConfigError(f"reporting.sinks: {sink.path!r} has no {_SHAPE}")


_SHAPE = "write(step, metrics, *, histograms, texts) or no close(); a sink has both"


def create_sinks(config: RunConfig, folder: RunFolder) -> list[Sink]:
    """The sinks that the settings name, besides TensorBoard: they stay open when the run goes back to a checkpoint.

    Raises:
        ConfigError: one of them can't be made.
    """
    sinks: list[Sink] = []
    if config.reporting.wandb is not None:
        sinks.append(WandbSink(config, folder))
    for sink in config.reporting.sinks:
        try:
            sinks.append(create_from_path(sink.path, config, parameters=sink.parameters, protocol=Sink))
        except Exception as error:  # the user's class may raise anything
            raise ConfigError(f"reporting.sinks: {sink.path!r} can't be made: {error}") from error
    return sinks


class GuardedSinks:
    """Several sinks, none of which can end the run: the first error of each is printed, and all are counted."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)
        self._failed: set[int] = set()  # by their place
        self.num_failures = 0  # calls that raised so far

    def write(self, step: int, metrics: Metrics, *, histograms: Histograms, texts: Sequence[SampleText]) -> None:
        """Write one step to every sink."""
        for place, sink in enumerate(self._sinks):
            try:
                sink.write(step, metrics, histograms=histograms, texts=texts)
            except Exception as error:  # a sink is never worth the run
                self._record(place, error)

    def close(self) -> None:
        """Close every sink."""
        for place, sink in enumerate(self._sinks):
            try:
                sink.close()
            except Exception as error:
                self._record(place, error)

    def _record(self, place: int, error: Exception) -> None:
        self.num_failures += 1
        name = type(self._sinks[place]).__name__
        if place not in self._failed:
            self._failed.add(place)
            logger.warning(
                "%s failed (%s: %s); the run goes on, and counts such failures in reporting/failed_writes",
                name,
                type(error).__name__,
                error,
            )
        logger.debug("%s failed", name, exc_info=error)


class RowSink:
    """Appends every step to the run's JSONL files, which the run itself reads again."""

    def __init__(self, folder: RunFolder, *, start_step: int) -> None:
        """Remove rows of `start_step` and later."""
        self._folder = folder
        kept = cut_rows(folder.metrics, start_step=start_step)
        cut_rows(folder.histograms, start_step=start_step)
        cut_rows(folder.samples, start_step=start_step)
        self.time_s = max((float(row["time_s"]) for row in kept if "time_s" in row), default=0.0)  # of the rows kept

    def write(self, step: int, metrics: Metrics, *, histograms: Histograms, texts: Sequence[SampleText]) -> None:
        """Append and flush the rows of one step."""
        append_row(self._folder.metrics, {"step": step, **metrics})
        if histograms:
            append_row(self._folder.histograms, {"step": step, **{name: a.tolist() for name, a in histograms.items()}})
        for text in texts:
            append_row(self._folder.samples, {"step": step, **asdict(text)})

    def close(self) -> None:
        """Do nothing: the files are closed after each row."""


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


def check_wandb(config: WandbConfig) -> None:
    """Check that the package is installed and, for an online run, that there is a login. Needs no network.

    Raises:
        ConfigError: what is missing, and what to do.
    """
    spec = find_spec("wandb")
    if spec is None or spec.origin is None:  # not just a folder of that name
        raise ConfigError(
            "reporting.wandb needs a package that is not installed; run pip install 'gvm-ray[wandb]', or remove "
            "reporting.wandb"
        )
    if config.mode == "online" and not _has_login():
        raise ConfigError(
            "reporting.wandb has mode='online', but there is no login for Weights & Biases; run `wandb login`, set "
            "WANDB_API_KEY, or write reporting.wandb.mode='offline'"
        )


def _has_login() -> bool:
    import wandb

    try:
        return wandb.login(prompt=False, verify=False)
    except (wandb.Error, ValueError) as error:  # e.g. a key of the wrong form
        raise ConfigError(f"the login for Weights & Biases can't be used ({error}); run `wandb login` again") from error


class WandbSink:
    """Logs every step to the run whose id is kept in the run's folder.

    The horizontal axis is `step`: a step that is made again after a return to a checkpoint is a second point there,
    which Weights & Biases' own step, that can only grow, would drop.
    """

    def __init__(self, config: RunConfig, folder: RunFolder) -> None:
        """Start or continue the run. If the server can't be reached, print so and log offline."""
        assert config.reporting.wandb is not None
        folder.wandb.mkdir(parents=True, exist_ok=True)
        kept = folder.wandb / "run_id"
        if not kept.is_file():
            kept.write_text(secrets.token_hex(8), encoding="utf-8")
        self._run = _started(config, folder, run_id=kept.read_text(encoding="utf-8"))
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, metrics: Metrics, *, histograms: Histograms, texts: Sequence[SampleText]) -> None:
        """Log one step; arrays without a finite value are left out."""
        import wandb

        values: dict[str, Any] = {"step": step, **metrics}
        for name, array in histograms.items():
            finite = array[np.isfinite(array)]
            if finite.size:
                values[f"histograms/{name}"] = wandb.Histogram(finite.tolist())
        if texts:
            columns: list[Any] = [field.name for field in fields(SampleText)]
            values["samples"] = wandb.Table(columns=columns, data=[list(asdict(text).values()) for text in texts])
        self._run.log(values)

    def close(self) -> None:
        """Upload what is left, for a limited time; `wandb sync` uploads the rest."""
        self._run.finish()


def _started(config: RunConfig, folder: RunFolder, *, run_id: str) -> Any:
    import wandb

    settings = config.reporting.wandb
    assert settings is not None
    arguments: dict[str, Any] = {
        "project": settings.project,
        "entity": settings.entity,
        "name": config.name,
        "id": run_id,
        "resume": "allow",
        "dir": str(folder.path),  # into its folder wandb/
        "config": config.model_dump(mode="json"),
        "reinit": "create_new",  # another run of this process stays as it is
        "settings": wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            save_code=False,
            init_timeout=_CONNECT_S,
            finish_timeout=_UPLOAD_S,
        ),
    }
    try:
        run = wandb.init(mode=settings.mode, **arguments)
    except wandb.Error as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        print(
            f"warning: Weights & Biases can't be reached ({reason}); the run is logged offline, and `wandb sync "
            f"{folder.wandb}/offline-run-*` uploads it",
            flush=True,
        )
        wandb.teardown()  # the failed run still holds the id
        return wandb.init(mode="offline", **arguments)
    print(f"Weights & Biases run {run_id}, {run.url if settings.mode == 'online' else 'offline'}", flush=True)
    return run
