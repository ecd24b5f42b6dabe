"""Benchmark of allocation: plans for a thousand to a million prompts, a whole step of `gvm_pool`, and memory."""

import itertools
import json
import sys
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gvm_ray.allocators import AllocationDriver
from gvm_ray.allocators.gvm_pool import GVMPoolAllocatorConfig
from gvm_ray.allocators.uniform import UniformAllocatorConfig
from gvm_ray.lab.speed.suite import BenchOptions, BenchRow, compare
from gvm_ray.maths.allocation import apportion, gvm_weights
from gvm_ray.types import (
    Allocation,
    AllocationReport,
    Counts,
    Float64Array,
    FloatArray,
    GroupOutcome,
    GroupRef,
    Prompt,
)

SAMPLES_PER_PROMPT = 8
_PROMPTS_PER_STEP = 10_000  # where memory is measured
_COUNTS_BYTES = 24  # three float64
HIDDEN_SIZE = 1536  # of a 1.5B model


def measure(options: BenchOptions) -> Iterator[BenchRow]:
    """Measure milliseconds from prompts to an `Allocation`, against a proportional numpy split that is rounded down."""
    sizes = (10**3, 10**4) if options.quick else (10**3, 10**4, 10**5, 10**6)
    for num_prompts in sizes:
        repeats = 3 if num_prompts >= 10**5 else 9
        prompts = make_prompts(num_prompts)
        for name, plan in plans(prompts).items():
            ours, bare = compare(plan, lambda: rounded_down(prompts), repeats=repeats)  # noqa: B023
            yield BenchRow(
                name=f"{name}, {num_prompts:,} prompts",
                value=ours * 1e3,
                unit="ms",
                floor=bare * 1e3,
                floor_name="numpy split, rounded down (loses up to a sample per prompt)",
                higher_is_better=False,
            )
    yield from pool_rows(options)
    yield from memory_rows(sizes[-1])


def memory_rows(num_prompts: int) -> list[BenchRow]:
    """Measure what a driver keeps of sampled prompts, and how far memory rises while that is made ready to save."""
    tracemalloc.start()
    try:
        driver = AllocationDriver.of(UniformAllocatorConfig(), accept_threshold=0.5)
        for number, first in enumerate(range(0, num_prompts, _PROMPTS_PER_STEP)):
            _uniform_step(driver, range(first, min(first + _PROMPTS_PER_STEP, num_prompts)), number=number)
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        json.dumps(driver.state_dict())
        peak = tracemalloc.get_traced_memory()[1] - kept
    finally:
        tracemalloc.stop()
    floor = sum(sys.getsizeof(f"prompt-{i}") for i in range(num_prompts)) + _COUNTS_BYTES * num_prompts
    return [
        BenchRow(
            name=f"{name}, {num_prompts:,} prompts",
            value=num_bytes / num_prompts,
            unit="bytes a prompt",
            floor=floor / num_prompts,
            floor_name="the ids, and three numbers for each",
            higher_is_better=False,
        )
        for name, num_bytes in (("driver's memory", kept), ("driver's memory as JSON, peak", peak))
    ]


def _uniform_step(driver: AllocationDriver, numbers: Iterable[int], *, number: int) -> None:
    """Plan and observe one sample of each prompt of a step, whose ids are then the driver's alone."""
    (prompt,), outcome = make_prompts(1), _outcome("", rewards=np.ones(1))
    prompts = [replace(prompt, prompt_id=f"prompt-{i}") for i in numbers]
    allocation = driver.plan(prompts, step=number, budget=len(prompts))
    driver.observe([replace(outcome, prompt_id=prompt_id) for prompt_id in allocation.counts], step=number)
    driver.report(step=number)


def pool_rows(options: BenchOptions) -> list[BenchRow]:
    """Measure milliseconds of a step of `gvm_pool`: predict, select, size, and learn from the outcomes."""
    rows = []
    for num_prompts in (128,) if options.quick else (128, 1024):
        step, states = pool_step(num_prompts)
        vector = np.ones(states.shape[1], dtype=states.dtype)
        ours, bare = compare(step, lambda: states @ vector, repeats=5)  # noqa: B023
        rows.append(
            BenchRow(
                name=f"gvm_pool's step, {num_prompts:,} prompts of {len(states):,}, hidden size {HIDDEN_SIZE:,}",
                value=ours * 1e3,
                unit="ms",
                floor=bare * 1e3,
                floor_name="states @ vector: one pass over the candidates",
                higher_is_better=False,
            )
        )
    return rows


def pool_step(num_prompts: int) -> tuple[Callable[[], AllocationReport], FloatArray]:
    """Return a function that runs the next step of `gvm_pool`, with 4 candidates for each sample, and their states."""
    prompts = make_prompts(4 * SAMPLES_PER_PROMPT * num_prompts)
    rng = np.random.default_rng(0)
    states = rng.normal(size=(len(prompts), HIDDEN_SIZE)).astype(np.float32)
    accept_rates = {
        prompt.prompt_id: rate for prompt, rate in zip(prompts, rng.uniform(size=len(prompts)), strict=True)
    }
    config = GVMPoolAllocatorConfig(candidates_per_step=len(prompts))
    driver = AllocationDriver.of(config, accept_threshold=0.5)
    numbers = itertools.count()

    def step() -> AllocationReport:
        number = next(numbers)
        allocation = driver.plan(prompts, step=number, budget=SAMPLES_PER_PROMPT * num_prompts, states=states)
        driver.observe(
            [
                _outcome(prompt_id, rewards=(rng.uniform(size=count) < accept_rates[prompt_id]).astype(np.float64))
                for prompt_id, count in allocation.sampled()
            ],
            step=number,
        )
        return driver.report(step=number)

    return step, states


def _outcome(prompt_id: str, *, rewards: Float64Array) -> GroupOutcome:
    n = len(rewards)
    return GroupOutcome(
        prompt_id=prompt_id,
        sample_indices=tuple(range(n)),
        rewards=rewards,
        num_tokens=np.full(n, 512, dtype=np.int32),
        policy_versions=np.zeros(n, dtype=np.int32),
        truncated=np.zeros(n, dtype=np.bool_),
        ref=GroupRef(ref=None, index=0),
    )


def make_prompts(num_prompts: int) -> list[Prompt]:
    """Create prompts that differ only in their ids."""
    token_ids = np.zeros(1, dtype=np.int32)
    return [Prompt(prompt_id=f"prompt-{i}", text="", token_ids=token_ids, answer="") for i in range(num_prompts)]


def plans(prompts: list[Prompt]) -> dict[str, Callable[[], Allocation]]:
    """Functions to time: uniform's plan, and GVM's decision after its pilots, at accept rates spread over [0, 1]."""
    rng = np.random.default_rng(0)
    accept_rates, gradient_norms = rng.uniform(size=len(prompts)), rng.lognormal(size=len(prompts))
    budget = SAMPLES_PER_PROMPT * len(prompts)
    uniform, numbers = AllocationDriver.of(UniformAllocatorConfig(), accept_threshold=0.5), itertools.count()

    def gvm(minimum: int) -> Allocation:
        weights = gvm_weights(accept_rates, gradient_norms, alpha=1e-3, beta=2.0)
        sizes = apportion(weights, budget=budget, minimum=minimum)
        return Allocation(counts=Counts([prompt.prompt_id for prompt in prompts], sizes))

    def plan() -> Allocation:
        return uniform.plan(prompts, step=next(numbers), budget=budget)

    return {"uniform plan": plan, "gvm decision": partial(gvm, 0), "gvm decision, n of at least 4": partial(gvm, 4)}


def rounded_down(prompts: list[Prompt]) -> dict[str, int]:
    """Compute equal shares, each rounded down, without bounds; the sum may stay below the budget."""
    weights = np.ones(len(prompts))
    budget = SAMPLES_PER_PROMPT * len(prompts)
    counts: NDArray[np.int64] = np.floor(weights * (budget / weights.sum())).astype(np.int64)
    return dict(zip([prompt.prompt_id for prompt in prompts], counts.tolist(), strict=True))
