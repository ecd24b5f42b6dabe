"""Every error of the package, in one file; all are picklable because they cross actor boundaries.

What a user can mend derives from :class:`UserError` (a ``ValueError``); the command line prints its message without a
traceback. What the machinery can meet at run time derives from :class:`SystemFailure`.
"""

import difflib
import os
import re
import shutil
import tempfile
from pathlib import Path


def free_space(folder: str | Path) -> str:
    """For messages: what is free where the folder is, or would be."""
    for place in (Path(folder).absolute(), *Path(folder).absolute().parents):
        try:
            return f"{shutil.disk_usage(place).free / 2**20:,.1f} MiB"
        except OSError:
            continue
    return "unknown MiB"


def obstacle_to_writing(folder: str | Path) -> str:
    """For messages: why nothing can be written there, where the folder is made if it is missing; empty if it can."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return str(error)


def likely_paths(path: str | Path) -> str:
    """For messages on a path where nothing is: what has a like name beside it; may be empty."""
    wanted = Path(os.path.abspath(path))
    try:
        names = sorted(os.listdir(wanted.parent))
    except OSError:
        return ""
    near = difflib.get_close_matches(wanted.name, names, n=3, cutoff=0.75)
    near = near or [name for name in names if name.lower().startswith(wanted.name.lower())][:3]
    return f"; did you mean {' or '.join(repr(str(Path(path).parent / name)) for name in near)}?" if near else ""


def may_be_hub_id(path: str) -> bool:
    """Whether a hub could have it: `name` or `owner/name`, as a path that is certainly one of a folder is not."""
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path) is not None


class UserError(ValueError):
    """Something the user asked for can't be done; the message says what, the value, and what to write instead."""


class ConfigError(UserError):
    """A setting is unknown, out of range, or contradicts another."""


class DataError(UserError):
    """A data file is missing, empty, or has a bad row (file, line and field are named)."""


class ModelError(UserError):
    """The model or its tokenizer is missing or doesn't fit the run."""


class ResourceError(UserError):
    """The run needs more CPUs, GPUs, memory or disk than the machine or the cluster has."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or belongs to another configuration."""


class SystemFailure(RuntimeError):
    """A part of the running system failed; the message names the part and the cause."""


class TrainingDiverged(SystemFailure):
    """Gradient after gradient isn't finite; the message says how many, at which step, and what to change."""


class StorageFailure(SystemFailure):
    """A disk is full or can't be written; the message names the folder and its free space."""

    @classmethod
    def at(cls, folder: str | Path, error: BaseException) -> "StorageFailure":
        """The failure that `error` met while writing into the folder."""
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        return cls(
            f"{str(folder)!r} can't be written ({reason}); {free_space(folder)} are free there. Make room, or check "
            "its permissions; --resume continues from the last checkpoint that was completed"
        )


class DeadlineExceeded(SystemFailure):
    """A wait ran out of time; the message says what was waited for and which setting gives it longer."""


class ActorFailure(SystemFailure):
    """A generator, reward actor, allocator or learner failed; the message names it and the cause."""


class ActorDied(ActorFailure):
    """Its process or its node is gone, which says nothing against what it was asked: another one can do it."""

    actor_id = ""  # which one it was, in hexadecimal, where that is known


class ObjectsLost(ActorFailure):
    """Data in the object store is gone with the process or node that held it."""


class TransferBroken(ActorFailure):
    """New weights stopped coming halfway, and the generator may hold parts of two policies: it must start anew."""


class TooManyFailures(SystemFailure):
    """Parts of the run failed more often than `faults` allows; the message counts them."""


class RunStopped(Exception):
    """A signal ended the run before its last step; what was saved is gone on with by `--resume`."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal

    @property
    def exit_code(self) -> int:
        """As a shell reports a process that a signal ended."""
        return 128 + self.signal

    def __str__(self) -> str:
        return f"stopped by signal {self.signal}; continue with --resume"
