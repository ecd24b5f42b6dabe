"""Runs as Ray jobs on a cluster of their own, with the token authentication that Ray turns on."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny_runs import TINY_TOML

from gvm_ray.reporting import RunFolder, read_rows

pytestmark = pytest.mark.ray

BIN = Path(sys.executable).parent  # where the entry point of a job, and `ray` itself, are found
EXAMPLES = Path(__file__).parents[2] / "examples"
START_S = 300


@dataclass(frozen=True)
class Head:
    """A head node with a dashboard, through which jobs are submitted."""

    dashboard: str
    environment: dict[str, str]

    def submit(self, *entrypoint: str, working_dir: Path) -> subprocess.CompletedProcess[str]:
        """Run a job to its end; the logs come out with it."""
        command = [BIN / "ray", "job", "submit", "--address", self.dashboard, "--working-dir", working_dir, "--"]
        return subprocess.run(
            [*command, *entrypoint], env=self.environment, capture_output=True, text=True, check=False
        )


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
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


def working_dir(folder: Path) -> Path:
    """What a user would submit: a config, and parts of their own."""
    folder.mkdir()
    (folder / "tiny.toml").write_text(TINY_TOML)
    for path in EXAMPLES.glob("custom_*.py"):
        shutil.copy(path, folder)
    return folder


def test_a_job_trains_with_the_code_of_its_working_dir(head: Head, tmp_path: Path) -> None:
    overrides = {
        "runs_dir": str(tmp_path / "runs"),  # absolute: the job's own folder goes with the job
        "num_steps": "2",
        "engine.type": "custom",
        "engine.path": "custom_engine:ReportingEngine",
        "algorithm.type": "custom",
        "algorithm.path": "custom_algorithm:MeanNormalised",
        "allocator.type": "custom",
        "allocator.path": "custom_allocator:FewerForSolved",
        "rewards.terms": '[{type="exact"}, {type="function", path="custom_reward:brevity", weight=0.1}]',
    }
    settings = [argument for name, value in overrides.items() for argument in ("--set", f"{name}={value}")]
    result = head.submit("gvm-ray", "train", "tiny.toml", *settings, working_dir=working_dir(tmp_path / "submitted"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "held-out accuracy" in result.stdout
    folder = RunFolder(tmp_path / "runs" / "tiny")
    rows = read_rows(folder.metrics)
    assert [row["allocation/total"] for row in rows] == [48, 48]
    assert all((row["reward/mean"] - row["reward/accept_rate"]) > 0.01 for row in rows)  # the bonus for short answers
    assert json.loads(folder.summary.read_text())["cost/optimizer_updates"] == 2
    assert (folder.model / "model.safetensors").is_file()


def test_a_job_with_a_wrong_setting_fails_and_says_why(head: Head, tmp_path: Path) -> None:
    submitted = working_dir(tmp_path / "submitted")
    result = head.submit("gvm-ray", "train", "tiny.toml", "--set", "num_step=2", working_dir=submitted)
    assert result.returncode == 1
    assert "exit code 2" in result.stdout + result.stderr
    assert "num_step: unknown setting; did you mean 'num_steps'?" in result.stdout + result.stderr
