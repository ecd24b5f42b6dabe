"""Learners and generators on the same GPUs: who sleeps when, and what waits for whom, without a cluster."""

import asyncio
from typing import Any, cast

import pytest

from gvm_ray.actors.context import RunContext
from gvm_ray.actors.generator import GeneratorClient
from gvm_ray.actors.generator_fleet import GeneratorFleet
from gvm_ray.actors.gpu_shifts import GPUShifts
from gvm_ray.config.run import DeadlineConfig, FaultsConfig
from gvm_ray.exceptions import ActorDied, ObjectsLost, TooManyFailures
from gvm_ray.failure_log import FailureLog
from gvm_ray.types import WeightsRef


class FakeGenerator:
    """Notes what is asked of it; `failing` and `losing` calls raise once."""

    def __init__(self, number: int, events: list[str], failing: set[str], losing: set[str]) -> None:
        self.name = f"generator-{number}"
        self.version, self.life, self.available = -1, 0, True
        self._events, self._failing, self._losing = events, failing, losing

    async def _note(self, what: str) -> None:
        await asyncio.sleep(0)
        if f"{what} {self.name}" in self._failing:
            self._failing.remove(f"{what} {self.name}")
            raise ActorDied(f"{self.name} died")
        if f"{what} {self.name}" in self._losing:
            self._losing.remove(f"{what} {self.name}")
            raise ObjectsLost("the weights are gone")
        self._events.append(f"{what} {self.name}")

    async def ready(self) -> None:
        await self._note("ready")

    async def sleep(self) -> None:
        await self._note("sleep")

    async def bring(self, weights: WeightsRef) -> None:
        await self._note("weights")
        self.version = weights.policy_version

    def nodes(self) -> tuple[str, ...]:
        return (f"node of {self.name}",)

    def close(self) -> None: ...


def fleet_of(
    *,
    alternate: bool = True,
    failing: set[str] | None = None,
    losing: set[str] | None = None,
    max_failures: int = 5,
    source: Any = None,
) -> tuple[GeneratorFleet, list[str]]:
    events: list[str] = []

    def make(number: int) -> GeneratorClient:
        return cast(GeneratorClient, FakeGenerator(number, events, failing or set(), losing or set()))

    failures = FailureLog(FaultsConfig(max_failures=max_failures))
    shifts = GPUShifts(alternate=alternate)
    context = RunContext(deadlines=DeadlineConfig(), failures=failures)
    return GeneratorFleet(make, num_generators=2, context=context, source=source, shifts=shifts), events


def weights(policy_version: int) -> WeightsRef:
    return WeightsRef(policy_version=policy_version, location=())


def test_generators_sleep_before_the_learners_work_and_load_weights_after() -> None:
    async def run() -> list[str]:
        fleet, events = fleet_of()
        assert await fleet.nodes() == ("node of generator-0", "node of generator-1")  # which starts them
        await fleet.start()  # they have started
        async with fleet.away():
            publishing = asyncio.create_task(fleet.publish(weights(1)))
            await asyncio.sleep(0.01)
            events.append("learners")
        await publishing
        assert fleet.versions == (1, 1)
        return events

    events = asyncio.run(run())
    assert events.pop(4) == "learners"
    names = ["generator-0", "generator-1"]
    assert events == [f"{what} {name}" for what in ("ready", "sleep", "weights") for name in names]


def test_where_memory_is_divided_nobody_waits_or_sleeps() -> None:
    async def run() -> list[str]:
        fleet, events = fleet_of(alternate=False)
        async with fleet.away():
            await asyncio.wait_for(fleet.publish(weights(1)), timeout=5)
        return events

    assert asyncio.run(run()) == ["weights generator-0", "weights generator-1"]


def test_learners_wait_for_all_work_of_the_generators_and_go_on_together() -> None:
    async def run() -> list[str]:
        shifts, order = GPUShifts(alternate=True), list[str]()
        ends = [asyncio.Event(), asyncio.Event()]

        async def work(side: Any, name: str, end: asyncio.Event | None = None) -> None:
            async with shifts.shift(side):
                order.append(f"{name} begins")
                await (asyncio.sleep(0.01) if end is None else end.wait())
                order.append(f"{name} ends")

        tasks = [asyncio.create_task(work("generators", f"sampling {i}", end)) for i, end in enumerate(ends)]
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(work("learners", f"command {i}")) for i in range(2)]
        for end in ends:
            await asyncio.sleep(0.01)
            end.set()
        await asyncio.gather(*tasks)
        return order

    assert asyncio.run(run()) == [
        "sampling 0 begins",
        "sampling 1 begins",
        "sampling 0 ends",
        "sampling 1 ends",
        "command 0 begins",
        "command 1 begins",
        "command 0 ends",
        "command 1 ends",
    ]


def test_a_cancelled_or_failed_turn_is_over() -> None:
    async def sample(shifts: GPUShifts) -> None:
        async with shifts.shift("generators"):
            pass

    async def fail(shifts: GPUShifts) -> None:
        async with shifts.shift("learners"):
            waiting = asyncio.create_task(sample(shifts))
            await asyncio.sleep(0)
            waiting.cancel()
            raise RuntimeError("out of memory")

    async def run() -> None:
        shifts = GPUShifts(alternate=True)
        with pytest.raises(RuntimeError, match="out of memory"):
            await fail(shifts)
        await asyncio.wait_for(sample(shifts), timeout=5)

    asyncio.run(run())


def test_a_generator_that_dies_asleep_comes_back_when_the_learners_are_through() -> None:
    async def run() -> list[str]:
        fleet, events = fleet_of(failing={"sleep generator-1"})
        async with fleet.away():
            await asyncio.sleep(0.01)
            assert len(fleet.versions) == 1
            events.append("learners")
        while len(fleet.versions) < 2:
            await asyncio.sleep(0.01)
        return events

    assert asyncio.run(run()) == ["sleep generator-0", "learners", "ready generator-1"]


def test_lost_weights_are_published_again_by_learners_that_work_for_it() -> None:
    async def run() -> list[str]:
        class Learners:
            async def republish(self) -> WeightsRef:
                async with fleet.away():  # as new ranks do, which train again what came after the last checkpoint
                    events.append("learners")
                return weights(1)

        fleet, events = fleet_of(losing={"weights generator-0"}, source=Learners())
        await asyncio.wait_for(fleet.publish(weights(1)), timeout=5)
        assert fleet.versions == (1, 1)
        return events

    assert asyncio.run(run())[-2:] == ["learners", "weights generator-0"]


def test_too_many_that_do_not_sleep_end_the_run() -> None:
    async def run() -> None:
        fleet, _ = fleet_of(failing={"sleep generator-0"}, max_failures=0)
        async with fleet.away():
            pass

    with pytest.raises(TooManyFailures):
        asyncio.run(run())
