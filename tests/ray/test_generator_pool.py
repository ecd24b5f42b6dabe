"""The generator pool over a local cluster: sharing out, publishing through the object store, restarts, deadlines."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from tiny_groups import sample, sample_groups
from tiny_models import build_tiny_model, changed_weights, make_prompt

from gvm_ray.actors.context import RunContext
from gvm_ray.actors.generator_pool import GeneratorPool
from gvm_ray.actors.weight_sync import fetch, publish
from gvm_ray.config.engine import EngineConfig
from gvm_ray.config.run import DeadlineConfig, FaultsConfig
from gvm_ray.engines import create_engine, generate
from gvm_ray.exceptions import DeadlineExceeded, ModelError
from gvm_ray.failure_log import FailureLog
from gvm_ray.types import GroupOutcome, GroupRef, ModelSpec, RolloutGroup, SampleRequest, SamplingParameters
from tests.builders import sample_request

pytestmark = pytest.mark.ray

SAMPLING = SamplingParameters(temperature=1.0, max_tokens=12)
CONFIG = EngineConfig(type="transformers", num_generators=2, max_num_seqs=16)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_tiny_model(tmp_path_factory.mktemp("model"), tied=True)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def failures() -> FailureLog:
    return FailureLog(FaultsConfig())


@pytest.fixture(scope="module")
def pool(ray_cluster: None, model_path: str, runner: asyncio.Runner, failures: FailureLog) -> Iterator[GeneratorPool]:
    pool = GeneratorPool(
        CONFIG,
        kind="transformers",
        max_tokens=12,
        model=ModelSpec(path=model_path, max_model_len=64),
        context=RunContext(deadlines=DeadlineConfig(start_s=300, sync_s=120, sample_s=120), failures=failures),
    )
    runner.run(pool.start())
    yield pool
    pool.close()


@pytest.fixture(autouse=True)
def all_are_back(pool: GeneratorPool, runner: asyncio.Runner) -> None:
    """What a test killed has restarted before the next one begins."""

    async def wait() -> None:
        while len(pool.versions) < 2:
            await asyncio.sleep(0.1)

    runner.run(asyncio.wait_for(wait(), timeout=120))


def requests_of(counts: list[int]) -> list[SampleRequest]:
    return [sample_request(make_prompt(f"{i}+1="), num_samples=n, first_seed=100 * i) for i, n in enumerate(counts)]


def tokens_by_position(
    pool: GeneratorPool, requests: list[SampleRequest], runner: asyncio.Runner
) -> list[list[list[int]]]:
    """The tokens of each request's samples, in order."""
    groups = sample_groups(pool, requests, SAMPLING, run=runner.run)
    assert all(group.rewards is None for group in groups)
    tokens = {request.prompt.prompt_id: list[list[int]]() for request in requests}
    for group in groups:
        tokens[group.prompt.prompt_id].extend(c.token_ids.tolist() for c in group.completions)
    return list(tokens.values())


def test_no_requests_no_work(pool: GeneratorPool, runner: asyncio.Runner) -> None:
    assert sample_groups(pool, [], SAMPLING, run=runner.run) == []


def test_weights_survive_the_object_store(ray_cluster: None, model_path: str, runner: asyncio.Runner) -> None:
    weights = changed_weights(model_path, seed=3)
    ref = publish(weights.items(), policy_version=4, bucket_bytes=2**14)
    assert ref.policy_version == 4
    assert len(ref.location) > 1
    fetched = dict(fetch(ref))
    assert fetched.keys() == weights.keys()
    assert all(torch.equal(fetched[name], weights[name]) for name in weights)


def test_published_weights_reach_every_generator_and_survive_a_restart(
    pool: GeneratorPool, model_path: str, runner: asyncio.Runner, failures: FailureLog
) -> None:
    requests = requests_of([4, 4, 4, 4])
    before = tokens_by_position(pool, requests, runner)
    weights = changed_weights(model_path, seed=3)
    runner.run(pool.publish(publish(weights.items(), policy_version=1)))
    assert pool.versions == (1, 1)
    after = tokens_by_position(pool, requests, runner)
    assert after != before

    engine = create_engine("transformers", ModelSpec(path=model_path, max_model_len=64), config=CONFIG)
    engine.load_weights(1, weights.items())
    expected = generate(engine, requests, SAMPLING)
    assert after == [[c.token_ids.tolist() for c in group] for group in expected]

    failures_before = failures.counts
    for index in range(2):
        ray.kill(ray.get_actor(f"generator-{index}", namespace="gvm_ray"), no_restart=False)
    for _ in range(100):  # a kill takes effect some time after it was asked for
        assert tokens_by_position(pool, requests, runner) == after
        if len(failures.counts - failures_before) == 2:
            break
    # On a busy machine a generator may be called once more before it is back, which counts too.
    assert (failures.counts - failures_before).keys() == {"generator-0", "generator-1"}


def test_what_a_dying_generator_left_is_sampled_again_and_nothing_twice(
    pool: GeneratorPool, runner: asyncio.Runner
) -> None:
    requests = [sample_request(make_prompt(f"{i}*2="), num_samples=12, first_seed=50 * i) for i in range(12)]
    expected = tokens_by_position(pool, requests, runner)

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

    groups, num_chunks = runner.run(scenario())
    assert num_chunks > 2  # streamed, not one for each generator
    assert [group.prompt.prompt_id for group in groups] == [request.prompt.prompt_id for request in requests]
    assert [[c.token_ids.tolist() for c in group.completions] for group in groups] == expected


def test_new_weights_arrive_while_samples_are_under_way(
    pool: GeneratorPool, model_path: str, runner: asyncio.Runner
) -> None:
    long = SamplingParameters(temperature=1.0, max_tokens=48)
    requests = [sample_request(make_prompt("5+5="), num_samples=400, first_seed=9)]  # far longer than a publish takes
    version = pool.versions[0]
    weights = publish(changed_weights(model_path, seed=5).items(), policy_version=version + 1)

    async def scenario() -> list[RolloutGroup]:
        sampling = asyncio.create_task(sample(pool, requests, long))
        await asyncio.sleep(0.1)
        await pool.publish(weights)
        assert not sampling.done(), "the publish came too late to be seen"
        return await sampling

    groups = runner.run(scenario())
    versions = [completion.policy_versions for group in groups for completion in group.completions]
    assert all((np.diff(each) >= 0).all() for each in versions)
    assert {int(v) for each in versions for v in each} <= {version, version + 1}
    assert any(len(set(each.tolist())) == 2 for each in versions)


def test_waiting_for_a_version_ends_with_its_publish(
    pool: GeneratorPool, model_path: str, runner: asyncio.Runner
) -> None:
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

    assert runner.run(scenario()) == ["publishing", "waited"]


def test_a_reset_pool_serves_another_run_whose_versions_count_anew(
    pool: GeneratorPool, model_path: str, runner: asyncio.Runner
) -> None:
    requests = requests_of([4, 4, 4, 4])

    async def scenario() -> None:
        given_up = asyncio.create_task(sample(pool, [sample_request(make_prompt("6+6="), num_samples=60)], SAMPLING))
        await asyncio.sleep(0.1)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        await pool.reset()
        assert pool.versions == (-1, -1)
        assert await pool.ask(lambda engine: (engine.num_unfinished, engine.policy_version)) == [(0, -1)] * 2
        await pool.publish(publish(changed_weights(model_path, seed=3).items(), policy_version=0))

    runner.run(scenario())
    assert pool.versions == (0, 0)
    engine = create_engine("transformers", ModelSpec(path=model_path, max_model_len=64), config=CONFIG)
    engine.load_weights(0, changed_weights(model_path, seed=3).items())
    expected = generate(engine, requests, SAMPLING)
    assert tokens_by_position(pool, requests, runner) == [[c.token_ids.tolist() for c in group] for group in expected]


def test_waiting_for_a_version_that_never_comes_ends_at_its_deadline(
    pool: GeneratorPool, model_path: str, runner: asyncio.Runner
) -> None:
    impatient = GeneratorPool(
        EngineConfig(type="transformers", cpus_per_generator=1000),  # never placed
        kind="transformers",
        max_tokens=12,
        model=ModelSpec(path=model_path, max_model_len=64),
        context=RunContext(
            deadlines=DeadlineConfig(start_s=0.2, update_s=0.05, sample_s=0.05, sync_s=0.05),
            failures=FailureLog(FaultsConfig()),
        ),
        name="impatient",
    )
    try:
        with pytest.raises(DeadlineExceeded, match="policy version 3"):
            runner.run(impatient.wait_for_version(3))
        with pytest.raises(DeadlineExceeded, match=r"deadlines\.start_s"):
            runner.run(impatient.start())
    finally:
        impatient.close()


def test_a_model_that_is_not_there_is_named(ray_cluster: None, tmp_path: Path, runner: asyncio.Runner) -> None:
    missing = GeneratorPool(
        EngineConfig(type="transformers"),
        kind="transformers",
        max_tokens=12,
        model=ModelSpec(path=str(tmp_path / "nothing"), max_model_len=64),
        context=RunContext(deadlines=DeadlineConfig(start_s=120), failures=FailureLog(FaultsConfig())),
        name="missing",
    )
    try:
        with pytest.raises(ModelError, match="nothing"):
            runner.run(missing.start())
    finally:
        missing.close()
