"""Turns on GPUs that learners and generators share, where there is no room for both at work."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

Side = Literal["learners", "generators"]


class GPUTurns:
    """Work of one side goes on together; that of the other side waits for its end.

    Work that waits for the other side's is not to hold a turn meanwhile.

    Args:
        apart: whether the sides take turns; else both go on at once.
    """

    def __init__(self, *, apart: bool) -> None:
        self.apart = apart
        self._side: Side | None = None
        self._num_at_work = 0
        self._free = asyncio.Event()
        self._free.set()

    @asynccontextmanager
    async def take(self, side: Side) -> AsyncIterator[None]:
        """The GPUs are this side's until the context ends."""
        if not self.apart:
            yield
            return
        while self._side not in (None, side):
            await self._free.wait()
        self._side = side
        self._num_at_work += 1
        self._free.clear()
        try:
            yield
        finally:
            self._num_at_work -= 1
            if not self._num_at_work:
                self._side = None
                self._free.set()
