"""The sandbox's child process. Its five arguments are two descriptors, MEMORY_MB, PARENT and NETWORK, all numbers.

It reads pickles from one socket: first the function that makes the environment, then batches of (prompt, completion),
each of these pickled separately. On the other socket it answers every response with one packet, so that the parent can
see at which response it hangs.

Each limit on what it may use and reach is set by the process on itself, before it sees model text. Time isn't among
them: the parent's clock bounds it for each response. RLIMIT_CPU counts over a process's whole life, which lasts as long
as the run; RLIMIT_NPROC counts all processes of the user, Ray's among them.
"""

import contextlib
import ctypes
import math
import os
import pickle
import re
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from gvm_ray.exceptions import UserError
from gvm_ray.rewards.sandbox_messages import Observed, Result, Scored, Started, Unscored, encode, printable
from gvm_ray.types import Completion, Prompt

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


def main() -> None:
    """Serve until the parent closes the sockets or dies."""
    requests_fd, results_fd, memory_mb, parent, network = map(int, sys.argv[1:])
    if not network:
        close_network()
    limit_resources(memory_mb=memory_mb, parent=parent)
    for descriptor in (requests_fd, results_fd):
        os.set_inheritable(descriptor, False)  # processes started by a reward would keep them open
    requests = socket.socket(fileno=requests_fd).makefile("rb")
    results = socket.socket(fileno=results_fd)
    env, started = _make_env(requests)
    results.send(encode(started))
    if not started.failure:
        _serve(env, requests, results)


def _make_env(requests: BinaryIO) -> tuple[Any, Started]:
    """The environment, or None if that failed, and the report to the parent."""
    try:
        env = pickle.load(requests)()
    except EOFError:  # the parent is gone
        sys.exit(1)
    except UserError as error:
        return None, Started(failure="user", detail=printable(str(error)))
    except Exception as error:  # a user's module may raise anything; the parent reports it
        detail = f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-10)}"
        return None, Started(failure="system", detail=printable(detail))
    limit_writing()  # not earlier: a library may fill its cache while it is imported
    return env, Started()


def _serve(env: Any, requests: BinaryIO, results: socket.socket) -> None:
    process = os.getpid()
    while True:
        try:
            batch = pickle.load(requests)
        except (EOFError, ConnectionError):
            return
        for request in batch:
            result = _score(env, *pickle.loads(request))
            if os.getpid() != process:  # a fork made by the reward returned here; only its parent answers
                os._exit(0)
            results.send(encode(result))


def _score(env: Any, prompt: Prompt, completion: Completion) -> Result:
    try:
        env.reset(options={"prompt": prompt})
        observation, reward, terminated, truncated, info = env.step(completion)
        if not (terminated or truncated):
            return Observed(observation=observation.encode(errors="replace").decode())
        reward = float(reward)
        terms = {printable(str(name)): float(value) for name, value in info.get("reward_terms", {}).items()}
        unscored = info.get("unscored")
    except MemoryError:
        return Unscored(reason="memory", detail=_of(prompt))
    except (Exception, SystemExit) as error:  # a faulty reward costs one sample, not the run
        return Unscored(reason="error", detail=_of(prompt, "".join(traceback.format_exception(error, limit=-5))))
    if unscored:
        return Unscored(reason="error", detail=_of(prompt, unscored if isinstance(unscored, str) else "no reward"))
    if not all(math.isfinite(value) for value in (reward, *terms.values())):
        return Unscored(reason="error", detail=_of(prompt, f"reward {reward} of terms {terms}"))
    return Scored(reward=reward, terms=terms)


def _of(prompt: Prompt, detail: str = "") -> str:
    return printable(f"prompt {prompt.prompt_id!r}: {detail}")


if __name__ == "__main__":
    main()
