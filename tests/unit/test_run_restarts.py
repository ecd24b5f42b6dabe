"""What a run does about failures that its parts can't mend: from the last checkpoint again, within bounds."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import tiny_config

import gvm_ray.run
from gvm_ray.background import drain
from gvm_ray.checkpoints import CheckpointFolder
from gvm_ray.exceptions import ActorDied, ConfigError, DeadlineExceeded, ObjectsLost, RunStopped, TooManyFailures
from gvm_ray.prepare import BaseModel, Prepared
from gvm_ray.reporting import RunFolder
from gvm_ray.run import Job, steps


class Attempts:
    """Takes the place of a run: the errors of its attempts, and then its end."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.restored: list[Any] = []

    async def __call__(self, job: Job) -> AsyncGenerator[None]:
        self.restored.append(job.restored)
        yield None
        if self.errors:
            raise self.errors.pop(0)
        job.summary = {"num_steps": 3}


def run(attempts: Attempts, runs_dir: Path, monkeypatch: pytest.MonkeyPatch, **faults: Any) -> dict[str, Any]:
    async def free(**_: Any) -> None: ...

    # Private, for the subject is how often it is called: a public call would need a cluster, a model and prompts.
    monkeypatch.setattr(gvm_ray.run, "_attempt", attempts)
    monkeypatch.setattr(gvm_ray.run, "names_are_free", free)
    monkeypatch.setattr(gvm_ray.run, "find_base_model", lambda *args, **kwargs: BaseModel(path="again"))
    monkeypatch.setattr(CheckpointFolder, "latest", lambda self: "the last")
    config = tiny_config(runs_dir, faults=faults)
    prepared = Prepared(
        base=BaseModel(path="first"), prompts=Any, tokenizer=None, engine_kind="transformers", max_model_len=9
    )
    folder = RunFolder(runs_dir)
    job = Job(config, folder=folder, checkpoints=CheckpointFolder(folder=folder.checkpoints, config=config))
    job.prepared = prepared

    async def to_the_end() -> dict[str, Any]:
        with job.stop.listening():
            await drain(steps(job))
        assert job.summary is not None
        return job.summary

    return asyncio.run(to_the_end())


@pytest.mark.parametrize("error", [ActorDied("gone"), ObjectsLost("gone"), DeadlineExceeded("too long")])
def test_a_dead_or_hung_part_is_no_end(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = Attempts(ExceptionGroup("tasks", [ExceptionGroup("more", [error])]), error)
    assert run(attempts, tmp_path, monkeypatch) == {"num_steps": 3}
    assert attempts.restored == [None, "the last", "the last"]


def test_a_failure_that_comes_back_every_time_is_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = Attempts(*[ActorDied("the node is gone")] * 9)
    with pytest.raises(TooManyFailures, match=r"2 failures .*faults.max_failures=1: the run 2 times; .*node is gone"):
        run(attempts, tmp_path, monkeypatch, max_failures=1)


def test_an_error_that_would_come_again_is_raised_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = Attempts(ConfigError("wrong"))
    with pytest.raises(ConfigError, match="wrong"):
        run(attempts, tmp_path, monkeypatch)
    assert len(attempts.restored) == 1


def test_a_signal_before_the_steps_ends_the_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Launching(Attempts):
        async def __call__(self, job: Job) -> AsyncGenerator[None]:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(60)
            raise AssertionError("it was not cancelled")
            yield

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunStopped, match="stopped by signal 15") as stopped:
        run(Launching(), tmp_path, monkeypatch)
    assert stopped.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == handler


def test_the_second_signal_does_not_wait_for_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class InSteps(Attempts):
        async def __call__(self, job: Job) -> AsyncGenerator[None]:
            stop = job.stop
            with stop.steps():
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(0.1)  # the first is only noted
                assert stop.is_set
                self.restored.append("waited")
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(60)
            raise AssertionError("it was not cancelled")
            yield

    attempts = InSteps()
    with pytest.raises(RunStopped) as stopped:
        run(attempts, tmp_path, monkeypatch)
    assert stopped.value.exit_code == 130
    assert attempts.restored == ["waited"]
