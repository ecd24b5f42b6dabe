"""The Ray cluster of a run: connecting, and places for its parts on CPUs and GPUs."""

import asyncio
import logging
import math
import os
import socket
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private import worker as ray_worker
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from gvm_ray.actors.waiting import wait_for
from gvm_ray.config import RunConfig
from gvm_ray.exceptions import DeadlineExceeded, ResourceError, obstacle_to_writing
from gvm_ray.failure_log import details
from gvm_ray.resources import ActorGroup, actor_groups

logger = logging.getLogger(__name__)

_CONNECT_S = 10.0  # for the head node of a cluster to answer
_EXIT_S = 10.0  # for the processes of a local cluster to end


def check_room(groups: Sequence[ActorGroup], *, cpus: float, gpus: float) -> None:
    """Raises:
    ResourceError: a cluster with so many CPUs and GPUs has too few for the actors together.
    """
    for kind, needed, available, setting in (
        (
            "CPUs",
            [group.cpus for group in groups],
            cpus,
            "engine.cpus_per_generator, learner.num_workers or rewards.num_actors",
        ),
        ("GPUs", [group.gpus for group in groups], gpus, "engine.gpus_per_generator or learner.gpus_per_worker"),
    ):
        total = sum(group.number * each for group, each in zip(groups, needed, strict=True))
        if total > available + 1e-6:
            parts = ", ".join(
                f"{group.number} x {each:g} for a {group.name}"
                for group, each in zip(groups, needed, strict=True)
                if each
            )
            raise ResourceError(
                f"the run needs {total:g} {kind} ({parts}) and the cluster has {available:g}; lower {setting}, or use "
                "a larger cluster"
            )


def check_nodes(config: RunConfig, *, gpus_by_node: Sequence[float]) -> None:
    """Raises:
    ResourceError: no node has as many GPUs as one generator needs together.
    """
    needed, largest = config.engine.gpus_per_generator, max(gpus_by_node, default=0.0)
    if needed > largest:
        raise ResourceError(
            f"a generator needs {needed:g} GPUs of one node (engine.tensor_parallel_size="
            f"{config.engine.tensor_parallel_size}), and the cluster's largest node has {largest:g}; write "
            f"engine.tensor_parallel_size and engine.gpus_per_generator of at most {largest:g}, or use larger nodes"
        )


def namespace_of(config: RunConfig) -> str:
    """Actors of different runs on one cluster don't meet."""
    return f"gvm_ray-{config.name}"


@contextmanager
def connected(config: RunConfig, *, learners: bool = True, ray_log: Path | None = None) -> Iterator[str | None]:
    """A Ray connection: to `cluster.address`, to RAY_ADDRESS (as inside a job), or to a local cluster started here.

    Gives host:port of the cluster's dashboard, where it has one and this is no connection inside another. Without
    `learners` there is to be room for the generators and the reward actors alone. What Ray itself has to say in the
    meantime goes to the file `ray_log`, where one is given and the connection is made here.

    Raises:
        ResourceError: there is no such cluster, or it is too small for the run.
    """
    groups = actor_groups(config, learners=learners)
    was_connected = ray.is_initialized()
    dashboard = None if was_connected else _initialise(config, groups)
    with ExitStack() as stack:
        if not was_connected:
            stack.enter_context(rays_lines_in(ray_log))
            stack.callback(_disconnect)
        resources = ray.cluster_resources()
        check_room(groups, cpus=resources.get("CPU", 0.0), gpus=resources.get("GPU", 0.0))
        check_nodes(config, gpus_by_node=[node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]])
        yield dashboard


@contextmanager
def rays_lines_in(path: Path | None) -> Iterator[None]:
    """Ray's own lines of processes that died, and causes of failures in full, go to a file in place of the console,
    where one sentence says it; the file is made with the first line.

    What processes print is not among them: it comes by another way, and only where Ray was told to send it.
    """
    if path is None:
        yield
        return
    file = logging.FileHandler(path, encoding="utf-8", delay=True)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    ray_logger, print_lines = logging.getLogger("ray"), ray_worker.print_worker_logs
    before = ray_logger.handlers[:]

    def print_or_keep(data: dict[str, Any], *arguments: Any, **named: Any) -> None:
        if data.get("pid") != "raylet":
            print_lines(data, *arguments, **named)
            return
        for line in data["lines"]:
            ray_logger.warning("%s", line)

    ray_logger.handlers[:] = [file]
    details.addHandler(file)
    ray_worker.print_worker_logs = print_or_keep
    try:
        yield
    finally:
        ray_worker.print_worker_logs = print_lines
        details.removeHandler(file)
        ray_logger.handlers[:] = before
        file.close()


def _connect(address: str, *, namespace: str) -> str | None:
    """Connect to a running cluster. A quick look comes first: Ray itself tries for minutes, and then ends the process.

    Returns host:port of its dashboard.

    Raises:
        ResourceError: no cluster answers at the address.
    """
    try:
        if address not in ("auto", "local"):
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
        context = ray.init(address=address, namespace=namespace, logging_level=logging.WARNING, log_to_driver=False)
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"no Ray cluster answers at {address!r} ({error}); write cluster.address (or RAY_ADDRESS) as the host:port "
            "of its head node, or leave out both to start a local cluster"
        ) from error
    return context.dashboard_url


def _initialise(config: RunConfig, groups: Sequence[ActorGroup]) -> str | None:
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    if address:
        return _connect(address, namespace=namespace_of(config))
    # It says that Ray's token authentication is on, which for a cluster of this process needs nothing from the user.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    return _start_local(config, groups)


def check_home(config: RunConfig) -> None:
    """Refuse a home folder that can't be written where Ray would write there: a local cluster's token, unless there is
    one already.

    Raises:
        ResourceError: which folder, and what to set.
    """
    environment = os.environ
    elsewhere = config.cluster.address or environment.get("RAY_ADDRESS")
    has_token = environment.get("RAY_AUTH_TOKEN") or environment.get("RAY_AUTH_TOKEN_PATH")
    if elsewhere or has_token or environment.get("RAY_AUTH_MODE", "token") != "token":
        return
    folder = Path(os.path.expanduser("~")) / ".ray"
    if not (folder / "auth_token").is_file() and (obstacle := obstacle_to_writing(folder)):
        raise ResourceError(
            f"the home folder {str(folder.parent)!r} can't be written ({obstacle}), and Ray keeps the token of a local "
            "cluster there, as other libraries do their caches; set HOME to a folder that can be written, e.g. "
            "HOME=/tmp/home before the command"
        )


def _start_local(config: RunConfig, groups: Sequence[ActorGroup], *, tries: int = 2) -> str | None:
    """Ray gives its own processes 15 s to come up, which on a busy machine may be too little once.

    Returns host:port of its dashboard. Where 8265 is in use, Ray takes the next port that is free.
    """
    check_home(config)
    needed = math.ceil(sum(group.number * group.cpus for group in groups))
    others = set(psutil.Process().children(recursive=True))
    try:
        context = ray.init(
            address="local",
            # Logical CPUs: actors that wait for each other share cores, so a small machine may run more than it has.
            num_cpus=config.cluster.num_cpus or max(needed + 1, os.cpu_count() or 1),
            namespace=namespace_of(config),
            include_dashboard=config.cluster.dashboard,
            object_store_memory=config.cluster.object_store_mb * 2**20,
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
    except Exception as error:  # Ray raises no narrower one
        _end_processes(set(psutil.Process().children(recursive=True)) - others, timeout_s=0)
        if tries > 1:
            logger.warning("the local Ray cluster did not come up (%s); trying once more", error)
            return _start_local(config, groups, tries=tries - 1)
        raise ResourceError(
            f"no local Ray cluster came up ({error}); its logs are in /tmp/ray/session_latest/logs. On a busy machine "
            "try again later, or start a cluster with `ray start --head` and write its cluster.address"
        ) from error
    return context.dashboard_url


def _disconnect() -> None:
    """Leave the cluster. One that was started here ends, even its workers that hang in their exit."""
    workers: list[psutil.Process] = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            workers += process.children(recursive=True) if process.name() == "raylet" else []
    ray.shutdown()
    _end_processes(workers, timeout_s=_EXIT_S)


def _end_processes(processes: Collection[psutil.Process], *, timeout_s: float) -> None:
    """Kill those that are still there after so many seconds."""
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()


async def names_are_free(*, timeout_s: float) -> None:
    """Return once the actors of this namespace are gone: a killed one keeps its name for a moment.

    Raises:
        DeadlineExceeded: some are still there.
    """

    async def wait() -> None:
        while ray.util.list_named_actors():
            await asyncio.sleep(0.2)

    await wait_for(wait(), timeout_s=timeout_s, what="the end of the run's actors", setting="deadlines.start_s")


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
