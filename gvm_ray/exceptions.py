"""All errors of the package. They are picklable, because they cross actor boundaries.

An error that the user can mend derives from :class:`UserError` (a ``ValueError``); the command line prints its message
without a traceback. A failure of the running system derives from :class:`SystemFailure`.
"""

import difflib
import os
import re
import shutil
import tempfile
from pathlib import Path


def free_space(folder: str | Path) -> str:
    """Free disk space at the folder's place, which may not exist yet; for messages."""
    try:
        return f"{shutil.disk_usage(existing_place(folder)).free / 2**20:,.1f} MiB"
    except OSError:
        return "unknown MiB"


def existing_place(folder: str | Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    whole = Path(folder).absolute()
    return next((place for place in (whole, *whole.parents) if os.path.isdir(place)), Path("/"))


def obstacle_to_writing(folder: str | Path) -> str:
    """The reason why the folder can't be written, for messages; empty if it can. Creates a missing folder."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return str(error)


def likely_paths(path: str | Path) -> str:
    """A hint for a path that doesn't exist: entries beside it with similar names; may be empty."""
    wanted = Path(os.path.abspath(path))
    try:
        names = sorted(os.listdir(wanted.parent))
    except OSError:
        return ""
    near = difflib.get_close_matches(wanted.name, names, n=3, cutoff=0.75)
    near = near or [name for name in names if name.lower().startswith(wanted.name.lower())][:3]
    return f"; did you mean {' or '.join(repr(str(Path(path).parent / name)) for name in near)}?" if near else ""


def may_be_hub_id(path: str) -> bool:
    """True if the path could be a hub id, `name` or `owner/name`; `./name`, for example, can only be a folder."""
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path) is not None


class UserError(ValueError):
    """The user's request can't be fulfilled; the message says what is wrong, the value, and what to write instead."""


class ConfigError(UserError):
    """A setting is unknown, out of range, or contradicts another."""


class DataError(UserError):
    """A data file is missing, empty, or has a bad row (file, line and field are named)."""


class ModelError(UserError):
    """The model or its tokenizer is missing or doesn't fit the run."""


class ResourceError(UserError):
    """The run needs more CPUs, GPUs, memory or disk space than the machine or the cluster has."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or belongs to another configuration."""


class SystemFailure(RuntimeError):
    """A part of the running system failed; the message names the part and the cause."""


class TrainingDiverged(SystemFailure):
    """Too many consecutive gradients weren't finite; the message says how many, at which step, and what to change."""


class StorageFailure(SystemFailure):
    """A disk is full or can't be written; the message names the folder and its free space."""

    @classmethod
    def at(cls, folder: str | Path, error: BaseException) -> "StorageFailure":
        """The failure for an `error` raised while writing into the folder."""
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        return cls(
            f"{str(folder)!r} can't be written ({reason}); {free_space(folder)} are free there. Make room, or check "
            "its permissions; --resume continues from the last checkpoint that was completed"
        )


class DeadlineExceeded(SystemFailure):
    """A wait ran out of time; the message names what was waited for and the setting that gives it more time."""


class ActorFailure(SystemFailure):
    """A generator, reward actor, allocator or learner failed; the message names it and the cause."""


class ActorDied(ActorFailure):
    """An actor's process or node is gone. The request itself may be fine: another actor can serve it."""

    actor_id = ""  # of the dead actor, in hexadecimal, if known


class ObjectsLost(ActorFailure):
    """Data in the object store was lost with the process or node that held it."""


class TransferBroken(ActorFailure):
    """New weights stopped coming halfway. The generator may hold parts of two policies and must restart."""


class TooManyFailures(SystemFailure):
    """Parts of the run failed more often than `faults` allows; the message counts them."""


class RunStopped(Exception):
    """A signal ended the run before its last step; `--resume` continues from what was saved."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal

    @property
    def exit_code(self) -> int:
        """The code with which a shell reports a process ended by this signal."""
        return 128 + self.signal

    def __str__(self) -> str:
        return f"stopped by signal {self.signal}; continue with --resume"
