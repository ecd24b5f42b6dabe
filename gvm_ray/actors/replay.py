"""Parts whose state lives in other processes, and is made again after these died: by doing again what made it."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from gvm_ray.exceptions import ActorDied, ActorFailure, DeadlineExceeded
from gvm_ray.failure_log import FailureLog

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Done(Generic[T]):
    """A command that changed the part's state."""

    command: Callable[[T], Awaitable[Any]]
    step: int | None


class Replayed(Generic[T]):
    """A part with a journal of the commands that made its state; a replacement is given them again, in order.

    What they give back then is dropped, for it was used already. So the part must do the same for the same commands.

    Args:
        part: the first one.
        name: of the part, in logs and errors.
        replace: ends a part, whatever is left of it, and makes a new one.
        start: returns once a new part is ready for commands.
        failures: counts them, and ends the run where there are too many.
    """

    def __init__(
        self,
        part: T,
        *,
        name: str,
        replace: Callable[[T], Awaitable[T]],
        start: Callable[[T], Awaitable[None]],
        failures: FailureLog,
    ) -> None:
        self._part = part
        self._name = name
        self._replace = replace
        self._start = start
        self._failures = failures
        self._journal: list[_Done[T]] = []
        self._replacing = asyncio.Lock()

    @property
    def part(self) -> T:
        """The present one."""
        return self._part

    async def do(self, command: Callable[[T], Awaitable[Any]], *, changes_state: bool, step: int | None = None) -> Any:
        """What the command gives back; given again to a replacement where the part dies or hangs.

        Args:
            command: asks the part for something.
            changes_state: whether a replacement needs it too.
            step: the training step that it belongs to, see `restart_journal`.

        Raises:
            ActorFailure: the command failed by itself, twice; a peer's death may look like that the first time.
            TooManyFailures: more of them than the run puts up with.
        """
        raised_before = False
        while True:
            async with self._replacing:  # wait until a replacement is complete
                part = self._part
            try:
                answer = await command(part)
            except (ActorFailure, DeadlineExceeded) as error:
                if not isinstance(error, ActorDied | DeadlineExceeded):
                    if raised_before:
                        raise
                    raised_before = True
                await self._recover(part, error)
                continue
            if part is self._part or not changes_state:
                break  # else it was replaced meanwhile, by one that doesn't know of this command
        if changes_state:
            self._journal.append(_Done(command=command, step=step))
        return answer

    def restart_journal(self, first: Callable[[T], Awaitable[Any]], *, open_steps: Collection[int] = ()) -> None:
        """`first` gives a replacement the present state, so earlier commands are dropped, but those of open steps."""
        kept = [done for done in self._journal if done.step in open_steps]
        self._journal = [_Done(command=first, step=None), *kept]

    async def _recover(self, failed: T, cause: BaseException) -> None:
        async with self._replacing:
            if self._part is not failed:  # another command's failure has led to its replacement
                return
            while True:
                self._failures.record(self._name, cause)
                self._part = await self._replace(self._part)
                try:
                    await self._start(self._part)
                    for done in self._journal:
                        await done.command(self._part)
                except (ActorDied, DeadlineExceeded) as error:
                    cause = error
                else:
                    return
