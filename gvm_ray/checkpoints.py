"""Checkpoints on disk, one folder each, complete or absent; and what a run that goes on must share with its beginning.

``step_000010/`` holds ``state.json`` (step, prompt cursor, allocator memory, costs), ``prompt_states.npz`` (hidden
states or embeddings that the allocator still needs, if any), ``config.json``, ``learner/`` (sharded model and
optimizer) and ``manifest.json`` (size and SHA-256 of all these). It is written under a temporary name and renamed when
it is on the disk, so that a crash while saving leaves the last good checkpoint.
"""

import asyncio
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from hashlib import file_digest
from pathlib import Path
from typing import Any

import numpy as np

from gvm_ray.config import RunConfig, parse_config
from gvm_ray.config.model import PretrainedModelConfig
from gvm_ray.exceptions import CheckpointError, ConfigError, StorageFailure
from gvm_ray.model_files import model_files
from gvm_ray.protocols import Learners
from gvm_ray.tasks.prompt_set import PromptSets, prompts_digest
from gvm_ray.types import CheckpointState

_MANIFEST, _STATE, _PROMPT_STATES, _CONFIG = "manifest.json", "state.json", "prompt_states.npz", "config.json"
_FORMAT = 2  # of `state.json`; increase it when the meaning of its fields changes


@dataclass(frozen=True, kw_only=True)
class RestoredCheckpoint:
    """The checkpoint from which a run resumes."""

    state: CheckpointState
    learner: Path  # folder of the sharded model and optimizer


@dataclass(frozen=True, kw_only=True)
class CheckpointFolder:
    """The checkpoints of one run."""

    folder: Path
    config: RunConfig

    async def save(self, state: CheckpointState, learners: Learners) -> None:
        """Write a complete checkpoint, then delete the oldest ones beyond `checkpoint.keep`.

        Raises:
            CheckpointError: it can't be written, e.g. because the disk is full; earlier checkpoints stay.
        """
        incomplete = self.folder / f".incomplete-step_{state.step:06d}"
        try:
            shutil.rmtree(incomplete, ignore_errors=True)
            incomplete.mkdir(parents=True)
            await learners.save(str(incomplete / "learner"))
            target = await asyncio.to_thread(self._complete, state, incomplete)
            learners.checkpointed(str(target / "learner"))
            for old in self.complete()[: -self.config.checkpoint.keep]:
                shutil.rmtree(old)
        except (OSError, StorageFailure) as error:
            shutil.rmtree(incomplete, ignore_errors=True)
            raise CheckpointError(
                f"the checkpoint after step {state.step} can't be written to {str(self.folder)!r}: {error}; make room "
                "there, and continue from the last one with --resume"
            ) from error

    def complete(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        return sorted(self.folder.glob("step_*"))

    def latest(self) -> RestoredCheckpoint | None:
        """The newest checkpoint, with all its files verified; None if there is none yet.

        Raises:
            CheckpointError: it is damaged, of another format, or belongs to another configuration.
        """
        found = self.complete()
        if not found:
            return None
        newest = found[-1]
        try:
            _verify(newest)
            state, saved = _read_state(newest), json.loads((newest / _CONFIG).read_text(encoding="utf-8"))
        except CheckpointError:
            raise
        except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
            older = (
                f"to resume from {found[-2].name!r}, the one before"
                if found[:-1]
                else "and start again; it is the only one"
            )
            raise CheckpointError(
                f"checkpoint {str(newest)!r} is damaged ({error}); remove that folder {older}"
            ) from error
        check_settings(self.config, saved, origin=f"checkpoint {str(newest)!r}")
        return RestoredCheckpoint(state=state, learner=newest / "learner")

    def _complete(self, state: CheckpointState, incomplete: Path) -> Path:
        """Finish an incomplete checkpoint; return the folder of the complete one."""
        (incomplete / _CONFIG).write_text(self.config.model_dump_json(indent=2), encoding="utf-8")
        _write_state(state, incomplete)
        (incomplete / _MANIFEST).write_text(json.dumps(_entries(incomplete), indent=2), encoding="utf-8")
        for path in [*incomplete.rglob("*"), incomplete]:
            _to_disk(path)
        target = self.folder / f"step_{state.step:06d}"
        shutil.rmtree(target, ignore_errors=True)
        os.replace(incomplete, target)
        _to_disk(self.folder)
        return target


def check_settings(config: RunConfig, saved: Mapping[str, Any], *, origin: str) -> None:
    """Check that a resumed run has its original settings, except for those that may change.

    Args:
        config: of the resumed run.
        saved: the original settings, from JSON; settings added to the package since have their defaults.
        origin: the beginning of the message.

    Raises:
        CheckpointError: a setting differs, or the original settings are of a version with other settings.
    """
    try:
        before = parse_config(saved)
    except ConfigError as error:
        reason = " ".join(str(error).split())  # on one line
        raise CheckpointError(
            f"{origin} was made with settings that this version of gvm_ray doesn't take ({reason}); resume with the "
            "version that it was made with, or start a new run with --set name=..."
        ) from error
    if changed := changed_settings(before, config):
        wanted = ", ".join(f"{name} = {old} (not {new})" for name, (old, new) in changed.items())
        raise CheckpointError(
            f"{origin} was made with other settings in {', '.join(changed)}; resume with {wanted}, or start a new run "
            "with --set name=..."
        )


def run_origins(config: RunConfig, prompts: PromptSets) -> dict[str, Any]:
    """A run's origins as JSON: digests of the model's files, and of the prompts as the model reads them.

    The prompts' digest changes with data files, tokenizer and template. A scratch model has no files: the settings
    determine it.

    Raises:
        ModelError: a hub id's commit can't be determined.
    """
    model = config.model
    files = model_files(model.path, revision=model.revision) if isinstance(model, PretrainedModelConfig) else {}
    return {
        "model": files,
        "prompts": {"train": prompts_digest(prompts.train), "eval": prompts_digest(prompts.eval)},
    }


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """`NAME was BEFORE and is AFTER` for every value that differs; values in nested mappings have dotted names."""
    found: list[str] = []
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += [f"{name}.{each}" for each in differences(old, new)]
        elif old != new:
            found.append(f"{name} was {old!r} and is {new!r}")
    return found


class NoCheckpoints:
    """Implements `protocols.Checkpoints` for a run that is never resumed: saves nothing."""

    async def save(self, state: CheckpointState, learners: Learners) -> None: ...


def _write_state(state: CheckpointState, folder: Path) -> None:
    values = {each.name: getattr(state, each.name) for each in fields(state)}
    arrays: Mapping[str, Any] = values.pop("prompt_states")
    (folder / _STATE).write_text(json.dumps({"format": _FORMAT, **values}), encoding="utf-8")
    if arrays:
        np.savez(folder / _PROMPT_STATES, **arrays)


def _read_state(folder: Path) -> CheckpointState:
    values = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    if (found := values.pop("format", 1)) != _FORMAT:
        raise CheckpointError(
            f"checkpoint {str(folder)!r} has format {found}, but this version of gvm_ray reads format {_FORMAT}; "
            "resume with the version that it was made with, or start a new run with --set name=..."
        )
    arrays: dict[str, Any] = {}
    if (folder / _PROMPT_STATES).exists():
        with np.load(folder / _PROMPT_STATES, allow_pickle=False) as saved:
            arrays = dict(saved)
    return CheckpointState(**values, prompt_states=arrays)


def _entries(folder: Path) -> dict[str, dict[str, Any]]:
    """Size in bytes and SHA-256 of every file below a folder, by relative path.

    Hashing releases the GIL, so files are hashed in parallel.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _MANIFEST)
    with ThreadPoolExecutor() as threads:
        return {
            str(path.relative_to(folder)): entry for path, entry in zip(files, threads.map(_entry, files), strict=True)
        }


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": file_digest(file, "sha256").hexdigest()}


def _verify(folder: Path) -> None:
    """Raise a ValueError with the name of a file that is missing or has changed."""
    expected = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    present = _entries(folder)
    for name, entry in expected.items():
        if name not in present:
            raise ValueError(f"{name} is missing")
        if present[name] != entry:
            raise ValueError(f"{name} isn't what was written: {present[name]}, not {entry}")


def _to_disk(path: Path) -> None:
    """Return once the current content of a file or folder would survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Settings for where, how fast and how long a run runs, and what is kept of it. All others decide what is learned or
# measured: if they changed, no single set of settings would explain the run's curve, costs and weights. A new setting
# may not change until it is named here.
MAY_CHANGE = frozenset(
    {
        "name",
        "runs_dir",
        "num_steps",
        "token_budget",
        "max_staleness",  # together with cluster.placement: shared GPUs need 0
        "max_unscored_fraction",
        *(
            f"engine.{name}"
            for name in (
                "type",
                "path",
                "num_generators",
                "cpus_per_generator",
                "gpus_per_generator",
                "tensor_parallel_size",
                "max_num_seqs",
                "gpu_memory_utilization",
                "sleep",
                "kv_cache_gib",
                "enforce_eager",
                "in_flight",
            )
        ),
        *(
            f"rewards.{name}"
            for name in ("num_actors", "cpus_per_actor", "timeout_s", "memory_mb", "allow_network", "pass_env")
        ),
        *(
            f"learner.{name}"
            for name in (
                "lora.sync",
                "num_workers",
                "cpus_per_worker",
                "gpus_per_worker",
                "micro_batch_tokens",
                "packing",
                "attention",
                "logprob_chunk_tokens",
                "activation_checkpointing",
                "cpu_offload",
                "compile",
                "max_skipped_updates",
            )
        ),
        "weight_sync",
        "evaluation.every_steps",
        "evaluation.at_steps",
        "evaluation.base_prompts",
        "evaluation.num_generators",
        "checkpoint",
        "deadlines",
        "faults",
        "cluster",
        "reporting",
    }
)

_SHOWN_CHARACTERS = 80  # of a value in a message


def changed_settings(before: RunConfig, now: RunConfig) -> dict[str, tuple[str, str]]:
    """Settings that changed although they may not: dotted name -> (old value, new value), as text.

    For a table whose `type` changed, only the `type` is named.
    """
    return {
        name: (_shown(old), _shown(new))
        for name, old, new in _differences(before.model_dump(mode="json"), now.model_dump(mode="json"))
    }


def _differences(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    if name in MAY_CHANGE or before == now:
        return
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        yield name, before, now
    elif "type" in before and "type" in now and before["type"] != now["type"] and f"{name}.type" not in MAY_CHANGE:
        yield f"{name}.type", before["type"], now["type"]
    elif before.keys() != now.keys():  # free keywords, e.g. of a custom algorithm
        yield name, before, now
    else:
        for key in now:
            yield from _differences(before[key], now[key], f"{name}.{key}".lstrip("."))


def _shown(value: Any) -> str:
    text = "none" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
