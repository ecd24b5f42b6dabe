"""A generator pool's groups without a reward pool: the chunks are fetched and described here."""

import asyncio
from collections.abc import Callable
from typing import Any

import ray

from gvm_ray.actors.generator_pool import GeneratorPool
from gvm_ray.actors.waiting import wait_for
from gvm_ray.types import GroupOutcome, GroupRef, RolloutGroup, SampleRequest, SamplingParameters


async def sample(
    pool: GeneratorPool, requests: list[SampleRequest], sampling: SamplingParameters
) -> list[RolloutGroup]:
    """The groups in order of the requests; one that was split has several."""

    async def describe(chunk: ray.ObjectRef) -> list[GroupOutcome]:
        """Raises what a reward pool raises for a chunk that is an error: an object that is lost is sampled again."""
        groups: tuple[RolloutGroup, ...] = await wait_for(chunk, timeout_s=60.0, what="fetching a chunk", setting="-")
        return [GroupOutcome.of(group, ref=GroupRef(ref=groups, index=i)) for i, group in enumerate(groups)]

    outcomes = await pool.sample(requests, sampling, score=describe)
    return [outcome.ref.ref[outcome.ref.index] for outcome in outcomes]


def sample_groups(
    pool: GeneratorPool,
    requests: list[SampleRequest],
    sampling: SamplingParameters,
    *,
    run: Callable[[Any], Any] = asyncio.run,
) -> list[RolloutGroup]:
    """`sample`, for a caller without an event loop; `run` is that of an `asyncio.Runner` where one is shared."""
    return run(sample(pool, requests, sampling))
