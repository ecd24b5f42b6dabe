"""The generator pool over a local cluster: sharing out, publishing through the object store, restarts, deadlines."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from tiny_groups import sample, sample_groups
from tiny_models import build_tiny_model, changed_weights, make_prompt, make_request

from gvm_ray.actors.generator_pool import GeneratorPool
from gvm_ray.actors.weight_sync import fetch, publish
from gvm_ray.config.run import DeadlineConfig, EngineConfig
from gvm_ray.engines import create_engine, generate
from gvm_ray.exceptions import DeadlineExceeded, ModelError
from gvm_ray.types import GroupOutcome, GroupRef, RolloutGroup, SampleRequest, SamplingParameters

pytestmark = pytest.mark.ray

SAMPLING = SamplingParameters(temperature=1.0, max_tokens=12)
CONFIG = EngineConfig(type="transformers", num_generators=2, max_num_seqs=16)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_tiny_model(tmp_path_factory.mktemp("model"), tied=True)


@pytest.fixture(scope="module")
def pool(ray_cluster: None, model_path: str) -> Iterator[GeneratorPool]:
    pool = GeneratorPool(
        CONFIG,
        kind="transformers",
        model_path=model_path,
        max_model_len=64,
        max_tokens=12,
        deadlines=DeadlineConfig(start_s=300, sync_s=120, sample_s=120),
    )
    asyncio.run(pool.start())
    yield pool
    pool.close()


def requests_of(counts: list[int]) -> list[SampleRequest]:
    return [make_request(make_prompt(f"{i}+1="), num_samples=n, first_seed=100 * i) for i, n in enumerate(counts)]


def tokens_by_position(pool: GeneratorPool, requests: list[SampleRequest]) -> list[list[list[int]]]:
    """The tokens of each request's samples, in order."""
    groups = sample_groups(pool, requests, SAMPLING)
    assert all(group.rewards is None for group in groups)
    tokens = {request.prompt.prompt_id: list[list[int]]() for request in requests}
    for group in groups:
        tokens[group.prompt.prompt_id].extend(c.token_ids.tolist() for c in group.completions)
    return list(tokens.values())


def test_no_requests_no_work(pool: GeneratorPool) -> None:
    assert sample_groups(pool, [], SAMPLING) == []


def test_weights_survive_the_object_store(ray_cluster: None, model_path: str) -> None:
    weights = changed_weights(model_path, seed=3)
    ref = publish(weights.items(), policy_version=4, bucket_bytes=2**14)
    assert ref.policy_version == 4
    assert len(ref.location) > 1
    fetched = dict(fetch(ref))
    assert fetched.keys() == weights.keys()
    assert all(torch.equal(fetched[name], weights[name]) for name in weights)


def test_published_weights_reach_every_generator_and_survive_a_restart(pool: GeneratorPool, model_path: str) -> None:
    requests = requests_of([4, 4, 4, 4])
    before = tokens_by_position(pool, requests)
    weights = changed_weights(model_path, seed=3)
    asyncio.run(pool.publish(publish(weights.items(), policy_version=1)))
    assert pool.versions == (1, 1)
    after = tokens_by_position(pool, requests)
    assert after != before

    engine = create_engine("transformers", model_path, config=CONFIG, max_model_len=64)
    engine.load_weights(1, weights.items())
    expected = generate(engine, requests, SAMPLING)
    assert after == [[c.token_ids.tolist() for c in group] for group in expected]

    for index in range(2):
        ray.kill(ray.get_actor(f"generator-{index}", namespace="gvm_ray"), no_restart=False)
    assert tokens_by_position(pool, requests) == after


def test_what_a_dying_generator_left_is_sampled_again_and_nothing_twice(pool: GeneratorPool) -> None:
    requests = [make_request(make_prompt(f"{i}*2="), num_samples=12, first_seed=50 * i) for i in range(12)]
    expected = tokens_by_position(pool, requests)

    async def scenario() -> tuple[list[RolloutGroup], int]:
        chunks = 0

        async def describe(chunk: ray.ObjectRef) -> list[GroupOutcome]:
            nonlocal chunks
            groups: tuple[RolloutGroup, ...] = await chunk
            chunks += 1
            if chunks == 1:  # the first groups are there, most others under way
                ray.kill(ray.get_actor("generator-0", namespace="gvm_ray"), no_restart=False)
            return [GroupOutcome.of(group, ref=GroupRef(ref=groups, index=i)) for i, group in enumerate(groups)]

        outcomes = await pool.sample(requests, SAMPLING, score=describe)
        return [outcome.ref.ref[outcome.ref.index] for outcome in outcomes], chunks

    groups, num_chunks = asyncio.run(scenario())
    assert num_chunks > 2  # streamed, not one for each generator
    assert [group.prompt.prompt_id for group in groups] == [request.prompt.prompt_id for request in requests]
    assert [[c.token_ids.tolist() for c in group.completions] for group in groups] == expected


def test_new_weights_arrive_while_samples_are_under_way(pool: GeneratorPool, model_path: str) -> None:
    long = SamplingParameters(temperature=1.0, max_tokens=48)
    requests = [make_request(make_prompt("5+5="), num_samples=40, first_seed=9)]
    version = pool.versions[0]

    async def scenario() -> list[RolloutGroup]:
        sampling = asyncio.create_task(sample(pool, requests, long))
        await asyncio.sleep(0.1)
        await pool.publish(publish(changed_weights(model_path, seed=5).items(), policy_version=version + 1))
        assert not sampling.done(), "the publish came too late to be seen"
        return await sampling

    groups = asyncio.run(scenario())
    versions = [completion.policy_versions for group in groups for completion in group.completions]
    assert all((np.diff(each) >= 0).all() for each in versions)
    assert {int(v) for each in versions for v in each} <= {version, version + 1}
    assert any(len(set(each.tolist())) == 2 for each in versions)


def test_waiting_for_a_version_ends_with_its_publish(pool: GeneratorPool, model_path: str) -> None:
    async def scenario() -> list[str]:
        events: list[str] = []

        async def wait() -> None:
            await pool.wait_for_version(9)
            events.append("waited")

        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0.05)
        events.append("publishing")
        await pool.publish(publish(changed_weights(model_path, seed=9).items(), policy_version=9))
        await waiting
        await pool.wait_for_version(3)  # an older one: at once
        return events

    assert asyncio.run(scenario()) == ["publishing", "waited"]


def test_a_reset_pool_serves_another_run_whose_versions_count_anew(pool: GeneratorPool, model_path: str) -> None:
    requests = requests_of([4, 4, 4, 4])

    async def scenario() -> None:
        given_up = asyncio.create_task(sample(pool, [make_request(make_prompt("6+6="), num_samples=60)], SAMPLING))
        await asyncio.sleep(0.1)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        await pool.reset()
        assert pool.versions == (-1, -1)
        assert await pool.ask(lambda engine: (engine.num_unfinished, engine.policy_version)) == [(0, -1)] * 2
        await pool.publish(publish(changed_weights(model_path, seed=3).items(), policy_version=0))

    asyncio.run(scenario())
    assert pool.versions == (0, 0)
    engine = create_engine("transformers", model_path, config=CONFIG, max_model_len=64)
    engine.load_weights(0, changed_weights(model_path, seed=3).items())
    expected = generate(engine, requests, SAMPLING)
    assert tokens_by_position(pool, requests) == [[c.token_ids.tolist() for c in group] for group in expected]


def test_waiting_for_a_version_that_never_comes_ends_at_its_deadline(pool: GeneratorPool, model_path: str) -> None:
    impatient = GeneratorPool(
        EngineConfig(type="transformers", cpus_per_generator=1000),  # never placed
        kind="transformers",
        model_path=model_path,
        max_model_len=64,
        max_tokens=12,
        deadlines=DeadlineConfig(start_s=0.2, update_s=0.05, sample_s=0.05, sync_s=0.05),
        name="impatient",
    )
    try:
        with pytest.raises(DeadlineExceeded, match="policy version 3"):
            asyncio.run(impatient.wait_for_version(3))
        with pytest.raises(DeadlineExceeded, match=r"deadlines\.start_s"):
            asyncio.run(impatient.start())
    finally:
        impatient.close()


def test_a_model_that_is_not_there_is_named(ray_cluster: None, tmp_path: Path) -> None:
    missing = GeneratorPool(
        EngineConfig(type="transformers"),
        kind="transformers",
        model_path=str(tmp_path / "nothing"),
        max_model_len=64,
        max_tokens=12,
        deadlines=DeadlineConfig(start_s=120),
        name="missing",
    )
    try:
        with pytest.raises(ModelError, match="nothing"):
            asyncio.run(missing.start())
    finally:
        missing.close()
