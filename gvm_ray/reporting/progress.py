"""Lines by time: how far a long piece of work is, and about how long the rest of it takes."""

import time
from collections.abc import Callable

from tqdm import tqdm

from gvm_ray.reporting.console import short_duration

EVERY_S = 10.0


class ProgressLines:
    """At most one line every so many seconds, and none of the end, which the work itself tells.

    Args:
        name: of the work, which begins each line.
        total: pieces of it; None where that isn't known.
        say: given each line; default: the console, below which a progress bar stays where it is.
        every_s: seconds between two lines.
        clock: seconds.
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
        """So many more pieces are done."""
        self.at(self._done + number, note=note)

    def at(self, done: int, *, note: str = "") -> None:
        """So many pieces are done in all, fewer than before where it was begun again; `note` is of the last of them."""
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
