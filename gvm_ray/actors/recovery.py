"""Recovery of stateful parts (learners, allocator): after a death, a replacement replays a journal of commands."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from gvm_ray.actors.commands import Command, LearnerCommands, Publish, SendWeights
from gvm_ray.actors.context import RunContext
from gvm_ray.actors.learners import LearnerGroup
from gvm_ray.actors.waiting import wait_for
from gvm_ray.actors.watch import STATEFUL, FailureEvent, Raise
from gvm_ray.config import RunConfig
from gvm_ray.exceptions import ActorFailure, DeadlineExceeded
from gvm_ray.failure_log import FailureLog
from gvm_ray.types import Delivery, LiveWeights, TrainBatch, TransferWorld, UpdateResult, WeightsRef

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Done(Generic[T]):
    """A command that changed the part's state."""

    command: Callable[[T], Awaitable[Any]]
    step: int | None


class Replayed(Generic[T]):
    """A part with a journal of the commands that made its state. A replacement replays them in order.

    Answers of replayed commands are dropped: the first answers were already used. So the part must be deterministic.

    Args:
        part: the first one.
        name: of the part, in logs and errors.
        replace: ends what is left of the old part, and makes a new one.
        start: returns once a new part is ready for commands.
        failures: counts failures, and ends the run if there are too many.
    """

    def __init__(
        self,
        part: T,
        *,
        name: str,
        replace: Callable[[T], Awaitable[T]],
        start: Callable[[T], Awaitable[None]],
        failures: FailureLog,
    ) -> None:
        self._part = part
        self._name = name
        self._replace = replace
        self._start = start
        self._failures = failures
        self._journal: list[_Done[T]] = []
        self._replacing = asyncio.Lock()

    @property
    def part(self) -> T:
        """The current part."""
        return self._part

    async def do(self, command: Callable[[T], Awaitable[Any]], *, changes_state: bool, step: int | None = None) -> Any:
        """Give the part a command and return its answer. If the part dies or hangs, its replacement gets the command.

        Args:
            command: calls the part.
            changes_state: whether a replacement must replay it.
            step: the training step that it belongs to; see `restart_journal`.

        Raises:
            ActorFailure: the command itself failed twice; the first time may have been caused by a peer's death.
            TooManyFailures: more failures than `faults` allows.
        """
        raised_before = False
        while True:
            async with self._replacing:  # wait for a replacement under way
                part = self._part
            try:
                answer = await command(part)
            except (ActorFailure, DeadlineExceeded) as error:
                event = FailureEvent(error=error, came_before=raised_before)
                if isinstance(STATEFUL.decide(event), Raise):
                    raise
                raised_before = raised_before or not isinstance(error, STATEFUL.restart)
                await self._recover(part, error)
                continue
            if part is self._part or not changes_state:
                break  # otherwise the part was replaced meanwhile, and the new one hasn't had this command
        if changes_state:
            self._journal.append(_Done(command=command, step=step))
        return answer

    def restart_journal(self, first: Callable[[T], Awaitable[Any]], *, open_steps: Collection[int] = ()) -> None:
        """Begin the journal with `first`, which restores the current state. Only commands of open steps are kept."""
        kept = [done for done in self._journal if done.step in open_steps]
        self._journal = [_Done(command=first, step=None), *kept]

    async def _recover(self, failed: T, cause: BaseException) -> None:
        async with self._replacing:
            if self._part is not failed:  # already replaced after another command's failure
                return
            while True:
                self._failures.record(self._name, cause)
                self._part = await self._replace(self._part)
                try:
                    await self._start(self._part)
                    for done in self._journal:
                        await done.command(self._part)
                except STATEFUL.restart as error:
                    cause = error
                else:
                    return


class RecoveringLearners(LearnerCommands):
    """Learners that survive the failure of their ranks: a new learner group replaces one that died or hung.

    Generators get their weights from this object (`WeightSource`), so it is made before them. The learner groups, which
    may share GPUs with the generators, are made by `start`. Batches since the last checkpoint are kept as refs, so no
    sample is paid for twice. Ray Train's own restarts aren't used: its new workers would need the same commands again,
    and it doesn't notice a rank that hangs.
    """

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._version = 0  # of the current policy
        self._sent = asyncio.Event()  # cleared while the last update's weights are still to be sent
        self._sent.set()
        self._replayed: Replayed[LearnerGroup] | None = None

    async def start(self, make: Callable[[], LearnerGroup]) -> None:
        """See `LearnerGroup.start`. A failure of the first start isn't recovered from.

        Args:
            make: makes a group without starting it; called now and after each failure.
        """

        async def replace(old: LearnerGroup) -> LearnerGroup:
            await old.kill()
            return make()

        failures = self._context.failures
        self._replayed = Replayed(make(), name="learners", replace=replace, start=_start, failures=failures)
        await self._replayed.part.start()

    async def stop(self) -> None:
        """See `LearnerGroup.stop`; does nothing if no group was made."""
        if self._replayed is not None:
            await self._replayed.part.stop()

    @property
    def _group(self) -> Replayed[LearnerGroup]:
        assert self._replayed is not None, "call start() first"
        return self._replayed

    @property
    def config(self) -> RunConfig:
        """The run's settings."""
        return self._group.part.config

    async def do(self, command: Command) -> Any:
        """See `LearnerCommands.do`. If the ranks die or hang, their replacements get the command again."""
        return await self._group.do(lambda group: group.do(command), changes_state=command.changes_policy)

    async def update(self, batch: TrainBatch) -> UpdateResult:
        """See `LearnerCommands.update`. Waits until the last weights are sent: the ranks hold one policy only."""
        await wait_for(
            self._sent.wait(),
            timeout_s=self._context.deadlines.handover_s,
            what=f"sending weights version {self._version} before the next update",
            setting="deadlines.sync_s",
        )
        result = await super().update(batch)
        self._version = result.weights.policy_version
        if isinstance(result.weights.location, LiveWeights):
            self._sent.clear()
        return result

    async def restore(self, folder: str, *, policy_version: int) -> None:
        """Load the policy of a checkpoint, which has this version; see `load`."""
        await self.load(folder)
        self._version = policy_version
        self.checkpointed(folder)

    def checkpointed(self, folder: str) -> None:
        """Note that `folder` holds the policy of the last update, so that a replacement begins there."""
        self._group.restart_journal(lambda group: group.load(folder))

    async def weights(self, policy_version: int) -> WeightsRef:
        """Publish the current weights under this version."""
        self._version = policy_version
        return await super().weights(policy_version)

    async def republish(self) -> WeightsRef:
        """Store the current weights again: their publisher died, or they were only sent over NCCL or IPC."""
        return await self.do(Publish(policy_version=self._version, stored=True))

    async def send(self, weights: WeightsRef, world: TransferWorld) -> Delivery:
        """Send the weights to the generators; their failures are in the answer. Then the next update may begin."""
        try:
            if not world.members:
                return Delivery(policy_version=weights.policy_version)
            return await self.do(SendWeights(policy_version=weights.policy_version, world=world))
        finally:
            self._sent.set()


async def _start(group: LearnerGroup) -> None:
    await group.start()
