"""Serving an engine: callers share its batches, new weights come between two steps, errors reach who asked."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gvm_ray.config.engine import InFlightPolicy
from gvm_ray.engines.server import EngineServer
from gvm_ray.exceptions import SystemFailure
from gvm_ray.protocols import Engine
from tests.counting_engine import CountingEngine, collect, request, weights


def served(scenario: Callable[[EngineServer, CountingEngine], Any], *, in_flight: InFlightPolicy = "keep") -> Any:
    engine = CountingEngine()
    assert isinstance(engine, Engine)

    async def run() -> Any:
        return await asyncio.wait_for(scenario(EngineServer(lambda: engine, in_flight=in_flight), engine), timeout=20)

    return asyncio.run(run())


def test_each_request_is_answered_as_soon_as_it_is_finished() -> None:
    async def scenario(server: EngineServer, engine: CountingEngine) -> Any:
        engine.permits.release(5)
        return await collect(server, request("long", 5, 1), request("short", 2), request("none"))

    assert served(scenario) == [("none", []), ("short", [[-1, -1]]), ("long", [[-1] * 5, [-1]])]


def test_callers_share_batches_and_one_thread() -> None:
    async def scenario(server: EngineServer, engine: CountingEngine) -> Any:
        first = asyncio.create_task(collect(server, request("a", 4)))
        await asyncio.sleep(0.05)  # its request is under way, waiting for a permit
        second = asyncio.create_task(collect(server, request("b", 2)))
        await asyncio.sleep(0.05)
        engine.permits.release(8)
        return await asyncio.gather(first, second), engine.largest_batch, len(engine.threads)

    answers, largest_batch, num_threads = served(scenario)
    assert [names[0][0] for names in answers] == ["a", "b"]
    assert largest_batch == 2
    assert num_threads == 1


async def change_weights_midway(server: EngineServer, engine: CountingEngine) -> Any:
    await server.load_weights(1, weights(1))
    early = asyncio.create_task(collect(server, request("early", 4)))
    await asyncio.sleep(0.05)
    loading = asyncio.create_task(server.load_weights(2, weights(2)))
    await asyncio.sleep(0.05)
    late = asyncio.create_task(collect(server, request("late", 2)))
    await asyncio.sleep(0.05)
    engine.permits.release(20)
    return await early, await loading, await late


def test_keep_goes_on_with_new_weights_from_the_next_token() -> None:
    early, loaded, late = served(change_weights_midway)
    assert early == [("early", [[1, 2, 2, 2]])]  # the step under way when they came was the old version's
    assert loaded == 2
    assert late == [("late", [[2, 2]])]


def test_finish_ends_what_is_under_way_and_holds_back_what_comes_later() -> None:
    early, loaded, late = served(change_weights_midway, in_flight="finish")
    assert early == [("early", [[1, 1, 1, 1]])]
    assert loaded == 2
    assert late == [("late", [[2, 2]])]


def test_older_weights_are_not_loaded_again() -> None:
    async def scenario(server: EngineServer, engine: CountingEngine) -> list[int]:
        answers = [await server.load_weights(3, weights(3))]
        answers += await asyncio.gather(server.load_weights(5, weights(5)), server.load_weights(5, weights(99)))
        answers.append(await server.load_weights(2, weights(99)))
        return [*answers, engine.policy_version]

    assert served(scenario) == [3, 5, 5, 5, 5]


def test_a_refused_request_harms_no_other() -> None:
    async def scenario(server: EngineServer, engine: CountingEngine) -> Any:
        good = asyncio.create_task(collect(server, request("good", 3)))
        await asyncio.sleep(0.05)
        engine.permits.release(6)
        with pytest.raises(ValueError, match="bad prompt"):
            await collect(server, request("bad", 1))
        return await good

    assert served(scenario) == [("good", [[-1, -1, -1]])]


def test_a_failing_engine_fails_every_request_under_way_and_serves_the_next() -> None:
    async def scenario(server: EngineServer, engine: CountingEngine) -> Any:
        engine.fail_step = True
        waiting = [asyncio.create_task(collect(server, request(name, 3))) for name in "ab"]
        await asyncio.sleep(0.05)
        engine.permits.release(2)
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        engine.fail_step = False
        engine.permits.release(5)
        return [str(error) for error in errors], await collect(server, request("c", 1))

    assert served(scenario) == (["out of memory"] * 2, [("c", [[-1]])])


def test_weights_that_do_not_load_are_an_error_of_who_brought_them() -> None:
    async def scenario(server: EngineServer, engine: CountingEngine) -> Any:
        with pytest.raises(ValueError, match="wrong weights"):
            await server.load_weights(1, weights(7))
        engine.permits.release(1)
        return await collect(server, request("a", 1))

    assert served(scenario) == [("a", [[-1]])]


def test_a_reset_ends_every_call_and_versions_count_anew() -> None:
    async def scenario(server: EngineServer, engine: CountingEngine) -> Any:
        await server.load_weights(7, weights(7))
        engine.permits.release(1)
        waiting = [asyncio.create_task(collect(server, request("long", 5), request("short", 1)))]
        await asyncio.sleep(0.05)  # one of its requests is answered, the other waits for a permit
        waiting.append(asyncio.create_task(collect(server, request("late", 1))))
        waiting.append(asyncio.create_task(server.load_weights(8, weights(8))))
        await asyncio.sleep(0.05)
        resetting = asyncio.create_task(server.reset())
        await asyncio.sleep(0.05)
        engine.permits.release(1)  # the step under way ends, and then the engine is reset
        await resetting
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        versions = [await server.policy_version(), await server.load_weights(0, weights(0))]
        engine.permits.release(2)
        return [str(error) for error in errors], versions, await collect(server, request("new", 2)), len(engine.threads)

    errors, versions, answers, num_threads = served(scenario)
    assert [error.split(" before ")[0] for error in errors] == ["the engine was reset"] * 3
    assert versions == [-1, 0]
    assert answers == [("new", [[0, 0]])]
    assert num_threads == 1


def test_a_reset_reaches_requests_that_the_engine_is_just_taking_in() -> None:
    async def scenario(server: EngineServer, engine: CountingEngine) -> Any:
        engine.adding.clear()
        waiting = asyncio.create_task(collect(server, request("a", 2)))
        await asyncio.sleep(0.05)
        resetting = asyncio.create_task(server.reset())
        await asyncio.sleep(0.05)
        engine.adding.set()
        await resetting
        with pytest.raises(SystemFailure, match="reset before this request was answered"):
            await waiting
        engine.permits.release(1)
        return await collect(server, request("b", 1))

    assert served(scenario) == [("b", [[-1]])]


def test_an_engine_that_nobody_waits_for_is_reset_as_well() -> None:
    async def scenario(server: EngineServer, engine: CountingEngine) -> int:
        await server.load_weights(3, weights(3))
        await server.reset()
        return await server.load_weights(2, weights(2))

    assert served(scenario) == 2


def test_an_engine_that_does_not_start_says_why_each_time() -> None:
    def create() -> Engine:
        raise ValueError("no such model")

    async def run() -> None:
        server = EngineServer(create, in_flight="keep")
        for _ in range(2):
            with pytest.raises(ValueError, match="no such model"):
                await server.policy_version()
        with pytest.raises(ValueError, match="no such model"):
            await collect(server, request("a", 1))

    asyncio.run(run())
