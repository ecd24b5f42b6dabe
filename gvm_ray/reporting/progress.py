"""Progress lines of long work at fixed intervals, with an estimate of the remaining time."""

import time
from collections.abc import Callable

from tqdm import tqdm

from gvm_ray.reporting.console import short_duration

EVERY_S = 10.0


class ProgressLines:
    """Prints at most one line every `every_s` seconds, and none at the end, which the work itself reports.

    Args:
        name: name of the work, at the start of each line.
        total: number of pieces of work; None if unknown.
        say: called with each line; by default it prints to the console, above a progress bar.
        every_s: seconds between two lines.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        name: str,
        total: int | None,
        *,
        say: Callable[[str], None] = tqdm.write,
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._total = total
        self._say = say
        self._every_s = every_s
        self._clock = clock
        self._done = 0
        self._start = self._latest = clock()

    def add(self, number: int = 1, *, note: str = "") -> None:
        """Record that `number` more pieces are done."""
        self.at(self._done + number, note=note)

    def at(self, done: int, *, note: str = "") -> None:
        """Record that `done` pieces are done in total, or fewer than before if the work restarted. `note` describes the
        latest piece."""
        now = self._clock()
        if done < self._done:
            self._start = now
        self._done = done
        if now - self._latest < self._every_s or done == self._total:
            return
        self._latest = now
        parts = [f"{self._name} {done:,}" + ("" if self._total is None else f"/{self._total:,}")]
        if note:
            parts.append(note)
        if self._total is not None and 0 < done < self._total:
            left = (now - self._start) / done * (self._total - done)
            parts.append(f"about {short_duration(round(left))} left")
        self._say("  ".join(parts))
