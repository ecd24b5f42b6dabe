"""Every error of the package, in one file; all are picklable because they cross actor boundaries.

What a user can mend derives from :class:`UserError` (a ``ValueError``); the command line prints its message without a
traceback. What the machinery can meet at run time derives from :class:`SystemFailure`.
"""

import shutil
from pathlib import Path


def free_space(folder: str | Path) -> str:
    """For messages: what is free where the folder is, or would be."""
    for place in (Path(folder).absolute(), *Path(folder).absolute().parents):
        try:
            return f"{shutil.disk_usage(place).free / 2**20:,.1f} MiB"
        except OSError:
            continue
    return "unknown MiB"


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
