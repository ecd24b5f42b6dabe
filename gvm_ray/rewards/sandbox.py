"""Scoring in a child process that can be killed: model text can make a reward hang, exhaust memory or crash.

The bound on time is the parent's clock and SIGKILL, never SIGALRM: an alarm works in the main thread only and doesn't
interrupt a long C call. One child scores a stream of responses and lives on between calls, so a response costs a few
bytes on a socket, and no process. The child is a fresh interpreter rather than a fork: it inherits no threads or locks,
imports neither Ray nor torch, and doesn't care which script the parent runs. Some scorers evaluate model text, so the
child isn't trusted: what it may do is in `sandbox_child`, what is believed of its words in `sandbox_messages`.
"""

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from gvm_ray.exceptions import ConfigError, SystemFailure
from gvm_ray.rewards.sandbox_child import without_secrets
from gvm_ray.rewards.sandbox_messages import (
    MAX_PACKET_BYTES,
    Observed,
    Result,
    Scored,
    Unscored,
    decode_result,
    decode_started,
)
from gvm_ray.types import Completion, Prompt

__all__ = ["Observed", "Result", "Sandbox", "Scored", "Unscored"]

_BATCH_SIZE = 64  # most responses sent at once
_BATCH_BYTES = 2**20  # most bytes of their pickles, which the child holds at once; a single response may exceed it
_START_S = 300.0  # for starting the child and calling `make_env`
_CONNECTION_LOST = (EOFError, ConnectionError)


class Sandbox:
    """Scores responses with `make_env()` in a child process, with limits on memory and on each response's wall clock.

    `make_env` is a picklable callable without arguments that returns a gymnasium environment for one response at a
    time: `reset(options={"prompt": prompt})`, then `step(completion)`. A reward of NaN, `info["unscored"]` or an
    exception leaves the response unscored; `info["reward_terms"]` is passed on. If the episode isn't over, the result
    is the observation.

    The kernel kills the child when the thread that called `start` or `score` ends, so use a sandbox from one
    long-lived thread.
    """

    def __init__(
        self,
        make_env: Callable[[], Any],
        *,
        timeout_s: float,
        memory_mb: int,
        allow_network: bool = False,
        pass_env: Sequence[str] = (),
    ) -> None:
        """Create a sandbox without starting its child.

        Args:
            make_env: Called in the child.
            timeout_s: Wall clock for one response.
            memory_mb: Address space of the child, MiB.
            allow_network: True lets the child open connections; if the system can't forbid them, it always can.
            pass_env: Environment variables that the child gets although their names look like secrets.
        """
        self._make_env = pickle.dumps(make_env)
        self._timeout_s = timeout_s
        self._memory_mb = memory_mb
        self._allow_network = allow_network
        self._pass_env = tuple(pass_env)
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None  # a stream of pickles
        self._results: socket.socket | None = None  # packets: one read gets a whole packet

    @property
    def pid(self) -> int | None:
        """Process id of the child; None if there is no child."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the child unless it is running, and wait until it has made its environment.

        Raises:
            ConfigError: making the environment raised a UserError (e.g. a reward function can't be imported).
            SystemFailure: the child died, ran out of time, or raised something else.
        """
        if self._process is not None:
            return
        self._spawn()
        more_memory = f"if memory is short, give it more with --set rewards.memory_mb={2 * self._memory_mb}"
        try:
            self._send(self._make_env, timeout_s=_START_S)
            started = decode_started(self._receive(timeout_s=_START_S))
        except _CONNECTION_LOST:
            raise SystemFailure(f"the reward process died while it started ({self._kill()}); {more_memory}") from None
        except TimeoutError:
            self._kill()
            raise SystemFailure(f"the reward process didn't start within {_START_S:g} s") from None
        except ValueError:
            self._kill()
            raise SystemFailure("the reward process sent an invalid report of its start") from None
        if started.failure:
            self._kill()
        if started.failure == "user":
            raise ConfigError(started.detail)
        if started.failure == "system":
            raise SystemFailure(f"the reward process couldn't start; {more_memory}. Its error: {started.detail}")

    def score(self, items: Sequence[tuple[Prompt, Completion]]) -> list[Result]:
        """Score each (prompt, completion); return the results in order.

        Raises:
            ConfigError, SystemFailure: as `start`, which is called before the first response and after every kill.
        """
        results: list[Result] = []
        while len(results) < len(items):
            self.start()
            results += self._score_batch(_batch(items[len(results) : len(results) + _BATCH_SIZE]))
        return results

    def close(self) -> None:
        """Kill the child; `score` would start another."""
        self._kill()

    def _score_batch(self, batch: Sequence[bytes]) -> list[Result]:
        """Results of the batch in order; fewer than its length if the child had to be killed at the last of them."""
        results: list[Result] = []
        try:
            self._send(pickle.dumps(batch), timeout_s=self._timeout_s)
            for _ in batch:
                result = decode_result(self._receive(timeout_s=self._timeout_s))
                results.append(result)
                if isinstance(result, Unscored) and result.reason == "memory":
                    self._kill()  # running out of memory may have left libraries half-initialised
                    break
        except TimeoutError:
            self._kill()
            results.append(Unscored(reason="timeout", detail=f"took longer than {self._timeout_s:g} s"))
        except _CONNECTION_LOST:
            results.append(Unscored(reason="crash", detail=f"the reward process died ({self._kill()})"))
        except ValueError:
            self._kill()
            results.append(Unscored(reason="crash", detail="the reward process sent an invalid result"))
        return results

    def _send(self, request: bytes, *, timeout_s: float) -> None:
        assert self._requests is not None
        self._requests.settimeout(timeout_s)
        self._requests.sendall(request)

    def _receive(self, *, timeout_s: float) -> bytes:
        """Receive one packet.

        Raises:
            TimeoutError: no packet arrived in time.
            EOFError, ConnectionError: the child died.
        """
        assert self._results is not None
        self._results.settimeout(timeout_s)
        packet = self._results.recv(MAX_PACKET_BYTES)
        if not packet:
            raise EOFError
        return packet

    def _spawn(self) -> None:
        self._requests, requests = socket.socketpair()
        self._results, results = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with requests, results:
            descriptors = [requests.fileno(), results.fileno()]
            numbers = (*descriptors, self._memory_mb, os.getpid(), int(self._allow_network))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gvm_ray.rewards.sandbox_child", *map(str, numbers)],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                env=without_secrets(os.environ, keep=self._pass_env)
                | {
                    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                    "OMP_NUM_THREADS": "1",  # a thread's stack counts as address space
                    "OPENBLAS_NUM_THREADS": "1",  # and a process with threads can't leave its network namespace
                },
                start_new_session=True,  # a process group of its own, so that all processes of the reward are killed
            )

    def _kill(self) -> str:
        """Kill the child and all processes that it started; return how it ended, in words."""
        if self._process is None:
            return "not running"
        for connection in (self._requests, self._results):
            if connection is not None:
                connection.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        self._process, self._requests, self._results = None, None, None
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _batch(items: Sequence[tuple[Prompt, Completion]]) -> list[bytes]:
    """Pickles of the first items: at least one, and as many more as fit."""
    batch = [pickle.dumps(items[0])]
    num_bytes = len(batch[0])
    for item in items[1:]:
        request = pickle.dumps(item)
        num_bytes += len(request)
        if num_bytes > _BATCH_BYTES:
            break
        batch.append(request)
    return batch
