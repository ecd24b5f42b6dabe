"""Parts with state in other processes: a journal of the commands that made the state makes it again after a death."""

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
    """A part with a journal of the commands that made its state; a replacement is given them again, in order.

    What they give back then is dropped, for it was used already. So the part must do the same for the same commands.

    Args:
        part: the first one.
        name: of the part, in logs and errors.
        replace: ends a part, whatever is left of it, and makes a new one.
        start: returns once a new part is ready for commands.
        failures: counts them, and ends the run where there are too many.
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
        """The present one."""
        return self._part

    async def do(self, command: Callable[[T], Awaitable[Any]], *, changes_state: bool, step: int | None = None) -> Any:
        """Result of the command, which is given again to a replacement where the part dies or hangs.

        Args:
            command: asks the part for something.
            changes_state: whether a replacement needs it too.
            step: the training step that it belongs to, see `restart_journal`.

        Raises:
            ActorFailure: the command failed by itself, twice; a peer's death may look like that the first time.
            TooManyFailures: more of them than the run puts up with.
        """
        raised_before = False
        while True:
            async with self._replacing:  # wait until a replacement is complete
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
                break  # else it was replaced meanwhile, by one that doesn't know of this command
        if changes_state:
            self._journal.append(_Done(command=command, step=step))
        return answer

    def restart_journal(self, first: Callable[[T], Awaitable[Any]], *, open_steps: Collection[int] = ()) -> None:
        """`first` gives a replacement the present state, so earlier commands are dropped, but those of open steps."""
        kept = [done for done in self._journal if done.step in open_steps]
        self._journal = [_Done(command=first, step=None), *kept]

    async def _recover(self, failed: T, cause: BaseException) -> None:
        async with self._replacing:
            if self._part is not failed:  # another command's failure has led to its replacement
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
    """Learners that survive their ranks: a new learner group takes the place of one that died or hung.

    Generators get their weights from it (`WeightSource`), so it is made before them; the groups, which may share GPUs
    with the generators, are made by `start`. The batches since the last checkpoint are kept as refs, so no sample is
    paid for twice. Ray Train's own restarts are not used: its new workers would need the same commands again, and it
    takes no notice of a rank that hangs.
    """

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._version = 0  # of the current policy
        self._sent = asyncio.Event()  # set unless the last update's weights are still to be sent
        self._sent.set()
        self._replayed: Replayed[LearnerGroup] | None = None

    async def start(self, make: Callable[[], LearnerGroup]) -> None:
        """See `LearnerGroup.start`; ranks that can't start at all are the end of the run.

        Args:
            make: gives a group that isn't started, now and after each death.
        """

        async def replace(old: LearnerGroup) -> LearnerGroup:
            await old.kill()
            return make()

        failures = self._context.failures
        self._replayed = Replayed(make(), name="learners", replace=replace, start=_start, failures=failures)
        await self._replayed.part.start()

    async def stop(self) -> None:
        """See `LearnerGroup.stop`; does nothing where none was started."""
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
        """See `LearnerCommands.do`. If the ranks die or hang, their successors get the command again."""
        return await self._group.do(lambda group: group.do(command), changes_state=command.changes_policy)

    async def update(self, batch: TrainBatch) -> UpdateResult:
        """See `LearnerCommands.update`. Ranks hold one policy: weights that are to be sent are sent before the next."""
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
        """Begin with the policy of a checkpoint, which has this version; see `load`."""
        await self.load(folder)
        self._version = policy_version
        self.checkpointed(folder)

    def checkpointed(self, folder: str) -> None:
        """The policy of the last update is safe in `folder`, so a replacement begins there."""
        self._group.restart_journal(lambda group: group.load(folder))

    async def weights(self, policy_version: int) -> WeightsRef:
        """Publish the present weights under this version."""
        self._version = policy_version
        return await super().weights(policy_version)

    async def republish(self) -> WeightsRef:
        """Store the current weights again: their publisher died, or they were only sent over NCCL or IPC."""
        return await self.do(Publish(policy_version=self._version, stored=True))

    async def send(self, weights: WeightsRef, world: TransferWorld) -> Delivery:
        """Send the weights to the generators, whose failures are in the answer. Then the next update may begin."""
        try:
            if not world.members:
                return Delivery(policy_version=weights.policy_version)
            return await self.do(SendWeights(policy_version=weights.policy_version, world=world))
        finally:
            self._sent.set()


async def _start(group: LearnerGroup) -> None:
    await group.start()
