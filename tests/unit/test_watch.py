"""Decisions about failures, and the watch that carries them out for a pool of actors."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gvm_ray.actors.context import RunContext
from gvm_ray.actors.watch import (
    GENERATORS,
    REWARDS,
    RUN,
    STATEFUL,
    ActorWatch,
    Decision,
    FailureEvent,
    FailurePolicy,
    Raise,
    Republish,
    Restart,
    Retry,
    WatchedActor,
)
from gvm_ray.config.run import DeadlineConfig, FaultsConfig
from gvm_ray.exceptions import (
    ActorDied,
    ActorFailure,
    ConfigError,
    DeadlineExceeded,
    ObjectsLost,
    SystemFailure,
    TooManyFailures,
    TransferBroken,
)
from gvm_ray.failure_log import FailureLog


def died(actor_id: str = "") -> ActorDied:
    error = ActorDied("gone")
    error.actor_id = actor_id
    return error


HUNG, LOST, HALF = DeadlineExceeded("too long"), ObjectsLost("gone"), TransferBroken("half")
WRONG, BUG = ConfigError("wrong"), ActorFailure("division by zero")


@pytest.mark.parametrize(
    ("policy", "event", "decision"),
    [
        (GENERATORS, FailureEvent(error=died("7")), Restart(kill=False)),
        (GENERATORS, FailureEvent(error=HUNG), Restart(kill=True)),
        (GENERATORS, FailureEvent(error=HALF), Restart(kill=True)),
        (GENERATORS, FailureEvent(error=died(), is_stale=True), Retry()),
        (GENERATORS, FailureEvent(error=LOST), Republish()),
        (GENERATORS, FailureEvent(error=LOST, is_stale=True), Republish()),
        (GENERATORS, FailureEvent(error=BUG), Raise()),
        (GENERATORS, FailureEvent(error=WRONG), Raise()),
        (REWARDS, FailureEvent(error=died("7"), actor_id="7"), Restart(kill=False)),
        (REWARDS, FailureEvent(error=died("8"), actor_id="7"), Raise()),  # the generator that made the groups
        (REWARDS, FailureEvent(error=HUNG, actor_id="7"), Restart(kill=True)),
        (REWARDS, FailureEvent(error=HUNG, actor_id="7", is_stale=True), Retry()),
        (REWARDS, FailureEvent(error=LOST, actor_id="7"), Raise()),
        (STATEFUL, FailureEvent(error=died("7")), Restart(kill=False)),
        (STATEFUL, FailureEvent(error=BUG), Restart(kill=True)),
        (STATEFUL, FailureEvent(error=BUG, came_before=True), Raise()),
        (STATEFUL, FailureEvent(error=died("7"), came_before=True), Restart(kill=False)),
        (STATEFUL, FailureEvent(error=LOST), Restart(kill=True)),
        (STATEFUL, FailureEvent(error=WRONG), Raise()),
        (RUN, FailureEvent(error=LOST), Restart(kill=True)),
        (RUN, FailureEvent(error=died()), Restart(kill=False)),
        (RUN, FailureEvent(error=BUG), Raise()),
        (RUN, FailureEvent(error=SystemFailure("loss is not finite")), Raise()),
        (RUN, FailureEvent(error=TooManyFailures("3 failures")), Raise()),
    ],
)
def test_the_decision_depends_on_the_event_alone(
    policy: FailurePolicy, event: FailureEvent, decision: Decision
) -> None:
    assert policy.decide(event) == decision


class Actor(WatchedActor):
    """Counts what is done to it."""

    def __init__(self, name: str) -> None:
        super().__init__(name, None)
        self.num_kills = 0

    def restart(self) -> None:
        self.num_kills += 1


Revive = Callable[[Actor], Awaitable[bool]]


def watch_of(revive: Revive, *, max_failures: int = 9, start_s: float = 5.0) -> tuple[ActorWatch[Actor], list[Actor]]:
    context = RunContext(
        deadlines=DeadlineConfig(start_s=start_s), failures=FailureLog(FaultsConfig(max_failures=max_failures))
    )
    actors = [Actor("generator-0"), Actor("generator-1")]
    return ActorWatch(actors, what="generator(s)", policy=GENERATORS, revive=revive, context=context), actors


def test_a_failed_actor_gets_no_work_until_it_is_ready_and_one_death_is_one_restart() -> None:
    async def run() -> None:
        answers = iter((False, True))  # as where new weights came meanwhile

        async def revive(actor: Actor) -> bool:
            await asyncio.sleep(0)
            return next(answers)

        watch, (first, second) = watch_of(revive)
        assert watch.failed(first, HUNG, life=0) == Restart(kill=True)
        assert watch.failed(first, died(), life=0) == Retry()  # another call of the same life
        assert watch.available == [second]
        await asyncio.wait_for(watch.until(lambda: first.available), timeout=5)
        assert (first.life, first.num_kills, second.life) == (1, 1, 0)
        assert await watch.wait_available() == [first, second]

    asyncio.run(run())


def test_an_actor_that_dies_while_it_restarts_is_restarted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gvm_ray.actors.watch._RETRY_S", 0.0)

    async def run() -> None:
        errors = [died(), HUNG]

        async def revive(actor: Actor) -> bool:
            if errors:
                raise errors.pop(0)
            return True

        watch, (first, _) = watch_of(revive)
        watch.failed(first, died(), life=0)
        await asyncio.wait_for(watch.until(lambda: first.available), timeout=5)
        assert first.num_kills == 1  # only for the one that hung

    asyncio.run(run())


@pytest.mark.parametrize(("error", "max_failures"), [(ConfigError("no such model"), 9), (died(), 1)])
def test_a_restart_that_can_not_be_ends_every_wait(
    error: Exception, max_failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gvm_ray.actors.watch._RETRY_S", 0.0)

    async def run() -> None:
        async def revive(actor: Actor) -> bool:
            raise error

        watch, (first, _) = watch_of(revive, max_failures=max_failures)
        watch.failed(first, died(), life=0)
        with pytest.raises(type(error) if max_failures == 9 else TooManyFailures):
            await asyncio.wait_for(watch.until(lambda: False), timeout=5)

    asyncio.run(run())


def test_a_pool_without_an_actor_waits_for_a_restart_only_so_long() -> None:
    async def run() -> None:
        async def revive(actor: Actor) -> bool:
            await asyncio.sleep(60)
            return True

        watch, actors = watch_of(revive, start_s=0.05)
        for actor in actors:
            watch.failed(actor, died(), life=0)
        with pytest.raises(DeadlineExceeded, match=r"restart of any of 2 generator\(s\).*deadlines.start_s"):
            await watch.wait_available()

    asyncio.run(run())


def test_no_waiter_gets_an_actor_that_died_again_meanwhile() -> None:
    async def run() -> None:
        async def revive(actor: Actor) -> bool:
            await asyncio.sleep(0 if actor.name == "generator-0" else 60)
            return True

        watch, (first, second) = watch_of(revive)
        watch.failed(first, died(), life=0)
        watch.failed(second, died(), life=0)

        async def work() -> list[Actor]:
            available = await watch.wait_available()
            if first.life == 1:  # whoever comes first finds it dead once more
                watch.failed(first, died(), life=1)
            return list(available)

        found = await asyncio.wait_for(asyncio.gather(work(), work(), work()), timeout=5)
        assert found == [[first]] * 3
        assert first.life == 2

    asyncio.run(run())


def test_an_error_of_the_work_itself_comes_out() -> None:
    async def run() -> None:
        async def revive(actor: Actor) -> bool:
            return True

        watch, (first, _) = watch_of(revive)
        with pytest.raises(ActorFailure, match="division by zero"):
            watch.failed(first, BUG, life=0)
        assert first.available

    asyncio.run(run())
