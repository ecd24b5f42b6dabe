"""The Ray cluster of a run: the connection, and room for its actors on CPUs and GPUs."""

import asyncio
import logging
import math
import os
import socket
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
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
from gvm_ray.resources import ActorGroup, Machines, Threads, actor_groups, plan_threads, this_machine

logger = logging.getLogger(__name__)

_CONNECT_S = 10.0  # wait for a cluster's head node to answer
_EXIT_S = 10.0  # wait for a local cluster's processes to exit


def check_room(groups: Sequence[ActorGroup], *, cpus: float, gpus: float, place: str = "the cluster") -> None:
    """Refuse a run whose actors together need more CPUs or GPUs than the cluster has; `place` is its name.

    Raises:
        ResourceError: `cpus` or `gpus` is too small.
    """
    of_cpus = "engine.cpus_per_generator, learner.num_workers or rewards.num_actors"
    of_gpus = "engine.gpus_per_generator or learner.gpus_per_worker"
    for kind, needed, available, setting in (
        ("CPUs", [group.cpus for group in groups], cpus, of_cpus),
        ("GPUs", [group.gpus for group in groups], gpus, of_gpus),
    ):
        total = sum(group.number * each for group, each in zip(groups, needed, strict=True))
        if total > available + 1e-6:
            parts = ", ".join(
                f"{group.number} x {each:g} for a {group.name}"
                for group, each in zip(groups, needed, strict=True)
                if each
            )
            raise ResourceError(
                f"the run needs {total:g} {kind} ({parts}) and {place} has {available:g}; lower {setting}, or use "
                "a larger cluster"
            )


def check_nodes(config: RunConfig, *, gpus_by_node: Sequence[float]) -> None:
    """Refuse a run whose generators each need more GPUs than any one node has.

    Raises:
        ResourceError: every node has too few GPUs for one generator.
    """
    needed, largest = config.engine.gpus_per_generator, max(gpus_by_node, default=0.0)
    if needed > largest:
        raise ResourceError(
            f"a generator needs {needed:g} GPUs of one node (engine.tensor_parallel_size="
            f"{config.engine.tensor_parallel_size}), and the cluster's largest node has {largest:g}; write "
            f"engine.tensor_parallel_size and engine.gpus_per_generator of at most {largest:g}, or use larger nodes"
        )


def find_threads(config: RunConfig, *, learners: bool = True, num_runs: int = 1) -> Threads:
    """Threads of a run's actors on the cluster that this process is connected to; see `plan_threads`."""
    of_job: dict[str, str] | None = None
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        of_job = ray.get_runtime_context().runtime_env.get("env_vars", {})
    environment = chosen_variables(os.environ, of_job=of_job)
    return plan_threads(config, find_machines(), learners=learners, num_runs=num_runs, environment=environment)


def chosen_variables(environment: Mapping[str, str], *, of_job: Mapping[str, str] | None) -> dict[str, str]:
    """The variables that a user chose. The driver of a Ray job has an OMP_NUM_THREADS=1 that Ray has set.

    Args:
        environment: of this process.
        of_job: `env_vars` of the Ray job whose driver this process is; None if it isn't one.
    """
    if of_job is None:
        return dict(environment)
    return {name: value for name, value in environment.items() if name != "OMP_NUM_THREADS"} | dict(of_job)


def find_machines() -> Machines:
    """The machines of the cluster that this process is connected to; those without CPUs for actors don't count.

    A node's logical CPUs stand for its cores. On this machine they may be more than that, so its cores are counted.
    """
    cores: Counter[str] = Counter()
    for node in ray.nodes():
        if node["Alive"] and (cpus := node["Resources"].get("CPU", 0.0)):
            cores[node["NodeManagerAddress"]] += cpus
    here = ray.util.get_node_ip_address()
    if here in cores:
        cores[here] = min(cores[here], this_machine().cores)
    return Machines(number=max(len(cores), 1), cores=max(int(min(cores.values(), default=1)), 1))


def namespace_of(config: RunConfig) -> str:
    """The run's Ray namespace: runs on one cluster use the same actor names, each in its own namespace."""
    return f"gvm_ray-{config.name}"


@contextmanager
def connected(config: RunConfig, *, learners: bool = True, ray_log: Path | None = None) -> Iterator[str | None]:
    """Connect to Ray: to `cluster.address`, to RAY_ADDRESS (as inside a job), or to a local cluster started here.

    An existing connection is used as it is. Yields host:port of the cluster's dashboard; None if it has none, or if
    the connection existed already.

    Args:
        config: the run.
        learners: whether the cluster needs room for learners, or only for generators and reward actors.
        ray_log: file for Ray's own messages, used only if the connection is made here.

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
    """Send Ray's own lines about dead processes, and the full causes of failures, to a file instead of the console.

    The console shows one sentence for each failure. The file is created with its first line. Output printed by the
    processes isn't included: it takes another path, and only if Ray was told to forward it.
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
    """Connect to a running cluster; returns host:port of its dashboard.

    Probe the address first: Ray itself would try for minutes, and then end the process.

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
    # It logs that token authentication is on. With a local cluster the user needn't do anything about that.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    return _start_local(config, groups)


def check_machine(config: RunConfig, *, learners: bool = True) -> None:
    """Refuse a run for which a local cluster here would be too small, before anything is loaded.

    Raises:
        ResourceError: this machine has too few GPUs, or cluster.num_cpus is too small.
    """
    if ray.is_initialized() or config.cluster.address or os.environ.get("RAY_ADDRESS"):
        return
    from torch.cuda import device_count  # makes no context on a GPU

    groups = actor_groups(config, learners=learners)
    check_room(groups, cpus=_local_cpus(config, groups), gpus=device_count(), place="a local cluster on this machine")


def _local_cpus(config: RunConfig, groups: Sequence[ActorGroup]) -> int:
    """Logical CPUs of a local cluster. Actors that wait for each other share cores, so there may be more than cores."""
    needed = math.ceil(sum(group.number * group.cpus for group in groups))
    return config.cluster.num_cpus or max(needed + 1, os.cpu_count() or 1)


def check_home(config: RunConfig) -> None:
    """Refuse a home folder that can't be written, if Ray needs to: it keeps a new local cluster's token there.

    Raises:
        ResourceError: the folder can't be written; the message says what to set.
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
            "cluster there, and other libraries keep their caches there; set HOME to a folder that can be written, "
            "e.g. HOME=/tmp/home before the command"
        )


def _start_local(config: RunConfig, groups: Sequence[ActorGroup], *, tries: int = 2) -> str | None:
    """Start a local cluster; returns host:port of its dashboard. If port 8265 is in use, Ray takes the next free one.

    Tried twice: Ray gives its own processes 15 s to come up, which may be too little on a busy machine.
    """
    check_home(config)
    # By Ray's default its workers give way to every other program: beside one, a run has half the speed.
    os.environ.setdefault("RAY_worker_niceness", "0")
    others = set(psutil.Process().children(recursive=True))
    try:
        context = ray.init(
            address="local",
            num_cpus=_local_cpus(config, groups),
            namespace=namespace_of(config),
            include_dashboard=config.cluster.dashboard,
            object_store_memory=config.cluster.object_store_mb * 2**20,
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
    except Exception as error:  # Ray raises no narrower type
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
    """Leave the cluster. If it was started here it ends, including workers that hang while exiting."""
    workers: list[psutil.Process] = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            workers += process.children(recursive=True) if process.name() == "raylet" else []
    ray.shutdown()
    _end_processes(workers, timeout_s=_EXIT_S)


def _end_processes(processes: Collection[psutil.Process], *, timeout_s: float) -> None:
    """Wait `timeout_s` seconds for the processes to exit, then kill the rest."""
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()


async def names_are_free(*, timeout_s: float) -> None:
    """Return once the actors of this namespace are gone: a killed actor keeps its name for a moment.

    Raises:
        DeadlineExceeded: some are still there.
    """

    async def wait() -> None:
        while ray.util.list_named_actors():
            await asyncio.sleep(0.2)

    await wait_for(wait(), timeout_s=timeout_s, what="the end of the run's actors", setting="deadlines.start_s")


class GPUGroup:
    """Bundles of GPUs on one node, requested on construction; `ready` waits for them.

    Args:
        name: of the actor they are for.
        bundles: GPUs of each bundle; see `resources.generator_bundles`.
        num_cpus: CPUs of the first bundle.
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
        """Ray options of the actor, which lives in the first bundle."""
        return {
            "num_gpus": self._bundles[0],
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                placement_group=self._group, placement_group_bundle_index=0
            ),
        }

    async def ready(self, *, timeout_s: float) -> None:
        """Return once the GPUs are reserved.

        Raises:
            DeadlineExceeded: no node has that many free.
        """
        try:
            await wait_for(
                self._reserved(), timeout_s=timeout_s, what=f"GPUs for {self._name}", setting="deadlines.start_s"
            )
        except DeadlineExceeded:
            free = ray.available_resources()
            # Several bundles: each is a fraction of a GPU, which may be shared with a learner rank.
            gpus = (
                f"{self._bundles[0]:g}" if len(self._bundles) == 1 else f"{len(self._bundles)} x {self._bundles[0]:g}"
            )
            raise DeadlineExceeded(
                f"for {timeout_s:g} s no node of the cluster had {gpus} GPUs and {self._num_cpus:g} CPUs free for "
                f"{self._name} (free on all nodes together: {free.get('GPU', 0):g} GPUs, {free.get('CPU', 0):g} CPUs); "
                "wait for other jobs there to end, lower engine.num_generators or engine.tensor_parallel_size, or "
                f"wait longer with --set deadlines.start_s={2 * timeout_s:g}"
            ) from None

    async def _reserved(self) -> None:
        await self._group.ready()

    def nodes(self) -> tuple[str, ...]:
        """Ray's node id of each bundle; call it after `ready`."""
        return tuple(placement_group_table(self._group)["bundles_to_node_id"][i] for i in range(len(self._bundles)))

    def close(self) -> None:
        """Give the GPUs back, and kill what is on them."""
        remove_placement_group(self._group)


def show_group_gpus(bundles: Sequence[float]) -> None:
    """Make the GPUs of all bundles of this actor's group visible to CUDA; call it before CUDA is initialized.

    Ray shows an actor the GPUs of one bundle only: an actor can't request fractions of several GPUs.
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
        .future()  # Ray warns about `ray.get` in an actor with an event loop, even outside the loop's thread
        for index, gpus in enumerate(bundles)
        if index
    ]
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(
        [os.environ["CUDA_VISIBLE_DEVICES"], *(found.result() for found in ids)]
    )


@ray.remote
def _gpu_id() -> str:
    return os.environ["CUDA_VISIBLE_DEVICES"]
