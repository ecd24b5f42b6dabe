"""A run step by step: each update waits for its permission, and leaving early ends the run without another one."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from loop_fakes import START, FakeLearners, make_system, run, run_config

import gvm_ray.trainer
from gvm_ray.config import RunConfig
from gvm_ray.exceptions import ConfigError, SystemFailure
from gvm_ray.loop import StepResult
from gvm_ray.loop import train as run_loop
from gvm_ray.reporting import Callback, RunFolder
from gvm_ray.trainer import Trainer


class FakeRun:
    """Takes the place of a run: the loop over fakes."""

    def __init__(self, **learners: Any) -> None:
        self.learners: FakeLearners | None = None
        self.changes = learners
        self.was_stopped = False
        self.config: Any = None
        self.callbacks: Sequence[Callback] = ()
        self.folder = RunFolder(Path("nowhere"))
        self.summary: dict[str, Any] | None = None

    @contextmanager
    def opened(
        self, config: RunConfig, *, resume: bool, overwrite: bool, callbacks: Sequence[Callback]
    ) -> Iterator["FakeRun"]:
        self.config, self.callbacks, self.summary = config, callbacks, None
        yield self

    async def steps(self, job: "FakeRun") -> AsyncGenerator[StepResult | None]:
        system, _, self.learners, _ = make_system(self.config)
        for name, value in self.changes.items():
            setattr(self.learners, name, value)
        try:
            yield None
            async with aclosing(run_loop(system, self.config, start=START)) as results:
                async for result in results:
                    for callback in self.callbacks:
                        callback(result.step, result.metrics)
                    yield result
        except GeneratorExit:
            self.was_stopped = True
            raise
        self.summary = {"num_steps": self.config.num_steps}


def install(monkeypatch: pytest.MonkeyPatch, fake: FakeRun) -> FakeRun:
    monkeypatch.setattr(gvm_ray.trainer, "opened", fake.opened)
    monkeypatch.setattr(gvm_ray.trainer, "steps", fake.steps)
    return fake


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    return install(monkeypatch, FakeRun())


def num_updates(train: FakeRun) -> int:
    assert train.learners is not None
    return len(train.learners.batches)


@pytest.mark.parametrize("max_staleness", [0, 2])
def test_a_step_is_one_update_and_the_run_is_the_same(train: FakeRun, max_staleness: int) -> None:
    config = run_config(max_staleness=max_staleness)
    seen: list[int] = []
    with Trainer(config, callbacks=[lambda step, metrics: seen.append(step)]) as trainer:
        for number in range(config.num_steps):
            assert num_updates(train) == number
            result = trainer.step()
            assert result is not None
            assert result.step == number
        assert trainer.step() is None
        assert trainer.step() is None
    assert trainer.summary == {"num_steps": config.num_steps}
    assert seen == list(range(config.num_steps))
    if max_staleness == 0:
        _, _, records = run(config)
        with Trainer(config) as again:
            assert [(result.step, result.metrics) for result in again] == records.steps


def test_leaving_after_the_last_step_waits_for_the_end(train: FakeRun) -> None:
    config = run_config(num_steps=2)
    with Trainer(config) as trainer:
        trainer.step()
        trainer.step()
    assert trainer.summary == {"num_steps": 2}
    assert not train.was_stopped


@pytest.mark.parametrize("num_steps", [0, 2])
def test_leaving_early_makes_no_other_update(train: FakeRun, num_steps: int) -> None:
    with Trainer(run_config()) as trainer:
        for _ in range(num_steps):
            trainer.step()
    assert num_updates(train) == num_steps
    assert train.was_stopped
    assert trainer.summary is None
    assert trainer.step() is None


def test_an_error_of_the_caller_ends_the_run_too(train: FakeRun) -> None:
    def impatient() -> None:
        with Trainer(run_config()) as trainer:
            trainer.step()
            raise TimeoutError

    with pytest.raises(TimeoutError):
        impatient()
    assert num_updates(train) == 1


def test_a_failure_of_the_run_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeRun(fail_at=1))
    steps: list[StepResult] = []

    def two_steps() -> None:
        with Trainer(run_config()) as trainer:
            steps.extend(trainer)

    with pytest.raises(SystemFailure, match="learner died"):
        two_steps()
    assert [result.step for result in steps] == [0]


def test_an_interrupted_step_is_given_up(train: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes while the caller waits for a step, which then must not go on."""
    has_begun = threading.Event()

    async def slow(self: FakeLearners, batch: Any) -> Any:
        has_begun.set()
        await asyncio.sleep(600)

    class Interrupted:
        """A wait that Ctrl-C ends once the update is under way."""

        def result(self) -> None:
            assert has_begun.wait(timeout=60)
            monkeypatch.undo()
            raise KeyboardInterrupt

    def wait(coroutine: Any, loop: asyncio.AbstractEventLoop) -> Interrupted:
        loop.call_soon_threadsafe(loop.create_task, coroutine)
        return Interrupted()

    trainer = Trainer(run_config())

    def interrupted() -> None:
        with trainer:
            monkeypatch.setattr(FakeLearners, "update", slow)
            monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", wait)
            trainer.step()

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert num_updates(train) == 0
    assert trainer.step() is None


def test_a_start_that_fails_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> dict[str, Any]:
        raise ConfigError("num_steps is wrong")

    monkeypatch.setattr(gvm_ray.trainer, "opened", refuse)
    with pytest.raises(ConfigError, match="num_steps is wrong"), Trainer(run_config()):
        raise AssertionError("it did not start")
