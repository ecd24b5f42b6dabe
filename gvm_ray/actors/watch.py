"""Recovery from failures: a policy decides as data what to do about an error, and a watch carries it out for a pool."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray

from gvm_ray.actors.context import RunContext
from gvm_ray.actors.waiting import wait_for
from gvm_ray.exceptions import ActorDied, ActorFailure, DeadlineExceeded, ObjectsLost, TransferBroken


# --- decisions --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class FailureEvent:
    """An error of work that was given to a part."""

    error: BaseException
    actor_id: str = ""  # Ray's id of the actor with the work; "" if any actor's death counts as its own
    is_stale: bool = False  # the part was restarted since the work began
    came_before: bool = False  # the same work has failed in this way already


@dataclass(frozen=True)
class Restart:
    """Restart the part, and give it the work again."""

    kill: bool  # kill it first: it hangs, or its state is unknown


@dataclass(frozen=True)
class Republish:
    """Store the lost objects again, and give the part the work again."""


@dataclass(frozen=True)
class Retry:
    """Give the part the work again: it was restarted already, after another failure."""


@dataclass(frozen=True)
class Raise:
    """Raise the error: it would recur, or the caller recovers from it."""


Decision = Restart | Republish | Retry | Raise


@dataclass(frozen=True, kw_only=True)
class FailurePolicy:
    """The errors that a kind of part recovers from."""

    restart: tuple[type[BaseException], ...]
    restart_once: tuple[type[BaseException], ...] = ()  # raised the second time, as the work's own error
    republish: tuple[type[BaseException], ...] = ()
    own_deaths_only: bool = False  # raise the death of another actor, whose result the work depended on

    def decide(self, event: FailureEvent) -> Decision:
        """Decide what to do about an error, from the event alone."""
        error = event.error
        if isinstance(error, self.republish):
            return Republish()
        if isinstance(error, ActorDied) and event.actor_id not in ("", error.actor_id):
            return Raise()
        if isinstance(error, self.restart):
            return Retry() if event.is_stale else Restart(kill=not isinstance(error, ActorDied))
        if isinstance(error, self.restart_once) and not event.came_before:
            return Restart(kill=True)
        return Raise()


GENERATORS = FailurePolicy(restart=(ActorDied, DeadlineExceeded, TransferBroken), republish=(ObjectsLost,))
REWARDS = FailurePolicy(restart=(ActorDied, DeadlineExceeded), own_deaths_only=True)  # generators make their groups
# Learners and the allocator. A rank's peers see its death as an error of their own.
STATEFUL = FailurePolicy(restart=(ActorDied, DeadlineExceeded), restart_once=(ActorFailure,))
RUN = FailurePolicy(restart=(ActorDied, DeadlineExceeded, ObjectsLost))  # from its last checkpoint


# --- the watch --------------------------------------------------------------------------------------------------------
class WatchedActor:
    """The driver's side of an actor that Ray itself restarts when it dies."""

    def __init__(self, name: str, actor: Any) -> None:
        self.name = name
        self.life = 0  # restarts so far
        self.available = True  # false from a failure until it is ready for work again
        self.handle = actor  # Ray's; its types don't know an actor's methods

    @property
    def actor_id(self) -> str:
        """Ray's id of the actor, the same in all its lives."""
        return self.handle._actor_id.hex()

    def restart(self) -> None:
        """Kill the actor, hung or not; Ray starts it again."""
        ray.kill(self.handle, no_restart=False)

    def close(self) -> None:
        """Kill the actor for good."""
        ray.kill(self.handle)


Actor = TypeVar("Actor", bound=WatchedActor)
_RETRY_S = 1.0  # wait before trying again to revive an actor that failed while it restarted


class ActorWatch(Generic[Actor]):
    """Watches the actors of a pool. An actor that dies or hangs is restarted, and gets no work until it is ready.

    Args:
        actors: all actors of the pool.
        what: the actors in words, for messages, e.g. "generator(s)".
        policy: the failures to recover from.
        revive: makes a restarted actor ready for work; returns False if it must be called once more.
        context: counts failures, and bounds the wait for a restart.
    """

    def __init__(
        self,
        actors: Sequence[Actor],
        *,
        what: str,
        policy: FailurePolicy,
        revive: Callable[[Actor], Awaitable[bool]],
        context: RunContext,
    ) -> None:
        self._actors = tuple(actors)
        self._what = what
        self._policy = policy
        self._revive = revive
        self._context = context
        self._changed = asyncio.Condition()
        self._fatal: Exception | None = None  # error of a failed restart; ends the pool
        self._revivals: set[asyncio.Task[None]] = set()

    @property
    def available(self) -> list[Actor]:
        """The actors that can be given work now."""
        return [actor for actor in self._actors if actor.available]

    async def wait_available(self) -> list[Actor]:
        """Wait for actors that can be given work; returns at least one.

        Raises:
            DeadlineExceeded: all of them died or hung, and none came back within `deadlines.start_s`.
            Exception: the error that ended a restart.
        """
        while not (available := self.available):  # another waiter may come first, and see the actor die again
            await wait_for(
                self.until(lambda: bool(self.available)),
                timeout_s=self._context.deadlines.start_s,
                what=f"the restart of any of {len(self._actors)} {self._what}, which all died or hung,",
                setting="deadlines.start_s",
            )
        return available

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once the condition holds; it is checked after every restart and every `notify`."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._fatal is not None or condition())
        if self._fatal is not None:
            raise self._fatal

    async def notify(self) -> None:
        """Check the conditions that `until` waits for."""
        async with self._changed:
            self._changed.notify_all()

    def failed(self, actor: Actor, error: Exception, *, life: int) -> Decision:
        """Decide about an error of work that was given to an actor in its `life`, and begin a restart if needed.

        Raises:
            TooManyFailures: this was one too many.
            Exception: the error itself, if the decision is to raise it.
        """
        decision = self._decide(actor, error, is_stale=actor.life != life)
        match decision:
            case Raise():
                raise error
            case Restart(kill=kill):
                self._context.failures.record(actor.name, error)
                self.restart(actor, kill=kill)
        return decision

    def restart(self, actor: Actor, *, kill: bool = True) -> None:
        """Restart the actor, and give it no work until it is ready. `kill` it first unless it is dead."""
        actor.life += 1
        actor.available = False
        if kill:
            actor.restart()
        revival = asyncio.create_task(self._revived(actor))
        self._revivals.add(revival)
        revival.add_done_callback(self._revivals.discard)

    async def _revived(self, actor: Actor) -> None:
        try:
            while not actor.available:
                try:
                    actor.available = await self._revive(actor)
                except Exception as error:
                    decision = self._decide(actor, error)
                    if not isinstance(decision, Restart):
                        raise
                    self._context.failures.record(actor.name, error)
                    if decision.kill:
                        actor.restart()
                    await asyncio.sleep(_RETRY_S)
        except Exception as error:
            self._fatal = error
        await self.notify()

    def _decide(self, actor: Actor, error: Exception, *, is_stale: bool = False) -> Decision:
        actor_id = actor.actor_id if self._policy.own_deaths_only else ""
        return self._policy.decide(FailureEvent(error=error, actor_id=actor_id, is_stale=is_stale))

    def close(self) -> None:
        """Kill the actors."""
        for revival in self._revivals:
            revival.cancel()
        for actor in self._actors:
            actor.close()
