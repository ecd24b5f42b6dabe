"""Runs scoring in a child process that can be killed: model text can make a reward hang, eat memory or crash.

The bound on time is the parent's clock and SIGKILL, never SIGALRM: an alarm works in the main thread only and doesn't
interrupt a long C call. One child scores a stream of responses and lives on between calls, so a response costs a few
bytes on a socket, and no process. The child is a fresh interpreter rather than a fork: it inherits no threads or locks,
imports neither Ray nor torch, and doesn't care which script the parent runs.
"""

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Literal

from gvm_ray.exceptions import SystemFailure, UserError
from gvm_ray.types import Completion, Prompt

UnscoredReason = Literal["timeout", "memory", "crash", "error"]

_BATCH_SIZE = 64  # responses sent at once
_CONNECTION_LOST = (EOFError, ConnectionError)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a response is worth."""

    reward: float
    terms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Unscored:
    """Why a response has no reward."""

    reason: UnscoredReason
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class StartFailure:
    """The child's report that it couldn't make its environment."""

    error: Exception


class Sandbox:
    """Scores responses by `make_env()` in a child process, under a bound on wall clock for each and on memory.

    `make_env` is a picklable callable without arguments that gives a gymnasium environment for one response at a time:
    `reset(options={"prompt": prompt})`, then `step(completion)`. A reward that is NaN, `info["unscored"]` or an
    exception leaves the response unscored; `info["reward_terms"]` is handed on.

    The kernel kills the child when the thread that called `start` or `score` ends: use a sandbox from one lasting
    thread.
    """

    def __init__(
        self, make_env: Callable[[], Any], *, timeout_s: float, memory_mb: int, start_timeout_s: float = 300.0
    ) -> None:
        self._make_env = pickle.dumps(make_env)
        self._timeout_s = timeout_s
        self._memory_mb = memory_mb
        self._start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the child; None while there is none."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the child, unless it runs, and wait until it has made its environment.

        Raises:
            UserError: making the environment raised it (e.g. ConfigError: a reward function can't be imported).
            SystemFailure: the child died, ran out of time, or raised something else.
        """
        if self._process is not None:
            return
        connection = self._spawn()
        try:
            report = connection.recv() if connection.poll(self._start_timeout_s) else None
        except _CONNECTION_LOST:
            raise SystemFailure(
                f"the reward process died while it started ({self._kill()}); if memory is short, give it more with "
                f"--set rewards.memory_mb={2 * self._memory_mb}"
            ) from None
        if report is None:
            self._kill()
            raise SystemFailure(f"the reward process didn't start within {self._start_timeout_s:g} s")
        if isinstance(report, StartFailure):
            self._kill()
            if isinstance(report.error, UserError):
                raise report.error
            raise SystemFailure(
                f"the reward process couldn't start; if memory is short, give it more with "
                f"--set rewards.memory_mb={2 * self._memory_mb}. Its error: {report.error}"
            ) from report.error

    def score(self, items: Sequence[tuple[Prompt, Completion]]) -> list[Scored | Unscored]:
        """One result for each (prompt, completion), in order.

        Raises:
            UserError, SystemFailure: as `start`, which is called before the first response and after every kill.
        """
        results: list[Scored | Unscored] = []
        while len(results) < len(items):
            self.start()
            results += self._score_batch(items[len(results) : len(results) + _BATCH_SIZE])
        return results

    def close(self) -> None:
        """Kill the child; `score` would start another."""
        self._kill()

    def _score_batch(self, items: Sequence[tuple[Prompt, Completion]]) -> list[Scored | Unscored]:
        """Results of the first items; fewer than asked when the child had to be killed on the last of them."""
        connection = self._connection
        assert connection is not None
        results: list[Scored | Unscored] = []
        try:
            connection.send(list(items))
            for _ in items:
                if not connection.poll(self._timeout_s):
                    self._kill()
                    return [*results, Unscored(reason="timeout", detail=f"took longer than {self._timeout_s:g} s")]
                result = connection.recv()
                results.append(result)
                if isinstance(result, Unscored) and result.reason == "memory":
                    self._kill()  # what failed to get memory may have left libraries half-initialised
                    return results
        except _CONNECTION_LOST:
            return [*results, Unscored(reason="crash", detail=f"the reward process died ({self._kill()})")]
        return results

    def _spawn(self) -> Connection:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gvm_ray.rewards.sandbox_child"]
                + [str(number) for number in (theirs.fileno(), self._memory_mb, os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ
                | {
                    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                    "OMP_NUM_THREADS": "1",  # a thread's stack counts as address space
                    "OPENBLAS_NUM_THREADS": "1",
                },
                start_new_session=True,  # a process group of its own: what the reward started is killed with it
            )
        self._connection = Connection(ours.detach())
        with contextlib.suppress(ConnectionError):  # it died already; the next read says so
            self._connection.send(self._make_env)
        return self._connection

    def _kill(self) -> str:
        """Kill the child and all it started; how it ended, in words."""
        if self._process is None:
            return "not running"
        if self._connection is not None:
            self._connection.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        self._process, self._connection = None, None
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
