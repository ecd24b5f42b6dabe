"""Asynchronous generators: tasks beside them, and running them to their end."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Iterable
from contextlib import aclosing
from types import TracebackType
from typing import Any, TypeVar

Result = TypeVar("Result")


class Background:
    """Tasks that end with the context: their first error is raised by `guard`, or at the end.

    An `asyncio.TaskGroup` belongs to the one task that opened it. The steps of a generator may be asked for by several
    tasks, and between two steps none of them is inside it.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def create_task(self, coroutine: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Begin a task."""
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        return task

    async def guard(self, awaitable: Awaitable[Result]) -> Result:
        """The result of the awaitable, which is cancelled where a task fails first.

        Raises:
            Exception: the task's error, or that of the awaitable.
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
        """Wait for the tasks; after an error cancel them first."""
        try:
            while error is None and self._tasks:
                done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
                self._raise_first(done)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _raise_first(self, done: Iterable[asyncio.Future[Any]]) -> None:
        """Forget tasks that have ended; raise an error of theirs."""
        for task in done:
            self._tasks -= {task}
            if not task.cancelled():
                task.result()


async def drain(steps: AsyncGenerator[Any]) -> None:
    """Run a generator to its end."""
    async with aclosing(steps):
        async for _ in steps:
            pass
