"""Limits of a reward process. The process sets each limit on itself, before it sees model text.

There is no limit on time or processes: the parent's clock limits each response, while RLIMIT_CPU counts over the whole
life of a process, which is that of the run; and RLIMIT_NPROC counts all processes of the user, including Ray's.
"""

import contextlib
import ctypes
import os
import re
import resource
import signal
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

MAX_FILE_BYTES = 64 * 2**20
MAX_OPEN_FILES = 256

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000  # <linux/sched.h>; os.unshare came with Python 3.12
_SECRET = re.compile(r"(^|_)((API)?KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)S?(_|$)|^AWS_", re.IGNORECASE)


def without_secrets(environment: Mapping[str, str], *, keep: Collection[str] = ()) -> dict[str, str]:
    """The variables whose names don't look like secrets (HF_TOKEN, *_API_KEY, AWS_* ...), and those in `keep`."""
    return {name: value for name, value in environment.items() if name in keep or not _SECRET.search(name)}


def close_network() -> None:
    """Move this process into a user and a network namespace of its own if the system allows it; else do nothing.

    No address can be reached from there, not even this machine's own. The process keeps its user id, but has no rights
    outside: as root it reads only files that root owns or everyone may read, and no other process's memory or
    environment. The process must have only one thread.
    """
    user, group = os.getuid(), os.getgid()
    if ctypes.CDLL(None).unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return
    with contextlib.suppress(OSError):  # without the maps the ids only look like those of "nobody"
        Path("/proc/self/setgroups").write_text("deny", encoding="utf-8")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="utf-8")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="utf-8")


def limit_resources(*, memory_mb: int, parent: int) -> None:
    """Make the process die with its parent and leave no core files; limit its address space and open files."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before the call above
        sys.exit(1)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_AS, memory_mb * 2**20)
    _lower(resource.RLIMIT_NOFILE, MAX_OPEN_FILES)


def limit_writing() -> None:
    """Limit the size of every file that the process writes, and discard its output."""
    _lower(resource.RLIMIT_FSIZE, MAX_FILE_BYTES)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _lower(limit: int, value: int) -> None:
    _, hard = resource.getrlimit(limit)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))
