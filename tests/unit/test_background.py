"""Tasks beside a generator: their errors come out in its steps, and none outlives it."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from gvm_ray.background import Background, drain


async def fail(message: str) -> None:
    await asyncio.sleep(0)
    raise RuntimeError(message)


def test_work_is_cancelled_when_a_task_fails() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("work")

    async def run() -> None:
        async with Background() as background:
            background.create_task(fail("beside"))
            await background.guard(work())

    with pytest.raises(RuntimeError, match="beside"):
        asyncio.run(run())
    assert ended == ["work"]


def test_tasks_that_end_well_or_are_cancelled_disturb_nothing() -> None:
    async def run() -> int:
        async with Background() as background:
            background.create_task(asyncio.sleep(0))
            background.create_task(asyncio.sleep(60)).cancel()

            async def work() -> int:
                await asyncio.sleep(0.01)
                return 3

            return await background.guard(work())

    assert asyncio.run(run()) == 3


def test_the_end_waits_for_the_tasks_and_raises_their_error() -> None:
    done: list[int] = []

    async def late() -> None:
        await asyncio.sleep(0.01)
        done.append(1)

    async def run(*, failing: bool) -> None:
        async with Background() as background:
            background.create_task(late())
            if failing:
                background.create_task(fail("at the end"))

    asyncio.run(run(failing=False))
    assert done == [1]
    with pytest.raises(RuntimeError, match="at the end"):
        asyncio.run(run(failing=True))


def test_steps_may_be_asked_for_by_several_tasks_and_closing_ends_what_goes_on_beside() -> None:
    ended: list[str] = []

    async def beside() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("beside")

    async def steps() -> AsyncGenerator[int]:
        async with Background() as background:
            background.create_task(beside())
            for number in range(9):
                await background.guard(asyncio.sleep(0))
                yield number

    async def run() -> list[int]:
        generator = steps()
        seen = [await asyncio.create_task(anext(generator)) for _ in range(3)]  # type: ignore[arg-type]
        await generator.aclose()
        return seen

    assert asyncio.run(run()) == [0, 1, 2]
    assert ended == ["beside"]


def test_draining_runs_to_the_end_and_lets_errors_out() -> None:
    async def steps() -> AsyncGenerator[int]:
        yield 1
        raise RuntimeError("the second step")

    with pytest.raises(RuntimeError, match="the second step"):
        asyncio.run(drain(steps()))
