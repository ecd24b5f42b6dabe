"""The memory and cores of a machine or cluster, and the GPU share of each part of a run."""

import os
import shutil
import subprocess
from dataclasses import dataclass

from gvm_ray.config import RunConfig
from gvm_ray.config.cluster import Placement
from gvm_ray.config.engine import EngineConfig
from gvm_ray.resources.threads import Machines

_COLOCATED_GENERATOR = 0.6
_COLOCATED_RANK = 0.4


def rank_gpus(config: RunConfig) -> float:
    """The GPUs of one learner rank."""
    return _COLOCATED_RANK if config.cluster.placement == "colocated" else config.learner.gpus_per_worker


def generator_bundles(engine: EngineConfig, *, placement: Placement) -> tuple[float, ...]:
    """The GPUs in each resource bundle of one generator, all on one node; empty without GPUs.

    Whole GPUs form one bundle. Shares of several GPUs can't, so there is one bundle for each tensor-parallel part.
    """
    if placement == "colocated":
        return (_COLOCATED_GENERATOR,) * engine.tensor_parallel_size
    return (engine.gpus_per_generator,) if engine.gpus_per_generator else ()


def logical_cpus(setting: float | None) -> float:
    """Ray's logical CPUs of an actor by `cpus_per_generator` or `cpus_per_worker`; without the setting, one."""
    return 1.0 if setting is None else setting


def this_machine() -> Machines:
    """This machine with the physical cores that this process may use, by its affinity and its container's limits."""
    import psutil
    from joblib import cpu_count  # takes 0.2 s

    usable = cpu_count()
    return Machines(number=1, cores=min(usable, psutil.cpu_count(logical=False) or usable))


_ASSUMED_GPU_GIB = 80.0  # of an A100 or H100


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The memory of a GPU or a machine."""

    num_bytes: int | None  # None = unknown, so nothing is refused
    source: str  # origin of the number


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The memory and the cores for which a run is planned."""

    gpu: Memory  # of one GPU
    machine: Memory
    machines: Machines | None = None  # None = of a cluster, which isn't asked


def find_hardware(config: RunConfig) -> Hardware:
    """The hardware for which a run is planned: as set, else this machine's, else an assumption, named as such."""
    if config.cluster.address or os.environ.get("RAY_ADDRESS"):
        machine, machines = Memory(num_bytes=None, source="of the cluster's nodes"), None
    else:
        pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        machine, machines = Memory(num_bytes=pages, source="of this machine"), this_machine()
    if config.cluster.gpu_memory_gib is not None:
        gpu = Memory(num_bytes=int(config.cluster.gpu_memory_gib * 2**30), source="cluster.gpu_memory_gib")
    elif (config.learner.gpus_per_worker or config.engine.gpus_per_generator) and (gpus := find_gpus()):
        gpu = Memory(num_bytes=min(each.num_bytes for each in gpus), source="of this machine's smallest GPU")
    else:
        source = "assumed: no GPU here, and cluster.gpu_memory_gib is not set"
        gpu = Memory(num_bytes=int(_ASSUMED_GPU_GIB * 2**30), source=source)
    return Hardware(gpu=gpu, machine=machine, machines=machines)


@dataclass(frozen=True, kw_only=True)
class GPU:
    """A GPU of this machine, as its driver describes it."""

    name: str
    num_bytes: int
    used_bytes: int
    driver: str  # version


def find_gpus() -> tuple[GPU, ...]:
    """The GPUs of this machine, from the driver: CUDA would keep a context on each in this process."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    query = [program, "--query-gpu=memory.total,memory.used,driver_version,name", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    rows = [[cell.strip() for cell in line.split(",", maxsplit=3)] for line in answer.splitlines()]
    return tuple(
        GPU(
            name=name,
            num_bytes=int(total) * 2**20,
            used_bytes=int(used) * 2**20 if used.isdigit() else 0,
            driver=driver,
        )
        for total, used, driver, name in (row for row in rows if len(row) == 4)
        if total.isdigit()
    )
