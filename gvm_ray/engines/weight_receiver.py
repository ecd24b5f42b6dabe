"""The generator's side of a transfer: what the learners' sender asks for, in order, while the engine is at rest."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Protocol

from gvm_ray.engines.server import EngineServer, Pause
from gvm_ray.exceptions import ActorFailure, SystemFailure, TransferBroken
from gvm_ray.types import FinishUpdate, JoinWorld, ReceiveWeights, StartUpdate, TransferPhase


class ReceivesWeights(Protocol):
    """What an engine offers besides, if weights can be sent to it. Its one thread makes every call."""

    def join_world(self, init_info: Mapping[str, Any]) -> None:
        """Connect to the sender, in place of an earlier connection; returns when every member has."""
        ...

    def start_update(self) -> None:
        """Make ready for weights; samples nothing until `finish_update`."""
        ...

    def receive_weights(self, update_info: Mapping[str, Any]) -> None:
        """Take the weights that are announced here."""
        ...

    def finish_update(self, policy_version: int) -> Sequence[str]:
        """Use what came, under this version; the checksum of what each worker process got.

        Raises:
            SystemFailure: a weight was left out.
        """
        ...


class WeightReceiver:
    """Protocol of a transfer over an engine's server.

    A failure after the start leaves the engine with parts of two policies. It then refuses all work, and whoever
    watches over the generator starts it anew.
    """

    def __init__(self, server: EngineServer, *, name: str) -> None:
        self._server = server
        self._name = name
        self._generation: int | None = None  # of the world that the engine is connected to
        self._pause: Pause | None = None  # while an update is under way
        self._watchdog: asyncio.TimerHandle | None = None
        self._silence_s = 0.0

    async def take(self, phase: TransferPhase) -> None:
        """Returns when the phase is done.

        Raises:
            ActorFailure: the engine can't connect.
            TransferBroken: the phases stopped halfway, or this one isn't due, or is one of another world.
            SystemFailure: what came is not what was sent.
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
            self._break("the learners set up a new connection before they had sent all of the weights")
        try:
            await self._ask(lambda engine: engine.join_world(phase.init_info))
        except RuntimeError as error:
            raise ActorFailure(
                f"{self._name} can't connect to the learners, to be sent weights: {error}. Write "
                "weight_sync.transfer='object_store' to go on without this connection"
            ) from error
        self._generation = phase.generation

    async def _start(self, phase: StartUpdate) -> None:
        self._check_world(phase.generation)
        if self._pause is not None:
            self._break("the learners began to send once more before they had sent all of the weights")
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
                f"is {wrong[0]}, and {phase.checksum} was sent. Write weight_sync.transfer='object_store' to go on "
                "without this transfer"
            )
            self._server.spoil(error)
            self._end()
            raise error
        self._server.loaded(phase.policy_version)
        self._end()

    async def _ask(self, call: Callable[[ReceivesWeights], Any]) -> Any:
        """The engine's answer, as one that weights can be sent to."""
        ask: Any = self._server.ask  # which knows of `Engine`
        return await ask(call)

    async def _during_update(self, call: Callable[[ReceivesWeights], Any]) -> Any:
        """The engine's answer; an error ends the update, and so does silence after it."""
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
            raise TransferBroken(  # it may have died and come back before anyone noticed
                f"{self._name} is connected to world {self._generation}, and weights were to come by world {generation}"
            )

    def _check_update(self, generation: int) -> None:
        self._check_world(generation)
        if self._pause is None:
            raise TransferBroken(f"{self._name} was sent weights by world {generation} without the start of an update")

    def _watch(self, timeout_s: float | None) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._watchdog = None
        if timeout_s is not None:
            self._watchdog = asyncio.get_running_loop().call_later(timeout_s, self._give_up)

    def _give_up(self) -> None:
        self._server.spoil(self._broken(f"nothing came for {self._silence_s:g} s (deadlines.sync_s)"))
        self._end()

    def _break(self, why: str, *, cause: Exception | None = None) -> NoReturn:
        error = self._broken(why)
        self._server.spoil(error)
        self._end()
        raise error from cause

    def _broken(self, why: str) -> TransferBroken:
        return TransferBroken(f"new weights stopped coming halfway into {self._name}: {why}")

    def _end(self) -> None:
        self._watch(None)
        if self._pause is not None:
            self._pause.end()
        self._pause = None
