"""Generators that are killed, hang, lose the weights, come and go: what is sampled stays the same."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import ray
import torch
from tiny_groups import sample
from tiny_models import build_tiny_model, changed_weights, make_prompt

from gvm_ray.actors.context import RunContext
from gvm_ray.actors.generator_fleet import WeightSource
from gvm_ray.actors.generator_pool import GeneratorPool
from gvm_ray.actors.weight_sync import publish
from gvm_ray.config.engine import EngineConfig
from gvm_ray.config.run import DeadlineConfig, FaultsConfig
from gvm_ray.exceptions import TooManyFailures
from gvm_ray.failure_log import FailureLog
from gvm_ray.types import Delivery, GroupOutcome, ModelSpec, RolloutGroup, SamplingParameters, TransferWorld, WeightsRef
from tests.builders import sample_request

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.usefixtures("ray_cluster")]

SAMPLING = SamplingParameters(temperature=1.0, max_tokens=12)
REQUESTS = [sample_request(make_prompt(f"{i}*2="), num_samples=12, first_seed=50 * i) for i in range(12)]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_tiny_model(tmp_path_factory.mktemp("model"), tied=True)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@contextmanager
def generators(
    model_path: str,
    runner: asyncio.Runner,
    *,
    name: str,
    num: int = 2,
    sample_s: float = 60.0,
    sync_s: float = 60.0,
    max_failures: int = 9,
    source: WeightSource | None = None,
) -> Iterator[tuple[GeneratorPool, FailureLog]]:
    """A started pool whose generators hold version 1."""
    failures = FailureLog(FaultsConfig(max_failures=max_failures))
    pool = GeneratorPool(
        EngineConfig(type="transformers", num_generators=num, max_num_seqs=16),
        kind="transformers",
        max_tokens=12,
        model=ModelSpec(path=model_path, max_model_len=64),
        context=RunContext(deadlines=DeadlineConfig(start_s=240, sync_s=sync_s, sample_s=sample_s), failures=failures),
        source=source,
        name=name,
    )
    try:
        runner.run(pool.start())
        runner.run(pool.publish(publish(changed_weights(model_path, seed=3).items(), policy_version=1)))
        yield pool, failures
    finally:
        pool.close()


def pids(pool: GeneratorPool, runner: asyncio.Runner) -> list[int]:
    return runner.run(pool.ask(lambda engine: os.getpid()))


def tokens(groups: list[RolloutGroup]) -> dict[tuple[str, int], list[int]]:
    """By prompt and sample index; each must be there once."""
    items = [
        ((group.prompt.prompt_id, index), completion.token_ids.tolist())
        for group in groups
        for index, completion in zip(group.sample_indices, group.completions, strict=True)
    ]
    assert len(dict(items)) == len(items) == sum(len(request.seeds) for request in REQUESTS)
    return dict(items)


async def all_available(pool: GeneratorPool, num: int) -> None:
    while len(pool.versions) < num:
        await asyncio.sleep(0.1)


@pytest.mark.parametrize(("stop", "sample_s"), [(signal.SIGKILL, 60.0), (signal.SIGSTOP, 8.0)], ids=["killed", "hung"])
def test_the_others_do_the_work_and_the_lost_one_comes_back_up_to_date(
    model_path: str, runner: asyncio.Runner, stop: signal.Signals, sample_s: float
) -> None:
    with generators(model_path, runner, name=f"faulty-{stop.name}", sample_s=sample_s) as (pool, failures):
        expected = tokens(runner.run(sample(pool, REQUESTS, SAMPLING)))
        victim, other = pids(pool, runner)

        async def scenario() -> list[RolloutGroup]:
            under_way = asyncio.create_task(sample(pool, REQUESTS, SAMPLING))
            await asyncio.sleep(0.02)
            os.kill(victim, stop)
            groups = await under_way
            await pool.publish(publish(changed_weights(model_path, seed=4).items(), policy_version=2))
            await asyncio.wait_for(all_available(pool, 2), timeout=240)
            return groups

        assert tokens(runner.run(scenario())) == expected
        assert failures.counts == {f"faulty-{stop.name}-0": 1}
        assert pool.versions == (2, 2)
        now = pids(pool, runner)
        assert other in now
        assert victim not in now
        assert tokens(runner.run(sample(pool, REQUESTS, SAMPLING))) != expected  # it isn't the old weights that it has


def test_a_generator_that_dies_again_and_again_ends_the_run(model_path: str, runner: asyncio.Runner) -> None:
    with generators(model_path, runner, name="dying", num=1, max_failures=2) as (pool, _):

        async def describe(chunk: ray.ObjectRef) -> list[GroupOutcome]:
            """Each chunk is the generator's last, and is lost with it, however far its stream got."""
            await chunk
            ray.kill(ray.get_actor("dying-0", namespace="gvm_ray"), no_restart=False)
            return []

        with pytest.raises(TooManyFailures, match=r"3 failures .*max_failures=2: dying-0 3 times"):
            runner.run(pool.sample(REQUESTS, SAMPLING, score=describe))


@ray.remote(num_cpus=0)
class Publisher:
    """Publishes, and can die with what it published."""

    def publish(self, tensors: dict[str, torch.Tensor], policy_version: int) -> WeightsRef:
        return publish(tensors.items(), policy_version=policy_version)


class Republisher:
    """Takes the place of the learners, and publishes their weights again."""

    def __init__(self, model_path: str) -> None:
        self.model_path = model_path
        self.num_asked = 0

    async def republish(self) -> WeightsRef:
        self.num_asked += 1
        return publish(changed_weights(self.model_path, seed=3).items(), policy_version=2)

    async def send(self, weights: WeightsRef, world: TransferWorld) -> Delivery:
        raise AssertionError("its weights are stored")


@pytest.mark.parametrize("restarted", [False, True], ids=["while they restart", "once they are back"])
def test_weights_that_died_with_their_publisher_are_published_again(
    model_path: str, runner: asyncio.Runner, restarted: bool
) -> None:
    name, learners = f"bereft-{restarted}", Republisher(model_path)
    with generators(model_path, runner, name=name, num=2, source=learners) as (pool, failures):
        expected = tokens(runner.run(sample(pool, REQUESTS, SAMPLING)))

        async def scenario() -> list[RolloutGroup]:
            publisher = Publisher.remote()  # type: ignore[attr-defined]
            weights = await publisher.publish.remote(changed_weights(model_path, seed=3), 2)
            await pool.publish(weights)
            ray.kill(publisher)
            for pid in await pool.ask(lambda engine: os.getpid()):
                os.kill(pid, signal.SIGKILL)
            if restarted:  # a call then finds no dead actor, only weights that are gone
                actors = [ray.get_actor(f"{name}-{number}", namespace="gvm_ray") for number in range(2)]
                await asyncio.gather(*(actor.policy_version.options(max_task_retries=-1).remote() for actor in actors))
            groups = await sample(pool, REQUESTS, SAMPLING)
            await asyncio.wait_for(all_available(pool, 2), timeout=240)
            return groups

        assert tokens(runner.run(scenario())) == expected
        assert learners.num_asked >= 1
        assert pool.versions == (2, 2)
        assert failures.counts["an object in Ray's store"] >= 1


@pytest.mark.slow
def test_a_weight_sync_that_hangs_holds_nobody_up_for_ever(
    model_path: str, runner: asyncio.Runner, caplog: pytest.LogCaptureFixture
) -> None:
    with generators(model_path, runner, name="stuck", sample_s=5.0, sync_s=10.0) as (pool, failures):
        victim, _ = pids(pool, runner)
        os.kill(victim, signal.SIGSTOP)
        runner.run(pool.publish(publish(changed_weights(model_path, seed=4).items(), policy_version=2)))
        assert failures.counts == {"stuck-0": 1}
        assert "loading weights version 2 into stuck-0 took longer than 15 s" in caplog.text
        assert "--set deadlines.sync_s=" in caplog.text
        runner.run(asyncio.wait_for(all_available(pool, 2), timeout=240))
        assert pool.versions == (2, 2)
        assert victim not in pids(pool, runner)
