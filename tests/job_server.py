"""A Ray cluster of its own to submit jobs to, with the token authentication that Ray turns on."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent  # where the entry point of a job, and `ray` itself, are found
START_S = 240


@dataclass(frozen=True)
class Head:
    """A head node with a dashboard, through which jobs are submitted."""

    dashboard: str
    environment: dict[str, str]

    def job(self, command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """`ray job COMMAND` as a user's shell runs it, with the cluster's address."""
        return subprocess.run(
            [BIN / "ray", "job", command, "--address", self.dashboard, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def submit(
        self,
        *entrypoint: str,
        working_dir: Path,
        env_vars: Mapping[str, str] | None = None,
        options: tuple[str, ...] = (),
    ) -> subprocess.CompletedProcess[str]:
        """Run a job to its end, or with --no-wait start it; what it printed comes out with it."""
        runtime_env = {"working_dir": str(working_dir), "env_vars": dict(env_vars or {})}
        return self.job("submit", "--runtime-env-json", json.dumps(runtime_env), *options, "--", *entrypoint)


@contextmanager
def job_server() -> Iterator[Head]:
    """Its processes end with the block. On a busy machine Ray may fail to start once, as it gives itself 30 s."""
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": uuid.uuid4().hex,
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    with ExitStack() as started:
        for last in (False, True):
            with ExitStack() as starting:
                dashboard, error = starting.enter_context(head_node(environment))
                if error is None:
                    started.push(starting.pop_all())
                    break
            assert not last, error
        yield Head(f"http://127.0.0.1:{dashboard}", environment)


@contextmanager
def head_node(environment: dict[str, str]) -> Iterator[tuple[int, str | None]]:
    """A head node, given by its dashboard's port and what kept it from starting, if anything."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: the paths of sockets may have 107 characters
    log = Path(folder) / "head.log"
    port, dashboard, agent, client = free_ports(4)
    command = [BIN / "ray", "start", "--head", "--block", f"--temp-dir={folder}", "--num-cpus=4"]
    command += [f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    command += [f"--ray-client-server-port={client}", "--object-store-memory=100000000", "--disable-usage-stats"]
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield dashboard, start_error(process, log, dashboard=dashboard)
    finally:
        process.terminate()  # it takes the node's other processes with it
        process.wait(timeout=START_S)
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start_error(process: subprocess.Popen[bytes], log: Path, *, dashboard: int) -> str | None:
    """Why the head node doesn't run; none once it does and its dashboard answers."""
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            return f"the head node ended:\n{log.read_text()}"
        if "Ray runtime started" in log.read_text():
            with socket.socket() as trial:
                if trial.connect_ex(("127.0.0.1", dashboard)) == 0:
                    return None
        time.sleep(0.2)
    return f"the head node or its dashboard did not start within {START_S} s:\n{log.read_text()}"
