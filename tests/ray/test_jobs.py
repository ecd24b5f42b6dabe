"""Runs as Ray jobs on a cluster of their own, with the token authentication that Ray turns on."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from job_server import Head, job_server
from tiny_runs import TINY_TOML

from gvm_ray.reporting import RunFolder, read_rows

pytestmark = pytest.mark.ray

EXAMPLES = Path(__file__).parents[2] / "examples"
BONUS = """
import os

def bonus(prompt, completion):
    return float(os.environ["BONUS"])
"""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with job_server() as head:
        yield head


def working_dir(folder: Path) -> Path:
    """What a user would submit: a config, and parts of their own."""
    folder.mkdir()
    (folder / "tiny.toml").write_text(TINY_TOML)
    for path in EXAMPLES.glob("custom_*.py"):
        shutil.copy(path, folder)
    (folder / "bonus.py").write_text(BONUS)
    return folder


def test_a_job_trains_with_the_code_and_the_variables_of_its_runtime_env(head: Head, tmp_path: Path) -> None:
    overrides = {
        "runs_dir": str(tmp_path / "runs"),  # absolute: the job's own folder goes with the job
        "num_steps": "2",
        "engine.type": "custom",
        "engine.path": "custom_engine:ReportingEngine",
        "algorithm.type": "custom",
        "algorithm.path": "custom_algorithm:MeanNormalised",
        "allocator.type": "custom",
        "allocator.path": "custom_allocator:FewerForSolved",
        "rewards.terms": '[{type="exact"}, {type="function", path="bonus:bonus"}]',
    }
    settings = [argument for name, value in overrides.items() for argument in ("--set", f"{name}={value}")]
    submitted = working_dir(tmp_path / "submitted")
    command = ("gvm-ray", "train", "tiny.toml", *settings)
    result = head.submit(*command, working_dir=submitted, env_vars={"BONUS": "0.125"})
    assert result.returncode == 0, result.stdout + result.stderr
    assert "held-out accuracy" in result.stdout
    folder = RunFolder(tmp_path / "runs" / "tiny")
    rows = read_rows(folder.metrics)
    assert [row["allocation/total"] for row in rows] == [48, 48]
    assert [row["reward/mean"] - row["reward/accept_rate"] for row in rows] == pytest.approx([0.125] * 2)
    assert json.loads(folder.summary.read_text())["cost/optimizer_updates"] == 2
    assert (folder.model / "model.safetensors").is_file()


def test_a_job_with_a_wrong_setting_fails_and_says_why(head: Head, tmp_path: Path) -> None:
    submitted = working_dir(tmp_path / "submitted")
    command = ("gvm-ray", "train", "tiny.toml", "--set", "num_step=2")
    result = head.submit(*command, working_dir=submitted, options=("--submission-id", "wrong"))
    assert result.returncode == 1
    assert "exit code 2" in result.stdout + result.stderr
    message = "num_step: unknown setting; did you mean 'num_steps'?"
    assert message in result.stdout + result.stderr
    logs = head.job("logs", "wrong")
    assert message in logs.stdout + logs.stderr
    status = head.job("status", "wrong")
    assert "failed" in status.stdout + status.stderr
