"""One line a step: what a person watching the run needs; everything else is in the files."""

import math

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
