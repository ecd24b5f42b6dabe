"""Learner ranks that are killed or hang: what is learned is what would have been, and no sample is paid twice."""

import asyncio
import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch

from gvm_ray.actors.context import RunContext
from gvm_ray.actors.learners import LearnerGroup
from gvm_ray.actors.recovery import RecoveringLearners
from gvm_ray.actors.weight_sync import fetch
from gvm_ray.config import RunConfig
from gvm_ray.config.run import FaultsConfig
from gvm_ray.failure_log import FailureLog
from gvm_ray.types import GroupRef, WeightsRef
from tests.learner_cases import (
    OPTIMIZER,
    SurrogateLoss,
    batch_of,
    build_tiny_model,
    copy_demonstrations,
    learner_config,
    ragged_groups,
)
from tests.ray_processes import learner_mailbox, processes_named, rank_process

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learners")
    build_tiny_model(folder / "base")
    return folder


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def config() -> RunConfig:
    return learner_config(
        learner={"num_workers": 2, "optimizer": OPTIMIZER},
        algorithm={"type": "grpo", "updates_per_batch": 2},
        deadlines={"start_s": 300, "update_s": 30},
    )


class Learners:
    """Recovering learners, each of whose groups has a folder of its own."""

    def __init__(self, settings: RunConfig, folder: Path) -> None:
        self._settings, self._folder, self._numbers = settings, folder, itertools.count()
        self.failures = FailureLog(FaultsConfig(max_failures=5))
        self._context = RunContext(deadlines=settings.deadlines, failures=self.failures)
        self.all = RecoveringLearners(self._context)

    async def start(self) -> None:
        await self.all.start(self._make)

    def _make(self) -> LearnerGroup:
        return LearnerGroup(
            self._settings,
            base_path=str(self._folder / "base"),
            token_loss=SurrogateLoss(kl_coefficient=0.1, needs_entropy=True),
            run_dir=str(self._folder / f"run-{next(self._numbers)}"),
            context=self._context,
        )

    async def update(self, step: int) -> WeightsRef:
        """Train on the step's batch, whose groups nobody else holds."""
        groups = ragged_groups()
        refs = [GroupRef(ref=ray.put((group,)), index=0) for group in groups]
        return (await self.all.update(batch_of(groups, refs=refs, step=step))).weights


def weights(ref: WeightsRef) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in fetch(ref)}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.fixture(scope="module")
def undisturbed(folder: Path, runner: asyncio.Runner) -> list[dict[str, torch.Tensor]]:
    """The weights after a supervised update and each of seven batches."""

    async def scenario() -> list[dict[str, torch.Tensor]]:
        learners = Learners(config(), folder)
        await learners.start()
        try:
            await learners.all.supervised_update(copy_demonstrations())
            return [weights(await learners.update(step)) for step in range(7)]
        finally:
            await learners.all.stop()

    return runner.run(scenario())


def test_after_any_failure_the_learners_go_on_as_if_nothing_had_happened(
    folder: Path, runner: asyncio.Runner, undisturbed: list[dict[str, torch.Tensor]]
) -> None:
    async def scenario() -> None:
        learners = Learners(config(), folder)
        await learners.start()
        try:
            await learners.all.supervised_update(copy_demonstrations())
            first = await learners.update(0)
            # Between two commands, with no checkpoint yet: a replacement has the base, and all that was done.
            os.kill(await rank_process(1), signal.SIGKILL)
            assert_same(weights(await learners.update(1)), undisturbed[1])
            assert learners.failures.counts == {"learners": 1}
            # The policy that the dead rank published can be had from the new one.
            with pytest.raises(ray.exceptions.ObjectLostError):
                weights(first)
            again = await learners.all.republish()
            assert again.policy_version == 2
            assert_same(weights(again), undisturbed[1])
            # In the middle of a command, after a checkpoint: what came after it.
            await learners.all.save(str(folder / "checkpoint"))
            (folder / "checkpoint").rename(folder / "complete")
            learners.all.checkpointed(str(folder / "complete"))
            assert_same(weights(await learners.update(2)), undisturbed[2])
            last = await rank_process(0)
            under_way = asyncio.create_task(learners.update(3))
            await asyncio.sleep(0.05)
            os.kill(last, signal.SIGKILL)
            assert_same(weights(await under_way), undisturbed[3])
            assert learners.failures.counts == {"learners": 2}
            # One that hangs, and lets the other wait for it in a collective call.
            hung = await rank_process(1)
            os.kill(hung, signal.SIGSTOP)
            assert_same(weights(await learners.update(4)), undisturbed[4])
            assert learners.failures.counts == {"learners": 3}
            assert not Path(f"/proc/{hung}").exists()
            # What brings the commands to the ranks.
            ray.kill(await learner_mailbox())
            assert_same(weights(await learners.update(5)), undisturbed[5])
            assert learners.failures.counts == {"learners": 4}
            # Ray Train's own part, which watches over the ranks.
            (controller,) = processes_named("ray::TrainController")
            controller.kill()
            assert_same(weights(await learners.update(6)), undisturbed[6])
            assert learners.failures.counts == {"learners": 5}
        finally:
            await learners.all.stop()

    runner.run(scenario())
