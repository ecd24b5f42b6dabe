"""A run step by step, under the control of the program that asks for the steps."""

import asyncio
import queue
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from gvm_ray.config import RunConfig
from gvm_ray.exceptions import RunStopped
from gvm_ray.loop import System, is_over
from gvm_ray.protocols import Learners
from gvm_ray.reporting import Callback
from gvm_ray.run import train
from gvm_ray.types import Metrics, TrainBatch, UpdateResult


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """A completed step."""

    step: int  # from 0
    metrics: Metrics  # as in metrics.jsonl


class Trainer:
    """The run of `train`, but each policy update waits for `step`.

    With max_staleness = 0 nothing happens between two steps; above it sampling goes on, as far ahead as in any run.

        with Trainer(config) as trainer:
            for result in trainer:
                print(result.step, result.metrics["reward/mean"])
        print(trainer.summary)

    Leaving the block before the last step ends the run at once; it can be resumed from its last checkpoint, which is
    that of the last step where `checkpoint.every_steps` is 1.
    """

    def __init__(
        self, config: RunConfig, *, resume: bool = False, overwrite: bool = False, callbacks: Sequence[Callback] = ()
    ) -> None:
        """See `train`."""
        self.summary: dict[str, Any] | None = None  # after the last step: what `train` returns
        self._arguments: dict[str, Any] = {"config": config, "resume": resume, "overwrite": overwrite}
        self._callbacks = callbacks
        self._permits = threading.Semaphore(0)
        self._results: queue.Queue[StepResult | None] = queue.Queue()  # None is the last
        self._error: BaseException | None = None  # what ended the run early
        self._has_all_steps = False
        self._started = threading.Event()
        self._running: tuple[asyncio.AbstractEventLoop, System] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="run")

    def __enter__(self) -> "Trainer":
        """Return when the system is up.

        Raises:
            UserError, SystemFailure: as `train` does.
        """
        self._thread.start()
        self._started.wait()
        if self._running is None:
            self._end()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._running is not None and not self._has_all_steps:
            loop, system = self._running
            with suppress(RuntimeError):  # it ended meanwhile
                for _ in range(2):  # the second one doesn't wait for the step under way
                    loop.call_soon_threadsafe(system.stop.set, signal.SIGTERM)
            self._permits.release()
        if kind is None:
            self._end()
        self._thread.join()

    def step(self) -> StepResult | None:
        """Make the next step; None where the run is over.

        Where a failure sends the run back to its last checkpoint, the steps since then come again.

        Raises:
            SystemFailure: a part of the system failed.
        """
        if self._results.empty() and not self._thread.is_alive():
            return None
        self._permits.release()
        result = self._results.get()
        if result is None:
            self._end()
        return result

    def __iter__(self) -> Iterator[StepResult]:
        """The steps that are left."""
        while (result := self.step()) is not None:
            yield result

    def _end(self) -> None:
        """Wait for the end of the run, and raise what ended it, unless that was the caller."""
        self._thread.join()
        error, self._error = self._error, None
        if error is not None and not isinstance(error, RunStopped):
            raise error

    # --- in the run's thread ------------------------------------------------------------------------------------------
    def _run(self) -> None:
        try:
            callbacks = [*self._callbacks, self._completed]
            self.summary = train(**self._arguments, callbacks=callbacks, arrange=self._arrange)
        except BaseException as error:
            self._error = error
        self._results.put(None)
        self._started.set()

    def _arrange(self, system: System) -> System:
        self._running = (asyncio.get_running_loop(), system)
        self._started.set()
        return replace(system, learners=_OnPermit(system.learners, self._permits))

    def _completed(self, step: int, metrics: Metrics) -> None:
        self._has_all_steps = is_over(self._arguments["config"], step + 1, metrics)
        self._results.put(StepResult(step=step, metrics=metrics))


class _OnPermit:
    """Learners whose updates wait for a permit each."""

    def __init__(self, learners: Learners, permits: threading.Semaphore) -> None:
        self._learners = learners
        self._permits = permits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._learners, name)

    async def update(self, batch: TrainBatch) -> UpdateResult:
        await asyncio.to_thread(self._permits.acquire)
        return await self._learners.update(batch)
