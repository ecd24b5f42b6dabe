"""The GPUs of one generator: a placement group of Ray's, so that they stay its own while its actor restarts."""

import os
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from gvm_ray.actors.waiting import wait_for
from gvm_ray.exceptions import DeadlineExceeded


class GPUGroup:
    """Bundles of GPUs on one node, asked for at once; `ready` waits for them.

    Args:
        name: of who they are for.
        bundles: GPUs of each bundle; see `resources.generator_bundles`.
        num_cpus: in the first bundle, beside its GPUs.
    """

    def __init__(self, name: str, *, bundles: Sequence[float], num_cpus: float) -> None:
        self._name = name
        self._bundles = tuple(bundles)
        self._num_cpus = num_cpus
        resources = [{"GPU": gpus} for gpus in bundles]
        resources[0]["CPU"] = num_cpus
        self._group: PlacementGroup = placement_group(resources, strategy="STRICT_PACK", name=f"{name}-gpus")

    @property
    def options(self) -> dict[str, Any]:
        """Of the actor that lives in the first bundle."""
        return {
            "num_gpus": self._bundles[0],
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                placement_group=self._group, placement_group_bundle_index=0
            ),
        }

    async def ready(self, *, timeout_s: float) -> None:
        """Return once the GPUs are set aside.

        Raises:
            DeadlineExceeded: no node has as many free.
        """
        try:
            await wait_for(
                self._reserved(), timeout_s=timeout_s, what=f"GPUs for {self._name}", setting="deadlines.start_s"
            )
        except DeadlineExceeded:
            free = ray.available_resources()
            # More than one bundle is one of parts, each of a GPU that may hold a learner rank besides.
            gpus = (
                f"{self._bundles[0]:g}" if len(self._bundles) == 1 else f"{len(self._bundles)} x {self._bundles[0]:g}"
            )
            raise DeadlineExceeded(
                f"for {timeout_s:g} s no node of the cluster had {gpus} GPUs and {self._num_cpus:g} CPUs free for "
                f"{self._name} (free on all nodes together: {free.get('GPU', 0):g} GPUs, {free.get('CPU', 0):g} CPUs); "
                "wait for what else runs there to end, lower engine.num_generators or engine.tensor_parallel_size, or "
                f"wait longer with --set deadlines.start_s={2 * timeout_s:g}"
            ) from None

    async def _reserved(self) -> None:
        await self._group.ready()

    def nodes(self) -> tuple[str, ...]:
        """Ray's id of the node of each bundle, once they are ready."""
        return tuple(placement_group_table(self._group)["bundles_to_node_id"][i] for i in range(len(self._bundles)))

    def close(self) -> None:
        """Give the GPUs back, and kill what is on them."""
        remove_placement_group(self._group)


def show_group_gpus(bundles: Sequence[float]) -> None:
    """Have CUDA, which is not to be started yet, see the GPUs of all bundles of this actor's group.

    Ray shows an actor the GPUs of one bundle: it has no actor of several parts of GPUs.
    """
    if len(bundles) < 2:
        return
    group = ray.util.get_current_placement_group()
    assert group is not None, "a generator of several bundles lives in their placement group"
    ids = [
        _gpu_id.options(
            num_cpus=0,
            num_gpus=gpus,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                placement_group=group, placement_group_bundle_index=index
            ),
        )
        .remote()
        .future()  # Ray warns of `ray.get` in an actor with an event loop, also outside of the loop's thread
        for index, gpus in enumerate(bundles)
        if index
    ]
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(
        [os.environ["CUDA_VISIBLE_DEVICES"], *(found.result() for found in ids)]
    )


@ray.remote
def _gpu_id() -> str:
    return os.environ["CUDA_VISIBLE_DEVICES"]
