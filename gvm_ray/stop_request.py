"""SIGTERM and Ctrl-C: the first ends a run after the current step, with a checkpoint; the second ends it at once."""

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from gvm_ray.exceptions import RunStopped

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """A request to end a run early. It receives signals only in the main thread, as Python does."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._in_steps = False
        self._main: asyncio.Task[object] | None = None

    @property
    def is_set(self) -> bool:
        """True if the current step is the last one."""
        return self.signal is not None

    def set(self, number: int) -> None:
        """Request the end, as a signal with this number does."""
        again, self.signal = self.signal is not None, signal.Signals(number)
        if self._main is not None and (again or not self._in_steps):
            self._main.cancel()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen for signals during the block, which runs in the event loop's main task.

        Raises:
            RunStopped: a signal ended the block.
        """
        self._main = asyncio.current_task()
        loop = asyncio.get_running_loop()
        is_main_thread = threading.current_thread() is threading.main_thread()
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        for number in _SIGNALS if is_main_thread else ():
            loop.add_signal_handler(number, self.set, number)
        try:
            yield
        except (asyncio.CancelledError, BaseExceptionGroup):
            if self.signal is None:
                raise
        finally:
            for number in _SIGNALS if is_main_thread else ():
                loop.remove_signal_handler(number)
                signal.signal(number, before[number])
        if self.signal is not None:
            raise RunStopped(self.signal)

    @contextmanager
    def steps(self) -> Iterator[None]:
        """Mark a block in which steps run: the first signal waits for the current step; elsewhere it ends the run."""
        self._in_steps = True
        try:
            yield
        finally:
            self._in_steps = False
