"""Which GPUs generators and learner ranks land on. The cluster's are made up: Ray counts them, nothing uses them."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from gvm_ray.actors.cluster import check_nodes
from gvm_ray.actors.context import RunContext
from gvm_ray.actors.generator_pool import GeneratorPool
from gvm_ray.actors.rank import rank_resources
from gvm_ray.actors.weight_sync import publish
from gvm_ray.config.run import DeadlineConfig, FaultsConfig, RunConfig
from gvm_ray.exceptions import DeadlineExceeded, ResourceError
from gvm_ray.failure_log import FailureLog
from gvm_ray.types import ModelSpec
from tests.gpu_engine import SeesGPUs
from tests.resource_plans import run_config

pytestmark = pytest.mark.ray


def config_of(placement: str, *, num_ranks: int, parts: int = 1, num_generators: int | None = None) -> RunConfig:
    return run_config(
        cluster={"placement": placement},
        learner={"num_workers": num_ranks},
        engine={
            "type": "custom",
            "path": "tests.gpu_engine:SeesGPUs",
            "num_generators": num_generators or num_ranks // parts,
            "tensor_parallel_size": parts,
            "gpus_per_generator": parts,
        },
    )


@contextmanager
def generators_of(config: RunConfig, *, start_s: float = 300) -> Iterator[GeneratorPool]:
    pool = GeneratorPool(
        config.engine,
        kind="custom",
        placement=config.cluster.placement,
        max_tokens=8,
        model=ModelSpec(path="none", max_model_len=8),
        context=RunContext(deadlines=DeadlineConfig(start_s=start_s, sync_s=120), failures=FailureLog(FaultsConfig())),
        name="gpu-generator",
    )
    try:
        yield pool
    finally:
        pool.close()


@ray.remote
def _gpu_ids() -> list[str]:
    return ray.get_runtime_context().get_accelerator_ids()["GPU"]


def rank_gpu_ids(config: RunConfig, nodes: tuple[str, ...]) -> list[str]:
    """Of bundles like those that Ray Train asks for, which says only privately on which nodes it wants them."""
    scaling: Any = rank_resources(config, nodes=nodes)
    resources, num = scaling.resources_per_worker, scaling.num_workers
    group = placement_group(
        [resources] * num,
        strategy=scaling.placement_strategy,
        bundle_label_selector=scaling._label_selector_per_worker(num),
    )
    try:
        probes = [
            _gpu_ids.options(
                num_cpus=0,
                num_gpus=resources["GPU"],
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
            ).remote()
            for index in range(num)
        ]
        return [gpu for (gpu,) in ray.get(probes, timeout=300)]
    finally:
        remove_placement_group(group)


def test_colocated_ranks_and_generators_pair_up_also_with_gpus_to_spare(ray_cluster: None) -> None:
    async def run() -> None:
        config = config_of("colocated", num_ranks=2)  # of four GPUs
        with generators_of(config) as pool:
            nodes = await pool.nodes()
            generators = [gpu for (gpu,) in await pool.ask(SeesGPUs.gpus)]
            assert len(set(generators)) == 2
            for _ in range(2):  # the second time as after a failure
                assert sorted(await asyncio.to_thread(rank_gpu_ids, config, nodes)) == sorted(generators)
            async with pool.away():
                assert await pool.ask(lambda engine: engine.asleep) == [True, True]
            await pool.publish(publish([], policy_version=1))
            assert await pool.ask(lambda engine: engine.asleep) == [False, False]

    asyncio.run(run())


def test_a_split_generator_sees_the_gpus_of_as_many_ranks(ray_cluster: None) -> None:
    async def run() -> None:
        config = config_of("colocated", num_ranks=4, parts=2)
        with generators_of(config) as pool:
            nodes = await pool.nodes()
            seen = await pool.ask(SeesGPUs.gpus)
            assert [len(gpus) for gpus in seen] == [2, 2]
            assert sorted(gpu for gpus in seen for gpu in gpus) == ["0", "1", "2", "3"]
            assert sorted(await asyncio.to_thread(rank_gpu_ids, config, nodes)) == ["0", "1", "2", "3"]

    asyncio.run(run())


def test_disaggregated_ranks_and_generators_have_gpus_of_their_own(ray_cluster: None) -> None:
    async def run() -> None:
        config = config_of("disaggregated", num_ranks=2, parts=2, num_generators=1)
        with generators_of(config) as pool:
            await pool.start()
            (generator,) = await pool.ask(SeesGPUs.gpus)
            ranks = await asyncio.to_thread(rank_gpu_ids, config, ())
            assert sorted(generator + ranks) == ["0", "1", "2", "3"]

    asyncio.run(run())


def test_gpus_that_do_not_come_free_are_named(ray_cluster: None) -> None:
    async def run() -> None:
        config = config_of("disaggregated", num_ranks=1, parts=8, num_generators=1)
        with (
            generators_of(config, start_s=2) as pool,
            pytest.raises(
                DeadlineExceeded, match="no node of the cluster had 8 GPUs and 1 CPUs free for gpu-generator"
            ),
        ):
            await pool.start()

    asyncio.run(run())


def test_nodes_that_are_too_small_for_one_generator_are_refused_at_once() -> None:
    config = config_of("disaggregated", num_ranks=1, parts=4, num_generators=1)
    check_nodes(config, gpus_by_node=[0, 4])
    with pytest.raises(ResourceError, match=r"needs 4 GPUs of one node .* largest node has 2"):
        check_nodes(config, gpus_by_node=[2, 2])
