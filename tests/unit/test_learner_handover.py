"""Learners that send their weights hold one policy: an update waits until the one before is on its way."""

import asyncio
from typing import Any

import numpy as np
import pytest

from gvm_ray.actors.commands import Command, Publish, SendWeights, Update
from gvm_ray.actors.context import RunContext
from gvm_ray.actors.recovery import RecoveringLearners
from gvm_ray.config.run import DeadlineConfig, FaultsConfig
from gvm_ray.exceptions import DeadlineExceeded
from gvm_ray.failure_log import FailureLog
from gvm_ray.types import Delivery, LiveWeights, TrainBatch, TransferMember, TransferWorld, WeightsRef

BRIEF = DeadlineConfig(start_s=0.01, sample_s=0.01, update_s=0.01, sync_s=0.01)
WORLD = TransferWorld(generation=1, members=(TransferMember(name="generator-0", actor=None, num_workers=1),))


class FakeGroup:
    """Writes down the commands that reach it; `live` says whether its weights are sent."""

    def __init__(self, *, live: bool) -> None:
        self.commands: list[str] = []
        self._location: Any = LiveWeights(transfer="nccl") if live else ()

    async def start(self) -> None: ...

    async def do(self, command: Command) -> Any:
        match command:
            case Update(batch=batch):
                self.commands.append(f"update {batch.step + 1}")
                return WeightsRef(policy_version=batch.step + 1, location=self._location), {"loss": np.nan}, ()
            case SendWeights(policy_version=version):
                await asyncio.sleep(0.05)
                self.commands.append(f"send {version}")
                return Delivery(policy_version=version)
            case Publish(policy_version=version, stored=True):
                return WeightsRef(policy_version=version, location=("bucket",))
            case unexpected:
                raise AssertionError(unexpected)


async def learners_over(group: Any, *, deadlines: DeadlineConfig | None = None) -> RecoveringLearners:
    context = RunContext(deadlines=deadlines or DeadlineConfig(), failures=FailureLog(FaultsConfig()))
    learners = RecoveringLearners(context)
    await learners.start(lambda: group)
    return learners


def batch(step: int) -> TrainBatch:
    return TrainBatch(step=step, groups=())


@pytest.mark.parametrize(
    ("world", "commands"),
    [
        (WORLD, ["update 1", "send 1", "update 2"]),
        (TransferWorld(generation=2, members=()), ["update 1", "update 2"]),  # all generators are starting anew
    ],
)
def test_the_next_update_comes_after_the_transfer_however_early_it_is_asked_for(
    world: TransferWorld, commands: list[str]
) -> None:
    group = FakeGroup(live=True)

    async def play() -> None:
        learners = await learners_over(group)
        result = await learners.update(batch(0))
        sending = asyncio.create_task(learners.send(result.weights, world))
        await learners.update(batch(1))
        await sending
        assert (await learners.republish()).location == ("bucket",)

    asyncio.run(play())
    assert group.commands == commands


def test_stored_weights_hold_nothing_up() -> None:
    group = FakeGroup(live=False)

    async def play() -> None:
        learners = await learners_over(group)
        await learners.update(batch(0))
        await learners.update(batch(1))

    asyncio.run(play())
    assert group.commands == ["update 1", "update 2"]


def test_the_wait_has_an_end_that_says_what_was_waited_for() -> None:
    async def play() -> None:
        learners = await learners_over(FakeGroup(live=True), deadlines=BRIEF)
        await learners.update(batch(0))
        with pytest.raises(DeadlineExceeded, match=r"sending weights version 1 before .*deadlines.sync_s"):
            await learners.update(batch(1))

    asyncio.run(play())
