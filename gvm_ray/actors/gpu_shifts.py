"""Shifts on GPUs that learners and generators share, where both at once don't fit into the memory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

Side = Literal["learners", "generators"]


class GPUShifts:
    """The work of one side runs together; the other side's waits until it has ended.

    Don't wait for the other side's work inside a shift.

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
        """The GPUs are this side's until the context ends."""
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
