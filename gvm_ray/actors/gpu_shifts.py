"""Shifts on GPUs shared by learners and generators, for when both together don't fit into GPU memory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

Side = Literal["learners", "generators"]


class GPUShifts:
    """Alternation of two sides: calls of one side run together, and those of the other side wait until all have ended.

    Inside a shift, never wait for work of the other side: that would deadlock.

    Args:
        alternate: whether the sides take shifts; otherwise both work at once.
    """

    def __init__(self, *, alternate: bool) -> None:
        self.alternate = alternate
        self._side: Side | None = None
        self._num_at_work = 0
        self._free = asyncio.Event()
        self._free.set()

    @asynccontextmanager
    async def shift(self, side: Side) -> AsyncIterator[None]:
        """Hold the GPUs for this side until the context ends."""
        if not self.alternate:
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
