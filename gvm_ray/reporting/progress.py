"""Progress on the console: one line a step, and lines by time of a long piece of work."""

import math
import time
from collections.abc import Callable

from tqdm import tqdm

from gvm_ray.types import Metrics


def step_line(step: int, *, num_steps: int, metrics: Metrics, step_s: float) -> str:
    """The console line of one step.

    Args:
        step: index of the step, from 0.
        num_steps: steps of the whole run.
        metrics: the step's metrics, with all of the reporter's REQUIRED_KEYS.
        step_s: seconds since the line before.
    """
    parts = [
        f"step {step + 1:>{len(str(num_steps))}}/{num_steps}",
        f"reward {metrics['reward/mean']:.3f}",
        *([f"eval {accuracy_text(metrics['eval/accuracy'])}"] if "eval/accuracy" in metrics else []),
        f"tokens {short_count(metrics['cost/generated_tokens'])}",
        *([f"useful {metrics['tokens/useful_fraction']:.0%}"] if "tokens/useful_fraction" in metrics else []),
        f"n {metrics['allocation/min']:.0f}-{metrics['allocation/max']:.0f} ({metrics['allocation/zero']:.0f} zero)",
        f"stale {metrics['staleness/mean']:.1f}",
        f"dlogp {metrics['logprob_difference/mean']:.1e}",
        f"{step_s:.1f} s",
    ]
    return "  ".join(parts)


def accuracy_text(accuracy: float | None) -> str:
    """0.5 as 0.500; `unknown` where no sample was scored."""
    return "unknown" if accuracy is None or math.isnan(accuracy) else f"{accuracy:.3f}"


def short_count(count: float) -> str:
    """1234 as 1.23k, 2500000 as 2.5M; three digits are kept."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if math.isfinite(count) and count >= limit:
            return f"{count / limit:.3g}{suffix}"
    return f"{count:.0f}"


def short_duration(seconds: float) -> str:
    """45 as 45 s, 150 as 2.5 min, 7200 as 2 h; three digits are kept."""
    for limit, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if math.isfinite(seconds) and seconds >= limit:
            return f"{seconds / limit:.3g} {unit}"
    return f"{seconds:.3g} s"


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
