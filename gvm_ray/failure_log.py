"""The log of failures that a run recovers from: counts and reports them, and ends the run after too many."""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable

from gvm_ray.config.run import FaultsConfig
from gvm_ray.exceptions import TooManyFailures
from gvm_ray.types import Metrics

logger = logging.getLogger(__name__)
details = logging.getLogger(f"{__name__}.details")  # full causes, for a file: too long for the console
details.setLevel(logging.INFO)
details.propagate = False

_RAYS_GUESSES = " Some common causes include"  # Ray's text after this is the same for every process that dies


class FailureLog:
    """Records every failure before its recovery begins, so that no part is restarted forever."""

    def __init__(self, config: FaultsConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._recent: deque[tuple[float, str]] = deque()  # (time, part)
        self._counts: Counter[str] = Counter()

    def record(self, part: str, cause: BaseException | str) -> None:
        """Count a failure of a part, such as "generator-0".

        Raises:
            TooManyFailures: more than `max_failures` failures happened within `window_s`.
        """
        details.info("%s failed: %s", part, cause)
        now = self._clock()
        self._counts[part] += 1
        self._recent.append((now, part))
        while now - self._recent[0][0] > self._config.window_s:
            self._recent.popleft()
        if len(self._recent) > self._config.max_failures:
            parts = ", ".join(f"{name} {count} times" for name, count in Counter(p for _, p in self._recent).items())
            raise TooManyFailures(
                f"{len(self._recent)} failures within {self._config.window_s:g} s, more than "
                f"faults.max_failures={self._config.max_failures}: {parts}; the last one: {in_short(cause)}"
            )
        logger.warning("%s failed and is replaced: %s", part, in_short(cause))

    @property
    def metrics(self) -> Metrics:
        """`faults/total`: the number of failures of all parts since the start."""
        return {"faults/total": float(self._counts.total())}

    @property
    def counts(self) -> Counter[str]:
        """The number of failures of each part since the start."""
        return self._counts.copy()


def in_short(cause: BaseException | str) -> str:
    """A failure on one line: the first line of its message, and the last, which has the cause."""
    lines = [line.partition(_RAYS_GUESSES)[0].strip() for line in str(cause).splitlines()]
    lines = [line for line in lines if line and not (line.startswith("(rank ") and line.endswith(")"))]
    return " ".join(dict.fromkeys((lines[0], lines[-1]))) if lines else type(cause).__name__
