"""A clock for the wall time of a run: seconds in which each kind of work was under way."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PHASES = ("planning", "prompt_states", "sampling", "reward", "gradient_norms", "update", "sync")


class PhaseClock:
    """Seconds in which at least one piece of work of a phase was under way, and `idle` ones in which none was at all.

    Phases overlap in an asynchronous run, so together they may come to more than the time that has passed.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._under_way: dict[str, int] = dict.fromkeys(PHASES, 0)
        self.restart()

    def restart(self) -> None:
        """Count from now on; work under way goes on."""
        self._start = self._since = self._clock()
        self._seconds: dict[str, float] = dict.fromkeys((*PHASES, "idle"), 0.0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Work of a phase, which may be done several times at once."""
        self._count()
        self._under_way[name] += 1
        try:
            yield
        finally:
            self._count()
            self._under_way[name] -= 1

    def seconds(self) -> dict[str, float]:
        """By phase, since the last restart."""
        self._count()
        return dict(self._seconds)

    @property
    def under_way(self) -> tuple[str, ...]:
        """The phases with work under way."""
        return tuple(name for name in PHASES if self._under_way[name])

    @property
    def elapsed(self) -> float:
        """Seconds since the last restart."""
        return self._clock() - self._start

    def _count(self) -> None:
        now = self._clock()
        busy = self.under_way or ("idle",)
        for name in busy:
            self._seconds[name] += now - self._since
        self._since = now
