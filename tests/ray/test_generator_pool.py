"""The generator pool over a local cluster: sharing out, publishing through the object store, restarts, deadlines."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from tiny_models import build_tiny_model, changed_weights, make_prompt, make_request

from gvm_ray.actors.generator import GeneratorPool, assign
from gvm_ray.actors.weight_sync import fetch, publish
from gvm_ray.config.run import DeadlineConfig, EngineConfig
from gvm_ray.engines import create_engine
from gvm_ray.exceptions import DeadlineExceeded, ModelError
from gvm_ray.types import RolloutGroup, SampleRequest, SamplingParameters

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
        deadlines=DeadlineConfig(start_s=300, sync_s=120, sample_s=120),
    )
    asyncio.run(pool.start())
    yield pool
    pool.close()


def requests_of(counts: list[int]) -> list[SampleRequest]:
    return [make_request(make_prompt(f"{i}+1="), num_samples=n, first_seed=100 * i) for i, n in enumerate(counts)]


def tokens_by_position(pool: GeneratorPool, requests: list[SampleRequest]) -> dict[int, list[list[int]]]:
    """Position of a request -> its samples' tokens, pieces of split requests in order of generators."""
    result: dict[int, list[list[int]]] = {}
    for ref, positions in pool.sample(requests, SAMPLING):
        groups: tuple[RolloutGroup, ...] = ray.get(ref, timeout=120)
        for position, group in zip(positions, groups, strict=True):
            assert group.prompt.prompt_id == requests[position].prompt.prompt_id
            assert group.rewards is None
            result.setdefault(position, []).extend(c.token_ids.tolist() for c in group.completions)
    return result


def test_shares_are_balanced_and_complete() -> None:
    requests = requests_of([1, 7, 3, 0, 5, 2])
    shares = assign(requests, num_generators=2)
    assert [[position for position, _ in share] for share in shares] == [[1, 3, 5], [0, 2, 4]]
    assert [sum(len(r.seeds) for _, r in share) for share in shares] == [9, 9]
    assert sorted(position for share in shares for position, _ in share) == [0, 1, 2, 3, 4, 5]


def test_a_request_above_an_even_share_is_split() -> None:
    shares = assign(requests_of([10, 2]), num_generators=3)  # an even share is 4
    assert [[(position, len(r.seeds)) for position, r in share] for share in shares] == [
        [(0, 4)],
        [(0, 4)],
        [(0, 2), (1, 2)],
    ]
    pieces = [r for share in shares for position, r in share if position == 0]
    assert [seed for piece in pieces for seed in piece.seeds] == list(range(10))
    assert [index for piece in pieces for index in piece.sample_indices] == list(range(10))


def test_no_requests_no_work(pool: GeneratorPool) -> None:
    assert pool.sample([], SAMPLING) == []


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
    expected = engine.generate(requests, SAMPLING)
    assert [after[i] for i in range(4)] == [[c.token_ids.tolist() for c in group] for group in expected]

    for index in range(2):
        ray.kill(ray.get_actor(f"generator-{index}", namespace="gvm_ray"), no_restart=False)
    assert tokens_by_position(pool, requests) == after


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


def test_waiting_for_a_version_that_never_comes_ends_at_its_deadline(pool: GeneratorPool, model_path: str) -> None:
    impatient = GeneratorPool(
        EngineConfig(type="transformers", cpus_per_generator=1000),  # never placed
        kind="transformers",
        model_path=model_path,
        max_model_len=64,
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
        deadlines=DeadlineConfig(start_s=120),
        name="missing",
    )
    try:
        with pytest.raises(ModelError, match="nothing"):
            asyncio.run(missing.start())
    finally:
        missing.close()
