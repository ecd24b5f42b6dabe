"""Deciding who gets how many samples, from a thousand prompts to a million."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gvm_ray.allocators import UniformAllocator
from gvm_ray.allocators.counts import sum_by_prompt
from gvm_ray.bench.rows import BenchRow
from gvm_ray.bench.suite import BenchOptions
from gvm_ray.bench.timing import compare
from gvm_ray.functional.allocation import apportion, gvm_weights
from gvm_ray.types import Allocation, Prompt

SAMPLES_PER_PROMPT = 8


def measure(options: BenchOptions) -> list[BenchRow]:
    """Milliseconds from prompts to an `Allocation`, beside a proportional split in numpy that is rounded down."""
    sizes = (10**3, 10**4) if options.quick else (10**3, 10**4, 10**5, 10**6)
    rows = []
    for num_prompts in sizes:
        repeats = 3 if num_prompts >= 10**5 else 9
        prompts = make_prompts(num_prompts)
        for name, plan in plans(prompts).items():
            ours, bare = compare(plan, lambda: rounded_down(prompts), repeats=repeats)  # noqa: B023
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


def make_prompts(num_prompts: int) -> list[Prompt]:
    """Prompts that differ in their ids."""
    token_ids = np.zeros(1, dtype=np.int32)
    return [Prompt(prompt_id=f"prompt-{i}", text="", token_ids=token_ids, answer="") for i in range(num_prompts)]


def plans(prompts: list[Prompt]) -> dict[str, Callable[[], Allocation]]:
    """Uniform's plan; and GVM's decision after its pilots, at accept rates spread over [0, 1]."""
    rng = np.random.default_rng(0)
    accept_rates, gradient_norms = rng.uniform(size=len(prompts)), rng.lognormal(size=len(prompts))
    budget = SAMPLES_PER_PROMPT * len(prompts)
    strategy = UniformAllocator(accept_threshold=0.5)

    def gvm() -> Allocation:
        weights = gvm_weights(accept_rates, gradient_norms, alpha=1e-3, beta=2.0)
        counts = apportion(weights, budget=budget)
        return Allocation(counts=sum_by_prompt([prompt.prompt_id for prompt in prompts], counts))

    return {"uniform plan": lambda: next(strategy.rounds(prompts, step=0, budget=budget)), "gvm decision": gvm}


def rounded_down(prompts: list[Prompt]) -> dict[str, int]:
    """Equal shares, each rounded down: no bounds, and a sum that may stay below the budget."""
    weights = np.ones(len(prompts))
    budget = SAMPLES_PER_PROMPT * len(prompts)
    counts: NDArray[np.int64] = np.floor(weights * (budget / weights.sum())).astype(np.int64)
    return dict(zip([prompt.prompt_id for prompt in prompts], counts.tolist(), strict=True))
