"""The generator's side of a transfer: at rest from start to finish, in order, by one world, spoiled by half of it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest

from gvm_ray.config.engine import InFlightPolicy
from gvm_ray.engines.server import EngineServer
from gvm_ray.engines.weight_receiver import WeightReceiver
from gvm_ray.exceptions import ActorFailure, SystemFailure, TransferBroken
from gvm_ray.types import FinishUpdate, JoinWorld, ReceiveWeights, StartUpdate, TransferPhase
from tests.counting_engine import SAMPLING, CountingEngine, request

JOIN = JoinWorld(generation=1, init_info={"world_size": 2})
START = StartUpdate(generation=1, policy_version=5, silence_s=20.0)
RECEIVE = ReceiveWeights(generation=1, update_info={"names": ["w"]})
FINISH = FinishUpdate(generation=1, policy_version=5, checksum="right")
ALL = (JOIN, START, RECEIVE, RECEIVE, FINISH)


class ReceivingEngine(CountingEngine):
    """Writes down what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.checksums: Sequence[str] = ("right", "right")
        self.fail_receive = False
        for _ in range(1000):
            self.permits.release()

    def join_world(self, init_info: Mapping[str, Any]) -> None:
        assert init_info == {"world_size": 2}
        self.calls.append("join")

    def start_update(self) -> None:
        self.calls.append("start")

    def receive_weights(self, update_info: Mapping[str, Any]) -> None:
        self.calls += update_info["names"]
        if self.fail_receive:
            raise RuntimeError("the connection was lost")

    def finish_update(self, policy_version: int) -> Sequence[str]:
        self.calls.append("finish")
        self.policy_version = policy_version
        return self.checksums

    def step(self) -> Any:
        self.calls.append("step")
        return super().step()


class Generator:
    """An engine, its server and its receiver."""

    def __init__(self, in_flight: InFlightPolicy) -> None:
        self.engine = ReceivingEngine()
        self.server = EngineServer(lambda: self.engine, in_flight=in_flight)
        self.receiver = WeightReceiver(self.server, name="generator-3")

    async def take(self, *phases: TransferPhase) -> None:
        for phase in phases:
            await self.receiver.take(phase)

    async def versions(self, length: int) -> list[int]:
        """Of a sample's tokens."""
        async for _, (completion,) in self.server.sample([request("p", length)], SAMPLING):
            return completion.policy_versions.tolist()
        raise AssertionError("no answer")


def played(scenario: Callable[[Generator], Awaitable[None]], *, in_flight: InFlightPolicy = "keep") -> Generator:
    async def play() -> Generator:
        generator = Generator(in_flight)
        await asyncio.wait_for(scenario(generator), timeout=20)
        return generator

    return asyncio.run(play())


def test_weights_that_come_are_used_under_their_version() -> None:
    async def scenario(generator: Generator) -> None:
        await generator.take(*ALL)
        assert await generator.server.policy_version() == 5
        assert await generator.server.load_weights(5, lambda: pytest.fail("it has them")) == 5
        assert await generator.versions(2) == [5, 5]
        await generator.take(START, RECEIVE, FINISH)  # by the same connection

    generator = played(scenario)
    assert [call for call in generator.engine.calls if call != "step"] == [
        *["join", "start", "w", "w", "finish"],
        *["start", "w", "finish"],
    ]


def test_no_step_is_made_and_nothing_is_loaded_between_start_and_finish() -> None:
    async def scenario(generator: Generator) -> None:
        await generator.take(JOIN, START)
        sampling = asyncio.create_task(generator.versions(3))
        loading = asyncio.create_task(generator.server.load_weights(4, lambda: [("w", 4)]))
        await asyncio.sleep(0.1)
        await generator.take(RECEIVE)
        assert "step" not in generator.engine.calls
        await generator.take(FINISH)
        assert await sampling == [5, 5, 5]
        assert await loading == 5  # what came meanwhile is newer

    played(scenario)


def test_finish_ends_samples_under_their_weights_first() -> None:
    async def scenario(generator: Generator) -> None:
        engine = generator.engine
        while engine.permits.acquire(blocking=False):
            pass
        await generator.take(JOIN)
        sampling = asyncio.create_task(generator.versions(2))
        await asyncio.sleep(0.05)
        starting = asyncio.create_task(generator.take(START))
        await asyncio.sleep(0.05)
        assert not starting.done()
        for _ in range(10):
            engine.permits.release()
        await starting
        assert await sampling == [-1, -1]
        await generator.take(RECEIVE, FINISH)

    played(scenario, in_flight="finish")


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ((START,), "generator-3 is connected to world None, but the weights are sent by world 1"),
        ((JOIN, RECEIVE), "generator-3 was sent weights by world 1 before an update was started"),
        ((JOIN, FINISH), "before an update was started"),
        ((JOIN, StartUpdate(generation=2, policy_version=5, silence_s=9.0)), "connected to world 1, .* by world 2"),
    ],
)
def test_phases_that_are_not_due_are_refused_and_harm_nothing(phases: tuple[TransferPhase, ...], message: str) -> None:
    async def scenario(generator: Generator) -> None:
        with pytest.raises(ActorFailure, match=message):
            await generator.take(*phases)
        assert await generator.versions(1) == [-1]

    played(scenario)


def test_other_weights_than_were_sent_are_never_sampled_from() -> None:
    async def scenario(generator: Generator) -> None:
        generator.engine.checksums = ("right", "wrong")
        with pytest.raises(SystemFailure, match=r"generator-3 received other .* version 5: .* wrong instead of right"):
            await generator.take(*ALL)
        with pytest.raises(SystemFailure, match="received other weights"):
            await generator.versions(1)

    assert "step" not in played(scenario).engine.calls


async def _fail_in_receive(generator: Generator) -> None:
    generator.engine.fail_receive = True
    with pytest.raises(TransferBroken, match="to generator-3 stopped halfway: RuntimeError: the connection was lost"):
        await generator.take(*ALL)


async def _connect_again_halfway(generator: Generator) -> None:
    with pytest.raises(TransferBroken, match="set up a new connection before all weights were sent"):
        await generator.take(JOIN, START, JOIN)


async def _start_twice(generator: Generator) -> None:
    with pytest.raises(TransferBroken, match="began another update before all weights were sent"):
        await generator.take(JOIN, START, START)


async def _fall_silent(generator: Generator) -> None:
    await generator.take(JOIN, StartUpdate(generation=1, policy_version=5, silence_s=0.1))
    await asyncio.sleep(0.3)


@pytest.mark.parametrize("half", [_fail_in_receive, _connect_again_halfway, _start_twice, _fall_silent])
def test_half_a_policy_is_never_sampled_from(half: Callable[[Generator], Awaitable[None]]) -> None:
    async def scenario(generator: Generator) -> None:
        await half(generator)
        with pytest.raises(TransferBroken, match="transfer of new weights to generator-3 stopped halfway"):
            await generator.versions(1)
        with pytest.raises(TransferBroken):
            await generator.server.load_weights(6, lambda: [("w", 6)])

    assert "step" not in played(scenario).engine.calls
