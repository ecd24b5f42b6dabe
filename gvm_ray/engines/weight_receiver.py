"""The generator's side of a weight transfer: runs the phases that the learners' sender requests, in order."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Protocol

from gvm_ray.engines.server import EngineServer, Pause
from gvm_ray.exceptions import ActorFailure, SystemFailure, TransferBroken
from gvm_ray.types import FinishUpdate, JoinWorld, ReceiveWeights, StartUpdate, TransferPhase


class ReceivesWeights(Protocol):
    """Optional protocol of engines that can be sent weights. All calls are made in the engine's one thread."""

    def join_world(self, init_info: Mapping[str, Any]) -> None:
        """Connect to the sender, replacing an earlier connection; returns when every member is connected."""
        ...

    def start_update(self) -> None:
        """Prepare for new weights; nothing is sampled until `finish_update`."""
        ...

    def receive_weights(self, update_info: Mapping[str, Any]) -> None:
        """Receive the announced weights."""
        ...

    def finish_update(self, policy_version: int) -> Sequence[str]:
        """Use the received weights as this version, and return the checksum of each worker process's weights.

        Raises:
            SystemFailure: a weight is missing.
        """
        ...


class WeightReceiver:
    """Runs the protocol of a transfer on an engine's server, pausing the engine during an update.

    A failure after the start leaves the engine with parts of two policies. It then rejects all work until the
    generator's supervisor restarts it.
    """

    def __init__(self, server: EngineServer, *, name: str) -> None:
        self._server = server
        self._name = name
        self._generation: int | None = None  # of the world to which the engine is connected
        self._pause: Pause | None = None  # set during an update
        self._watchdog: asyncio.TimerHandle | None = None
        self._silence_s = 0.0

    async def take(self, phase: TransferPhase) -> None:
        """Run a phase; returns when it is done.

        Raises:
            ActorFailure: the engine can't connect.
            TransferBroken: the phases stopped halfway, this phase isn't due, or it belongs to another world.
            SystemFailure: the received weights differ from those sent.
        """
        match phase:
            case JoinWorld():
                await self._join(phase)
            case StartUpdate():
                await self._start(phase)
            case ReceiveWeights():
                await self._receive(phase)
            case FinishUpdate():
                await self._finish(phase)

    async def _join(self, phase: JoinWorld) -> None:
        self._generation = None
        if self._pause is not None:
            self._break("the learners set up a new connection before all weights were sent")
        try:
            await self._ask(lambda engine: engine.join_world(phase.init_info))
        except RuntimeError as error:
            raise ActorFailure(
                f"{self._name} can't connect to the learners to receive weights: {error}. Write "
                "weight_sync.transfer='object_store' to continue without this connection"
            ) from error
        self._generation = phase.generation

    async def _start(self, phase: StartUpdate) -> None:
        self._check_world(phase.generation)
        if self._pause is not None:
            self._break("the learners began another update before all weights were sent")
        self._silence_s = phase.silence_s
        self._pause = await self._server.pause()
        await self._during_update(lambda engine: engine.start_update())

    async def _receive(self, phase: ReceiveWeights) -> None:
        self._check_update(phase.generation)
        await self._during_update(lambda engine: engine.receive_weights(phase.update_info))

    async def _finish(self, phase: FinishUpdate) -> None:
        self._check_update(phase.generation)
        checksums = await self._during_update(lambda engine: engine.finish_update(phase.policy_version))
        wrong = sorted({*checksums} - {phase.checksum})
        if wrong:
            error = SystemFailure(
                f"{self._name} received other weights than were sent as version {phase.policy_version}: their checksum "
                f"is {wrong[0]} instead of {phase.checksum}. Write weight_sync.transfer='object_store' to continue "
                "without this transfer"
            )
            self._server.spoil(error)
            self._end()
            raise error
        self._server.loaded(phase.policy_version)
        self._end()

    async def _ask(self, call: Callable[[ReceivesWeights], Any]) -> Any:
        """Call a function of an engine that implements `ReceivesWeights`."""
        ask: Any = self._server.ask  # typed for `Engine`
        return await ask(call)

    async def _during_update(self, call: Callable[[ReceivesWeights], Any]) -> Any:
        """Call the engine during an update; an error ends the update, and so does silence afterwards."""
        self._watch(None)
        try:
            answer = await self._ask(call)
        except Exception as error:
            if isinstance(error, SystemFailure):
                self._server.spoil(error)
                self._end()
                raise
            self._break(f"{type(error).__name__}: {error}", cause=error)
        self._watch(self._silence_s)
        return answer

    def _check_world(self, generation: int) -> None:
        if generation != self._generation:
            raise TransferBroken(  # this generator may have died and restarted unnoticed
                f"{self._name} is connected to world {self._generation}, but the weights are sent by world {generation}"
            )

    def _check_update(self, generation: int) -> None:
        self._check_world(generation)
        if self._pause is None:
            raise TransferBroken(f"{self._name} was sent weights by world {generation} before an update was started")

    def _watch(self, timeout_s: float | None) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._watchdog = None
        if timeout_s is not None:
            self._watchdog = asyncio.get_running_loop().call_later(timeout_s, self._give_up)

    def _give_up(self) -> None:
        self._server.spoil(self._broken(f"nothing arrived for {self._silence_s:g} s (deadlines.sync_s)"))
        self._end()

    def _break(self, why: str, *, cause: Exception | None = None) -> NoReturn:
        error = self._broken(why)
        self._server.spoil(error)
        self._end()
        raise error from cause

    def _broken(self, why: str) -> TransferBroken:
        return TransferBroken(f"the transfer of new weights to {self._name} stopped halfway: {why}")

    def _end(self) -> None:
        self._watch(None)
        if self._pause is not None:
            self._pause.end()
        self._pause = None
