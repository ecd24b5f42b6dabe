"""A run step by step: each update waits for its permission, and leaving early ends the run without another one."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from loop_fakes import START, FakeLearners, make_system, run, run_config

import gvm_ray.trainer
from gvm_ray.config import RunConfig
from gvm_ray.exceptions import ConfigError, SystemFailure
from gvm_ray.loop import train as run_loop
from gvm_ray.reporting import Callback
from gvm_ray.trainer import StepResult, Trainer


class FakeTrain:
    """Takes the place of `train`: the loop over fakes."""

    def __init__(self, **learners: Any) -> None:
        self.learners: FakeLearners | None = None
        self.changes = learners
        self.was_stopped = False

    def __call__(
        self, config: RunConfig, *, resume: bool, overwrite: bool, callbacks: Sequence[Callback], arrange: Any
    ) -> dict[str, Any]:
        async def go() -> dict[str, Any]:
            system, _, self.learners, records = make_system(config)
            for name, value in self.changes.items():
                setattr(self.learners, name, value)
            log_step = records.log_step

            def logged(step: int, metrics: Any, **arrays: Any) -> None:
                log_step(step, metrics, **arrays)
                for callback in callbacks:
                    callback(step, metrics)

            records.log_step = logged  # type: ignore[method-assign]
            with system.stop.listening(), system.stop.steps():
                try:
                    await run_loop(arrange(system), config, start=START)
                except asyncio.CancelledError:
                    self.was_stopped = True
                    raise
            return {"num_steps": config.num_steps}

        return asyncio.run(go())


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> FakeTrain:
    fake = FakeTrain()
    monkeypatch.setattr(gvm_ray.trainer, "train", fake)
    return fake


def num_updates(train: FakeTrain) -> int:
    assert train.learners is not None
    return len(train.learners.batches)


@pytest.mark.parametrize("max_staleness", [0, 2])
def test_a_step_is_one_update_and_the_run_is_the_same(train: FakeTrain, max_staleness: int) -> None:
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


def test_leaving_after_the_last_step_waits_for_the_end(train: FakeTrain) -> None:
    config = run_config(num_steps=2)
    with Trainer(config) as trainer:
        trainer.step()
        trainer.step()
    assert trainer.summary == {"num_steps": 2}
    assert not train.was_stopped


@pytest.mark.parametrize("num_steps", [0, 2])
def test_leaving_early_makes_no_other_update(train: FakeTrain, num_steps: int) -> None:
    with Trainer(run_config()) as trainer:
        for _ in range(num_steps):
            trainer.step()
    assert num_updates(train) == num_steps
    assert train.was_stopped
    assert trainer.summary is None
    assert trainer.step() is None


def test_an_error_of_the_caller_ends_the_run_too(train: FakeTrain) -> None:
    def impatient() -> None:
        with Trainer(run_config()) as trainer:
            trainer.step()
            raise TimeoutError

    with pytest.raises(TimeoutError):
        impatient()
    assert num_updates(train) == 1


def test_a_failure_of_the_run_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gvm_ray.trainer, "train", FakeTrain(fail_at=1))
    steps: list[StepResult] = []

    def two_steps() -> None:
        with Trainer(run_config()) as trainer:
            steps.extend(trainer)

    with pytest.raises(ExceptionGroup) as raised:
        two_steps()
    assert [result.step for result in steps] == [0]
    assert raised.group_contains(SystemFailure, match="learner died")


def test_a_start_that_fails_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> dict[str, Any]:
        raise ConfigError("num_steps is wrong")

    monkeypatch.setattr(gvm_ray.trainer, "train", refuse)
    with pytest.raises(ConfigError, match="num_steps is wrong"), Trainer(run_config()):
        raise AssertionError("it did not start")
