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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent  # where the entry point of a job, and `ray` itself, are found
START_S = 300


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
    """Its processes end with the block."""
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": uuid.uuid4().hex,
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: the paths of sockets may have 107 characters
    log = Path(folder) / "head.log"
    port, dashboard, agent, client = free_ports(4)
    command = [BIN / "ray", "start", "--head", "--block", f"--temp-dir={folder}", "--num-cpus=4"]
    command += [f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    command += [f"--ray-client-server-port={client}", "--object-store-memory=100000000", "--disable-usage-stats"]
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until_started(process, log)
        yield Head(f"http://127.0.0.1:{dashboard}", environment)
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


def wait_until_started(process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while "Ray runtime started" not in log.read_text():
        assert process.poll() is None, f"the head node ended:\n{log.read_text()}"
        assert time.monotonic() < end, f"the head node did not start within {START_S} s:\n{log.read_text()}"
        time.sleep(0.2)
