"""`ray job stop`: the run ends after the step under way with a checkpoint, and another job goes on with it."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from job_server import Head, job_server
from tiny_runs import TINY_TOML

from gvm_ray.reporting import RunFolder, read_rows

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.slow]

WAIT_S = 300


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with job_server() as head:
        yield head


def wait_for_steps(folder: RunFolder, number: int) -> None:
    end = time.monotonic() + WAIT_S
    while not folder.metrics.exists() or len(read_rows(folder.metrics)) < number:
        assert time.monotonic() < end, f"there were not {number} steps within {WAIT_S} s"
        time.sleep(0.2)


def test_a_stopped_job_leaves_a_checkpoint_that_another_goes_on_with(head: Head, tmp_path: Path) -> None:
    submitted, folder = tmp_path / "submitted", RunFolder(tmp_path / "runs" / "tiny")
    submitted.mkdir()
    (submitted / "tiny.toml").write_text(TINY_TOML)
    command = ("gvm-ray", "train", "tiny.toml", "--set", f"runs_dir={tmp_path / 'runs'}")
    long = ("--set", "num_steps=100000", "--set", "checkpoint.every_steps=100000")
    head.submit(
        *command,
        *long,
        working_dir=submitted,
        env_vars={"RAY_JOB_STOP_WAIT_TIME_S": str(WAIT_S)},  # Ray's 3 s are too short for a step and its checkpoint
        options=("--no-wait", "--submission-id", "first"),
    )
    wait_for_steps(folder, 2)
    stopped = head.job("stop", "first")
    assert "was stopped" in stopped.stdout + stopped.stderr
    logs = head.job("logs", "first")
    assert "stopped by signal 15; continue with --resume" in logs.stdout + logs.stderr
    steps = len(read_rows(folder.metrics))
    assert [path.name for path in folder.checkpoints.iterdir()] == [f"step_{steps:06d}"]

    resumed = head.submit(*command, "--set", f"num_steps={steps + 1}", "--resume", working_dir=submitted)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert [row["step"] for row in read_rows(folder.metrics)] == list(range(steps + 1))
