"""Two ways of doing one thing, timed fairly: in one process, in alternation, by medians."""

import time
from collections.abc import Callable
from statistics import median


def compare(ours: Callable[[], object], bare: Callable[[], object], *, repeats: int) -> tuple[float, float]:
    """Median seconds of one call of each.

    Both are called once unmeasured, then `repeats` times in turn, so that whatever else the machine does meets both
    alike.

    Raises:
        ValueError: `repeats` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats} measures nothing; write 1 or more")
    ours()
    bare()
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for function, measured in zip((ours, bare), seconds, strict=True):
            start = time.perf_counter()
            function()
            measured.append(time.perf_counter() - start)
    return median(seconds[0]), median(seconds[1])
