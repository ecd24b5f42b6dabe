"""Threads of each actor: a machine's cores, divided among the actors that compute there at the same time."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from gvm_ray.config import RunConfig
from gvm_ray.exceptions import ConfigError

_VARIABLE = "OMP_NUM_THREADS"


@dataclass(frozen=True, kw_only=True)
class Machines:
    """The machines of a cluster on which actors compute."""

    number: int
    cores: int  # of the smallest one


@dataclass(frozen=True, kw_only=True)
class Threads:
    """The number of threads in one actor of each kind. Reward processes and the allocator have one thread each."""

    rank: int = 1
    generator: int = 1
    evaluation_generator: int = 1


def plan_threads(
    config: RunConfig,
    machines: Machines,
    *,
    learners: bool = True,
    num_runs: int = 1,
    environment: Mapping[str, str] = os.environ,
) -> Threads:
    """Threads of a run's actors.

    `learner.cpus_per_worker` and `engine.cpus_per_generator` decide, then the variable OMP_NUM_THREADS. Without them,
    actors on CPUs that compute at the same time divide the cores: with `max_staleness = 0` generators and ranks
    alternate, so each side has all cores; evaluation generators work beside both. An actor with a GPU has one thread.

    Args:
        config: the run.
        machines: over which the actors of each kind are spread evenly.
        learners: False if nothing is trained.
        num_runs: runs like this one at the same time on these machines.
        environment: variables of the process that starts the run.

    Raises:
        ConfigError: OMP_NUM_THREADS is not a number of threads.
    """
    engine, learner = config.engine, config.learner
    on_cpu = not engine.gpus_per_generator
    ranks = learner.num_workers if learners and not learner.gpus_per_worker else 0
    generators = engine.num_generators if on_cpu else 0
    beside = config.evaluation.num_generators if learners and on_cpu else 0
    ranks, generators, beside = (-(-number // machines.number) for number in (ranks, generators, beside))
    if config.max_staleness:
        sampling = learning = ranks + generators + beside
    else:
        sampling, learning = generators + beside, ranks + beside
    wished = _wished(environment)

    def threads(explicit: float | None, *, computing: int, has_gpu: bool) -> int:
        if explicit is not None:
            return max(1, int(explicit))
        if wished is not None:
            return wished
        return 1 if has_gpu else max(1, machines.cores // max(num_runs * computing, 1))

    generator, gpus = engine.cpus_per_generator, not on_cpu
    return Threads(
        rank=threads(learner.cpus_per_worker, computing=learning, has_gpu=learner.gpus_per_worker > 0),
        generator=threads(generator, computing=sampling, has_gpu=gpus),
        evaluation_generator=threads(generator, computing=max(sampling, learning), has_gpu=gpus),
    )


def thread_variables(num_threads: int) -> dict[str, str]:
    """Variables with which an actor's process is to import its libraries, so that they have this many threads.

    By default OpenMP's threads wait for each other by spinning, which is a waste if another program needs the core, and
    ruinous if that program is in the way of the thread that they wait for. Here they sleep, unless the user has set
    OMP_WAIT_POLICY.
    """
    return {_VARIABLE: str(num_threads), "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive")}


def _wished(environment: Mapping[str, str]) -> int | None:
    """The value of OMP_NUM_THREADS; the first one of a list, which is for nested parallelism."""
    text = environment.get(_VARIABLE, "").strip()
    if not text:
        return None
    first = text.partition(",")[0].strip()
    if not first.isdecimal() or int(first) < 1:
        raise ConfigError(f"{_VARIABLE}={text!r} is not a number of threads; write 1 or more, or unset it")
    return int(first)
