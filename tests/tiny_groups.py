"""A generator pool's groups without a reward pool: the chunks are fetched and described here."""

import asyncio

import numpy as np
import ray

from gvm_ray.actors.generator_pool import GeneratorPool
from gvm_ray.types import GroupOutcome, GroupRef, RolloutGroup, SampleRequest, SamplingParameters


def unscored_outcome(group: RolloutGroup, ref: GroupRef) -> GroupOutcome:
    """What a reward actor would say of the group, without rewards."""
    return GroupOutcome(
        prompt_id=group.prompt.prompt_id,
        sample_indices=group.sample_indices,
        rewards=np.full(len(group), np.nan),
        num_tokens=group.num_tokens,
        policy_versions=group.oldest_versions,
        truncated=group.truncated,
        ref=ref,
    )


async def sample(
    pool: GeneratorPool, requests: list[SampleRequest], sampling: SamplingParameters
) -> list[RolloutGroup]:
    """The groups in order of the requests; one that was split has several."""

    async def describe(chunk: ray.ObjectRef) -> list[GroupOutcome]:
        groups: tuple[RolloutGroup, ...] = await chunk
        return [unscored_outcome(group, GroupRef(ref=groups, index=i)) for i, group in enumerate(groups)]

    outcomes = await pool.sample(requests, sampling, score=describe)
    return [outcome.ref.ref[outcome.ref.index] for outcome in outcomes]


def sample_groups(
    pool: GeneratorPool, requests: list[SampleRequest], sampling: SamplingParameters
) -> list[RolloutGroup]:
    """`sample`, for a caller without an event loop."""
    return asyncio.run(sample(pool, requests, sampling))
