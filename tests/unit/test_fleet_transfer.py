"""A fleet whose weights are sent: who takes part, what becomes of those that fail, what the object store still does."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gvm_ray.actors.context import RunContext
from gvm_ray.actors.generator_fleet import GeneratorFleet
from gvm_ray.config.run import DeadlineConfig, FaultsConfig
from gvm_ray.exceptions import (
    ActorDied,
    ActorFailure,
    DeadlineExceeded,
    ObjectsLost,
    SystemFailure,
    TooManyFailures,
    TransferBroken,
)
from gvm_ray.failure_log import FailureLog
from gvm_ray.types import Delivery, LiveWeights, TransferMember, TransferWorld, WeightsRef


class FakeGenerator:
    """Takes stored weights, and sent ones from `FakeLearners`."""

    def __init__(self, number: int) -> None:
        self.name = f"generator-{number}"
        self.member = TransferMember(name=self.name, actor=self, num_workers=1)
        self.version = -1
        self.available = True
        self.life = 0
        self.pending: list[Any] = []
        self.held = -1  # the engine's version
        self.brought: list[WeightsRef] = []
        self.num_kills = 0
        self.is_closed = False

    async def ready(self) -> None: ...

    async def bring(self, weights: WeightsRef) -> None:
        await asyncio.sleep(0)
        if self.held < weights.policy_version:
            if isinstance(weights.location, LiveWeights) and not weights.location.buckets:
                raise ObjectsLost("not stored")
            self.brought.append(weights)
            self.held = weights.policy_version
        self.version = self.held

    def restart(self) -> None:
        self.num_kills += 1
        self.held = -1

    def close(self) -> None:
        self.is_closed = True


class FakeLearners:
    """Sends; generators fail as told."""

    def __init__(self) -> None:
        self.version = 0
        self.worlds: list[TransferWorld] = []
        self.num_stored = 0
        self.failures: dict[str, Exception] = {}
        self.halfway = False

    def live(self, *, buckets: tuple[Any, ...] = ()) -> WeightsRef:
        self.version += 1
        return WeightsRef(policy_version=self.version, location=LiveWeights(transfer="nccl", buckets=buckets))

    async def send(self, weights: WeightsRef, world: TransferWorld) -> Delivery:
        self.worlds.append(world)
        await asyncio.sleep(0)
        for member in world.members:
            if member.name not in self.failures and not self.halfway:
                member.actor.held = weights.policy_version
        return Delivery(policy_version=weights.policy_version, failures=self.failures, halfway=self.halfway)

    async def republish(self) -> WeightsRef:
        self.num_stored += 1
        await asyncio.sleep(0)
        return WeightsRef(policy_version=self.version, location=("bucket",))


class Play:
    """A fleet of two generators, and learners that send to it."""

    def __init__(self, *, max_failures: int = 20, live: bool = True) -> None:
        self.learners = FakeLearners()
        self.made: list[FakeGenerator] = []
        self.failures = FailureLog(FaultsConfig(max_failures=max_failures))
        make: Any = self._make
        context = RunContext(deadlines=DeadlineConfig(), failures=self.failures)
        self.fleet = GeneratorFleet(make, num_generators=2, context=context, source=self.learners, live=live)

    def _make(self, number: int) -> FakeGenerator:
        self.made.append(FakeGenerator(number))
        return self.made[-1]

    async def settle(self) -> None:
        """Until every quarantine is over."""
        while not all(generator.available for generator in self.made if not generator.is_closed):
            await asyncio.sleep(0.01)


def played(scenario: Callable[[Play], Awaitable[None]], **settings: Any) -> Play:
    play = Play(**settings)
    asyncio.run(asyncio.wait_for(scenario(play), timeout=20))
    return play


def test_sent_weights_need_no_store_and_keep_their_connection() -> None:
    async def scenario(play: Play) -> None:
        for version in (1, 2, 3):
            await play.fleet.publish(play.learners.live())
            assert play.fleet.versions == (version, version)

    play = played(scenario)
    assert [world.generation for world in play.learners.worlds] == [1, 1, 1]
    assert [member.name for member in play.learners.worlds[0].members] == ["generator-0", "generator-1"]
    assert play.learners.worlds[0].size == 3
    assert play.learners.num_stored == 0
    assert not any(generator.brought for generator in play.made)


@pytest.mark.parametrize(
    ("error", "num_kills"), [(ActorDied("died"), 0), (DeadlineExceeded("hung"), 1), (TransferBroken("half"), 1)]
)
def test_a_generator_that_fails_starts_anew_with_stored_weights_and_joins_the_next_world(
    error: Exception, num_kills: int
) -> None:
    async def scenario(play: Play) -> None:
        await play.fleet.publish(play.learners.live())
        play.learners.failures = {"generator-1": error}
        await play.fleet.publish(play.learners.live())
        await play.settle()
        assert play.fleet.versions == (2, 2)
        play.learners.failures = {}
        await play.fleet.publish(play.learners.live())
        assert play.fleet.versions == (3, 3)

    play = played(scenario)
    assert [world.generation for world in play.learners.worlds] == [1, 1, 2]
    assert [generator.num_kills for generator in play.made] == [0, num_kills]
    assert [len(generator.brought) for generator in play.made] == [0, 1]
    assert play.learners.num_stored == 1
    assert play.failures.counts.total() == 1


def test_those_that_may_hold_half_of_it_start_anew_too_and_count_as_no_failure() -> None:
    async def scenario(play: Play) -> None:
        play.learners.failures, play.learners.halfway = {"generator-1": ActorDied("died")}, True
        publishing = asyncio.create_task(play.fleet.publish(play.learners.live()))
        await play.settle()
        await publishing
        assert play.fleet.versions == (1, 1)

    play = played(scenario)
    assert [generator.num_kills for generator in play.made] == [1, 0]
    assert [len(generator.brought) for generator in play.made] == [1, 1]
    assert play.learners.num_stored == 1  # for both
    assert play.failures.counts.total() == 1


@pytest.mark.parametrize("error", [SystemFailure("other weights"), ActorFailure("no connection")])
def test_what_would_come_again_ends_the_run(error: Exception) -> None:
    async def scenario(play: Play) -> None:
        play.learners.failures = {"generator-0": error}
        with pytest.raises(type(error), match=str(error)):
            await play.fleet.publish(play.learners.live())

    played(scenario)


def test_failures_are_limited() -> None:
    async def scenario(play: Play) -> None:
        play.learners.failures = {"generator-0": TransferBroken("half")}
        with pytest.raises(TooManyFailures):
            await play.fleet.publish(play.learners.live())

    played(scenario, max_failures=0)


def test_a_fleet_that_nothing_is_sent_to_takes_the_stored_buckets() -> None:
    async def scenario(play: Play) -> None:
        weights = play.learners.live(buckets=("bucket",))
        await play.fleet.publish(weights)
        assert [generator.brought for generator in play.made] == [[weights], [weights]]

    assert not played(scenario, live=False).learners.worlds
