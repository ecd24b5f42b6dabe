"""A run made step by step, under the control of the calling program."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from gvm_ray.config import RunConfig
from gvm_ray.loop import StepResult, is_over
from gvm_ray.reporting import Callback
from gvm_ray.run import Job, first_of, opened, steps


class Trainer:
    """Runs the same job as `train`, but makes each step when `step` is called.

    Sampling continues between two steps, as far ahead as in any run.

        with Trainer(config) as trainer:
            for result in trainer:
                print(result.step, result.metrics["reward/mean"])
        print(trainer.summary)

    Leaving the block before the last step ends the run at once. It can be resumed from its last checkpoint; with
    `checkpoint.every_steps` = 1 that is the last step made.
    """

    def __init__(
        self, config: RunConfig, *, resume: bool = False, overwrite: bool = False, callbacks: Sequence[Callback] = ()
    ) -> None:
        """See `train`."""
        self.summary: dict[str, Any] | None = None  # after the last step: the result of `train`
        self._config = config
        self._arguments: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "callbacks": callbacks}
        self._has_all_steps = False
        self._stack = ExitStack()
        self._job: Job | None = None
        self._steps: AsyncGenerator[StepResult | None] | None = None
        self._asked: asyncio.Task[Any] | None = None  # the call of `step` under way

    def __enter__(self) -> "Trainer":
        """Start the system, and return once it is up.

        Raises:
            UserError, SystemFailure: as in `train`.
        """
        with ExitStack() as stack:
            self._job = stack.enter_context(opened(self._config, **self._arguments))
            self._loop = stack.enter_context(_EventLoopThread())
            self._steps = steps(self._job)
            stack.callback(self._end)
            self._next()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._stack:
            if kind is None and self._has_all_steps:
                self.step()

    def step(self) -> StepResult | None:
        """Make the next step; returns None if the run is over.

        If a failure sends the run back to its last checkpoint, the steps since then are returned again.

        Raises:
            SystemFailure: a part of the system failed.
        """
        result = self._next()
        while result is None and not self._is_over:  # the system came up again after a failure
            result = self._next()
        return result

    def __iter__(self) -> Iterator[StepResult]:
        """Make all remaining steps, and yield each one."""
        while (result := self.step()) is not None:
            yield result

    @property
    def _is_over(self) -> bool:
        return self._steps is None

    def _next(self) -> StepResult | None:
        """The generator's next result. At the end of the generator, None; `self._steps` is None from then on."""
        if self._steps is None:
            return None
        assert self._job is not None
        try:
            with self._job.folder.disk_errors():
                result = self._loop.run(self._ask(self._steps))
        except BaseExceptionGroup as group:
            raise first_of(group) from group  # its message is for the user
        self.summary = self._job.summary
        if result is not None:
            self._has_all_steps = is_over(self._config, result.step + 1, result.metrics)
        return result

    def _end(self) -> None:
        """Close the generator of steps, if it is still open."""
        if self._steps is not None:
            self._loop.run(self._close(self._steps))
            self._steps = None

    # --- in the thread of the event loop ------------------------------------------------------------------------------
    async def _ask(self, generator: AsyncGenerator[StepResult | None]) -> StepResult | None:
        self._asked = asyncio.current_task()
        try:
            return await anext(generator)
        except StopAsyncIteration:
            self._steps = None
            return None

    async def _close(self, generator: AsyncGenerator[StepResult | None]) -> None:
        if self._asked is not None and not self._asked.done():  # the caller was interrupted in `step`
            self._asked.cancel()
            await asyncio.wait({self._asked})
        await generator.aclose()


class _EventLoopThread:
    """Context with an event loop in a thread, which keeps running between the caller's calls."""

    def __enter__(self) -> "_EventLoopThread":
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="run")
        self._thread.start()
        return self

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine and return its result. If this wait is interrupted, the coroutine continues."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()
