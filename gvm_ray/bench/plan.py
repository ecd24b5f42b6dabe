"""Deciding who gets how many samples, from a thousand prompts to a million."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gvm_ray.bench.rows import BenchRow
from gvm_ray.bench.suite import BenchOptions
from gvm_ray.bench.timing import compare
from gvm_ray.functional.allocation import apportion, gvm_weights

SAMPLES_PER_PROMPT = 8

Counts = NDArray[np.int64]


def measure(options: BenchOptions) -> list[BenchRow]:
    """Milliseconds of one decision of each strategy, beside numpy's proportional split that is rounded down."""
    sizes = (10**3, 10**4) if options.quick else (10**3, 10**4, 10**5, 10**6)
    rows = []
    for num_prompts in sizes:
        repeats = 3 if num_prompts >= 10**5 else 9
        for name, (decide, weigh) in strategies(num_prompts).items():
            budget = SAMPLES_PER_PROMPT * num_prompts
            ours, bare = compare(decide, lambda: rounded_down(weigh(), budget=budget), repeats=repeats)  # noqa: B023
            rows.append(
                BenchRow(
                    name=f"{name}, {num_prompts:,} prompts",
                    value=ours * 1e3,
                    unit="ms",
                    floor=bare * 1e3,
                    floor_name="numpy split, rounded down (loses up to a sample a prompt)",
                    higher_is_better=False,
                )
            )
    return rows


def strategies(num_prompts: int) -> dict[str, tuple[Callable[[], Counts], Callable[[], NDArray[np.float64]]]]:
    """Name -> (the decision, its weights alone), at 8 samples a prompt and accept rates spread over [0, 1]."""
    rng = np.random.default_rng(0)
    accept_rates = rng.uniform(size=num_prompts)
    gradient_norms = rng.lognormal(size=num_prompts)
    budget = SAMPLES_PER_PROMPT * num_prompts

    def uniform() -> NDArray[np.float64]:
        return np.ones(num_prompts)

    def gvm() -> NDArray[np.float64]:
        return gvm_weights(accept_rates, gradient_norms, alpha=1e-3, beta=2.0)

    return {
        "uniform": (lambda: apportion(uniform(), budget=budget), uniform),
        "gvm": (lambda: apportion(gvm(), budget=budget), gvm),
    }


def rounded_down(weights: NDArray[np.float64], *, budget: int) -> Counts:
    """Shares [P] in proportion to the weights, each rounded down: no bounds, and a sum somewhat below the budget."""
    return np.floor(weights * (budget / weights.sum())).astype(np.int64)
