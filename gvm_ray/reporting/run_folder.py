"""The layout of a run's folder, and its JSON, which every parser takes.

A number that isn't finite, which JSON can't say, is null on the way out and in.
"""

import errno
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gvm_ray.config import RunConfig
from gvm_ray.exceptions import (
    CheckpointError,
    ConfigError,
    ResourceError,
    StorageFailure,
    existing_place,
    free_space,
    obstacle_to_writing,
)

logger = logging.getLogger(__name__)

RAY_LOG = "ray.log"  # in a command's output folder: Ray's own lines, and the full causes of failures
_TRIAL_BYTES = 2**20  # written and removed again before a run, to test the disk; the files of a step take less
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


@dataclass(frozen=True)
class RunFolder:
    """``runs/<name>/`` and its files."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved settings, as JSON."""
        return self.path / "config.json"

    @property
    def origins(self) -> Path:
        """Digests of the run's input files and prompts, checked by a resumed run."""
        return self.path / "origins.json"

    @property
    def metrics(self) -> Path:
        """One JSON object for each step."""
        return self.path / "metrics.jsonl"

    @property
    def histograms(self) -> Path:
        """One JSON object for each step: its arrays by prompt, and deciles of its samples."""
        return self.path / "histograms.jsonl"

    @property
    def samples(self) -> Path:
        """One JSON object for each sampled response that is kept as text."""
        return self.path / "samples.jsonl"

    @property
    def base_evaluation(self) -> Path:
        """The starting policy's evaluation, for the summary of a resumed run."""
        return self.path / "base_evaluation.json"

    @property
    def ray_log(self) -> Path:
        """Ray's own lines and the full causes of failures; absent if there were none."""
        return self.path / RAY_LOG

    @property
    def present(self) -> Path:
        """The phases under way; only while the run is."""
        return self.path / "present.json"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def wandb(self) -> Path:
        """Weights & Biases: the run's id there, and the data of each start, offline or uploaded."""
        return self.path / "wandb"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def base(self) -> Path:
        """The starting policy of a run that trains from scratch."""
        return self.path / "base"

    @property
    def warm_start(self) -> Path:
        """The result of a warm start that isn't kept in the cache."""
        return self.path / "warm_start"

    @property
    def model(self) -> Path:
        """The trained policy, as Hugging Face safetensors with its tokenizer."""
        return self.path / "model"

    @property
    def report(self) -> Path:
        """Plots, and the page of `gvm-ray report`."""
        return self.path / "report"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    def create(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Prepare the folder for a run; a new run first removes the files of an earlier one.

        Raises:
            ConfigError, CheckpointError: as `check_start`.
            ResourceError: the folder can't be created or written, or its disk is full.
        """
        try:
            self.check_start(resume=resume, overwrite=overwrite)
            if not resume:
                self._remove()  # also after a failed start, whose base model may differ
            for folder in (self.path, self.checkpoints, self.report):
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder) as trial:
                    trial.write(bytes(_TRIAL_BYTES))
        except OSError as error:
            raise self._unwritable(str(error)) from error

    def check_start(self, *, resume: bool, overwrite: bool) -> None:
        """Check that the folder's content allows a run to start or resume; nothing is written.

        Raises:
            ConfigError: a run of this name has begun already and neither flag is set; or both flags are set.
            CheckpointError: `resume` is set, but there is no run to resume.
            ResourceError: a new folder can't be made there.
        """
        if resume and overwrite:
            raise ConfigError("--resume and --overwrite contradict each other; give one of them")
        if resume and not self.config.is_file():
            raise CheckpointError(f"--resume: there is no run in {str(self.path)!r}; start without --resume")
        if self.has_begun and not (resume or overwrite):
            raise ConfigError(
                f"run folder {str(self.path)!r} holds a run already; choose another name with --set name=..., "
                "continue it with --resume, or replace it with --overwrite"
            )
        if not resume and (obstacle := obstacle_to_writing(existing_place(self.path))):
            raise self._unwritable(obstacle)

    def _unwritable(self, obstacle: str) -> ResourceError:
        return ResourceError(
            f"run folder {str(self.path)!r} can't be written ({obstacle}; {free_space(self.path)} are free); make room "
            "there, or choose another place with --set runs_dir=FOLDER"
        )

    @property
    def has_begun(self) -> bool:
        """Whether there are steps or checkpoints, which a new run would mix with or destroy."""
        return self.metrics.exists() or any(self.checkpoints.glob("*"))

    def save_config(self, config: RunConfig) -> None:
        """Write the resolved settings; `parse_config` reads them back."""
        self.config.write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def read_config(self) -> dict[str, Any]:
        """Read the settings with which the run was started or last resumed, as plain JSON values.

        Raises:
            CheckpointError: the file is damaged.
        """
        try:
            return dict(parse_json(self.config.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{str(self.config)!r} is damaged ({error}), so --resume can't know the run's settings; start it again "
                "with --overwrite"
            ) from error

    def read_base_accuracy(self) -> float | None:
        """Read the starting policy's held-out accuracy; None if it wasn't measured or its file is missing."""
        try:
            return parse_json(self.base_evaluation.read_text(encoding="utf-8")).get("eval/accuracy")
        except (FileNotFoundError, ValueError, AttributeError) as error:
            logger.warning("%s can't be read (%s): the base accuracy is unknown", self.base_evaluation, error)
            return None

    @contextmanager
    def disk_errors(self) -> Iterator[None]:
        """Turn disk errors during the run's writes into a StorageFailure that names this folder."""
        try:
            yield
        except OSError as error:
            if error.errno in _DISK_ERRORS:
                raise StorageFailure.at(self.path, error) from error
            raise

    def _remove(self) -> None:
        # By name, so that other files in the folder stay.
        for file in (
            self.config,
            self.origins,
            self.metrics,
            self.histograms,
            self.samples,
            self.summary,
            self.base_evaluation,
            self.ray_log,
            self.present,
        ):
            file.unlink(missing_ok=True)
        for folder in (
            self.tensorboard,
            self.wandb,
            self.checkpoints,
            self.base,
            self.warm_start,
            self.model,
            self.report,
        ):
            shutil.rmtree(folder, ignore_errors=True)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the objects of a file in order; empty if it is missing. null stands for a number that was not finite.

    A last line cut short by a crash is skipped.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    complete = lines[:-1]  # a complete row ends in a newline, so the rest after the last newline is empty or cut short
    return [parse_json(line) for line in complete]


def read_steps(path: Path) -> list[dict[str, Any]]:
    """Read one object per step, in order. An evaluation that ran alongside later steps is merged into its own step."""
    steps: dict[int, dict[str, Any]] = {}
    for row in read_rows(path):
        steps.setdefault(row["step"], {}).update(row)
    return [steps[step] for step in sorted(steps)]


def cut_rows(path: Path, *, start_step: int) -> list[dict[str, Any]]:
    """Drop the rows of `start_step` and later, and an incomplete last line; returns the kept rows."""
    if not path.exists():
        return []
    kept = [row for row in read_rows(path) if row["step"] < start_step]
    replace_text(path, "".join(_line(row) for row in kept))
    return kept


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append one object to the file and flush it; a number that isn't finite is written as null."""
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(row))


def _line(row: Mapping[str, Any]) -> str:
    return json_text(row) + "\n"


def replace_text(path: Path, text: str) -> None:
    """Write a file atomically: readers see either the old text or the new."""
    incomplete = path.with_name(path.name + ".incomplete")
    incomplete.write_text(text, encoding="utf-8")
    os.replace(incomplete, path)


def json_text(value: Any, *, indent: int | None = None) -> str:
    """The value as JSON, without a newline at its end; NaN and infinities are null at any depth."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def parse_json(text: str) -> Any:
    """The value of a JSON text; the words NaN and Infinity, which Python writes unless told otherwise, are None.

    Raises:
        ValueError: it isn't JSON.
    """
    return json.loads(text, parse_constant=lambda _: None)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
