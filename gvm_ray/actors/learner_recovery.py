"""Learners that outlive their ranks: new ranks load the last checkpoint and train again on what came after it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from gvm_ray.actors.learner import LearnerGroup
from gvm_ray.actors.replay import Replayed
from gvm_ray.actors.waiting import wait_for
from gvm_ray.failure_log import FailureLog
from gvm_ray.types import (
    Delivery,
    Demonstration,
    FloatArray,
    GroupOutcome,
    LiveWeights,
    Metrics,
    Pooling,
    Prompt,
    TrainBatch,
    TransferWorld,
    UpdateResult,
    WeightsRef,
)


class RecoveringLearners:
    """Protocol `Learners` over learner groups of which each takes the place of one that died or hung.

    The batches since the last checkpoint are held by their refs, so no sample is paid twice. Ray Train's own restarts
    are not used: its workers would have to be told the same, and a rank that hangs is no failure to it.
    """

    def __init__(self, make: Callable[[], LearnerGroup], *, failures: FailureLog, handover_s: float = 3600.0) -> None:
        """`make` gives a group that isn't started.

        Where the ranks send their weights themselves, an update waits until those of the one before are sent, at most
        `handover_s` seconds: the ranks hold one policy.
        """
        self._make = make
        self._handover_s = handover_s
        self._version = 0  # of the present policy
        self._sent = asyncio.Event()  # what the last update gave, where it is to be sent
        self._sent.set()
        self._group = Replayed(make(), name="learners", replace=self._replacement, start=_start, failures=failures)

    async def start(self) -> None:
        """See `LearnerGroup.start`; ranks that can't start at all are the end of the run."""
        await self._group.part.start()

    async def stop(self) -> None:
        """See `LearnerGroup.stop`."""
        await self._group.part.stop()

    # --- what changes the policy --------------------------------------------------------------------------------------
    async def update(self, batch: TrainBatch) -> UpdateResult:
        """See `LearnerGroup.update`."""
        await wait_for(
            self._sent.wait(),
            timeout_s=self._handover_s,
            what=f"sending weights version {self._version} before the next update",
            setting="deadlines.sync_s",
        )
        result: UpdateResult = await self._group.do(lambda group: group.update(batch), changes_state=True)
        self._version = result.weights.policy_version
        if isinstance(result.weights.location, LiveWeights):
            self._sent.clear()
        return result

    async def supervised_update(self, demonstrations: Sequence[Demonstration]) -> Metrics:
        """See `LearnerGroup.supervised_update`."""
        return await self._group.do(lambda group: group.supervised_update(demonstrations), changes_state=True)

    async def warm_start(
        self, demonstrations: Sequence[Demonstration], *, on_progress: Callable[[int, Metrics], None] | None = None
    ) -> Metrics:
        """See `LearnerGroup.warm_start`."""
        return await self._group.do(
            lambda group: group.warm_start(demonstrations, on_progress=on_progress), changes_state=True
        )

    async def load(self, folder: str, *, policy_version: int) -> None:
        """See `LearnerGroup.load`; the policy that was saved there has this version."""
        await self._group.do(lambda group: group.load(folder), changes_state=False)
        self._version = policy_version
        self.checkpointed(folder)

    def checkpointed(self, folder: str) -> None:
        """The policy of the last update is safe in `folder`, so a replacement begins there."""
        self._group.restart_journal(lambda group: group.load(folder))

    # --- what asks for something --------------------------------------------------------------------------------------
    async def gradient_norms(self, outcomes: Sequence[GroupOutcome]) -> list[GroupOutcome]:
        """See `LearnerGroup.gradient_norms`."""
        return await self._ask(lambda group: group.gradient_norms(outcomes))

    async def prompt_states(self, prompts: Sequence[Prompt], *, pooling: Pooling) -> FloatArray:
        """See `LearnerGroup.prompt_states`."""
        return await self._ask(lambda group: group.prompt_states(prompts, pooling=pooling))

    async def weights(self, policy_version: int) -> WeightsRef:
        """See `LearnerGroup.weights`."""
        self._version = policy_version
        return await self._ask(lambda group: group.weights(policy_version))

    async def republish(self) -> WeightsRef:
        """The present weights in the object store: those that a dead rank published there are gone with it, and those
        that are sent never were there."""
        return await self._ask(lambda group: group.stored_weights(self._version))

    async def send(self, weights: WeightsRef, world: TransferWorld) -> Delivery:
        """See `LearnerGroup.send`; the next update may begin afterwards."""
        try:
            if not world.members:
                return Delivery(policy_version=weights.policy_version)
            return await self._ask(lambda group: group.send(weights.policy_version, world))
        finally:
            self._sent.set()

    async def save(self, folder: str) -> None:
        """See `LearnerGroup.save`."""
        await self._ask(lambda group: group.save(folder))

    async def export(self, folder: str) -> None:
        """See `LearnerGroup.export`."""
        await self._ask(lambda group: group.export(folder))

    async def _ask(self, command: Callable[[LearnerGroup], Awaitable[Any]]) -> Any:
        return await self._group.do(command, changes_state=False)

    async def _replacement(self, old: LearnerGroup) -> LearnerGroup:
        await old.kill()
        return self._make()


async def _start(group: LearnerGroup) -> None:
    await group.start()
