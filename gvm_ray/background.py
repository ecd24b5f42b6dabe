"""Asynchronous generators: background tasks beside them, and draining them."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Iterable
from contextlib import aclosing
from types import TracebackType
from typing import Any, TypeVar

Result = TypeVar("Result")


class Background:
    """Tasks that end with the context. Their first error is raised by `guard`, or when the context ends.

    An `asyncio.TaskGroup` can't be used: it belongs to the task that opened it. A generator's steps may be requested by
    different tasks, and between two steps no task is inside the generator.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def create_task(self, coroutine: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Start a task."""
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        return task

    async def guard(self, awaitable: Awaitable[Result]) -> Result:
        """Return the result of the awaitable; cancel it if a task fails first.

        Raises:
            Exception: the task's error, or the awaitable's own.
        """
        work = asyncio.ensure_future(awaitable)
        try:
            while True:
                done, _ = await asyncio.wait({work, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
                self._raise_first(done - {work})
                if work.done():
                    return work.result()
        finally:
            if not work.done():
                work.cancel()
                await asyncio.wait({work})

    async def __aenter__(self) -> "Background":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for the tasks to end; after an error, cancel them first."""
        try:
            while error is None and self._tasks:
                done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
                self._raise_first(done)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _raise_first(self, done: Iterable[asyncio.Future[Any]]) -> None:
        """Forget the tasks that have ended, and raise the first error among them."""
        for task in done:
            self._tasks -= {task}
            if not task.cancelled():
                task.result()


async def drain(steps: AsyncGenerator[Any]) -> None:
    """Run a generator to its end."""
    async with aclosing(steps):
        async for _ in steps:
            pass
