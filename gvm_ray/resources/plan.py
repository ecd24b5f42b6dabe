"""RunConfig to a resource plan: the actors of a run, which of them share a GPU, what fills it, and what is refused."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from gvm_ray.config import RunConfig
from gvm_ray.exceptions import ResourceError
from gvm_ray.maths.memory import ModelSizes
from gvm_ray.resources.hardware import Hardware, Memory, generator_bundles, logical_cpus, rank_gpus
from gvm_ray.resources.parts import KeyValueCache, Part, engine_parts, learner_parts
from gvm_ray.resources.threads import plan_threads


@dataclass(frozen=True, kw_only=True)
class ActorGroup:
    """Actors of one kind."""

    name: str
    number: int
    cpus: float  # per actor
    gpus: float = 0.0
    threads: int | None = 1  # per actor; None = decided by the cluster's machines


@dataclass(frozen=True, kw_only=True)
class Device:
    """One of `number` GPUs with the same contents, or the machine whose memory is shared by actors without a GPU.

    GPUs on which learners and generators alternate are two devices, one for each side at work; the fuller one decides.
    """

    name: str
    number: int
    memory: Memory
    parts: tuple[Part, ...]

    @property
    def needed(self) -> int:
        """The bytes of all parts."""
        return sum(part.num_bytes for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class ResourcePlan:
    """The actors of a run and the devices that they fill."""

    sizes: ModelSizes
    actors: tuple[ActorGroup, ...]
    devices: tuple[Device, ...]
    cache: KeyValueCache

    def check(self) -> None:
        """Refuse a plan that doesn't fit into memory.

        Raises:
            ResourceError: a device is too small for its parts, or a key-value cache too small for one sequence.
        """
        for device in self.devices:
            if device.memory.num_bytes is not None and device.needed > device.memory.num_bytes:
                largest = max(device.parts, key=lambda part: part.num_bytes)
                raise ResourceError(
                    f"a {device.name} needs about {_gib(device.needed)} GiB and has {_gib(device.memory.num_bytes)} "
                    f"({device.memory.source}); the largest part is {_gib(largest.num_bytes)} GiB of {largest.name}: "
                    f"{largest.remedy}"
                )
        if self.cache.num_tokens < self.cache.max_model_len:
            raise ResourceError(
                f"a generator's key-value cache has room for {self.cache.num_tokens} tokens, and one sequence of "
                f"prompts.max_tokens + sampling.max_tokens may have {self.cache.max_model_len}: {self.cache.remedy}"
            )

    def lines(self) -> Iterator[str]:
        """The plan as text for a person."""
        cpus = sum(group.number * group.cpus for group in self.actors)
        gpus = sum(group.number * group.gpus for group in self.actors)
        yield f"model            {self.sizes.num_parameters / 1e6:,.1f} million parameters"
        yield f"actors           {cpus:g} CPUs and {gpus:g} GPUs in all; Ray chooses the nodes"
        for group in self.actors:
            threads = "?" if group.threads is None else group.threads
            each = f"{group.cpus:g} CPUs, {group.gpus:g} GPUs, {threads} thread(s) each"
            yield f"  {group.number:>4} x {group.name:<15}{each}"
        if any(group.threads is None for group in self.actors):
            yield "  ? threads: the cluster's nodes decide, when the run starts"
        for device in self.devices:
            memory = device.memory
            has = f"{_gib(memory.num_bytes)} GiB" if memory.num_bytes is not None else "an unknown amount"
            yield f"{device.number} x {device.name}: {_gib(device.needed)} GiB of {has} ({memory.source})"
            for part in device.parts:
                yield f"  {part.num_bytes / 2**30:8.2f} GiB  {part.name}"
        tokens, longest = self.cache.num_tokens, self.cache.max_model_len
        yield f"generator cache  {tokens:,} tokens: {tokens // longest:,} sequences of up to {longest:,} tokens"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f}"


RANKS, GENERATORS, EVALUATION_GENERATORS = "learner rank", "generator", "evaluation generator"


def plan_resources(config: RunConfig, sizes: ModelSizes, hardware: Hardware, *, learners: bool = True) -> ResourcePlan:
    """The plan of a run.

    An actor that needs a share of a GPU is assumed to go, as with Ray, to the first GPU with enough left.

    Args:
        config: the run.
        sizes: of its model.
        hardware: the available memory and cores.
        learners: False if nothing is trained.
    """
    groups = _with_threads(config, hardware, actor_groups(config, learners=learners), learners=learners)
    of_engine, cache = engine_parts(config, sizes, hardware.gpu)
    parts = {RANKS: learner_parts(config, sizes), GENERATORS: of_engine, EVALUATION_GENERATORS: of_engine}
    holding = tuple(group for group in groups if group.name in parts)
    return ResourcePlan(
        sizes=sizes, actors=groups, devices=tuple(_devices(config, holding, parts, hardware)), cache=cache
    )


def actor_groups(config: RunConfig, *, learners: bool = True) -> tuple[ActorGroup, ...]:
    """The actors of a run; without `learners` (nothing is trained), only those that sample and score."""
    engine, learner, rewards = config.engine, config.learner, config.rewards
    a_generator = ActorGroup(
        name=GENERATORS,
        number=engine.num_generators,
        cpus=logical_cpus(engine.cpus_per_generator),
        gpus=sum(generator_bundles(engine, placement=config.cluster.placement)),
    )
    groups = (
        ActorGroup(
            name=RANKS,
            number=learner.num_workers if learners else 0,
            cpus=logical_cpus(learner.cpus_per_worker),
            gpus=rank_gpus(config),
        ),
        a_generator,
        replace(a_generator, name=EVALUATION_GENERATORS, number=config.evaluation.num_generators if learners else 0),
        ActorGroup(name="reward actor", number=rewards.num_actors, cpus=rewards.cpus_per_actor),
        ActorGroup(name="allocator", number=int(learners), cpus=0),
    )
    return tuple(group for group in groups if group.number)


def _with_threads(
    config: RunConfig, hardware: Hardware, groups: Sequence[ActorGroup], *, learners: bool
) -> tuple[ActorGroup, ...]:
    counts: dict[str, int | None] = dict.fromkeys((RANKS, GENERATORS, EVALUATION_GENERATORS))
    if hardware.machines is not None:
        threads = plan_threads(config, hardware.machines, learners=learners)
        counts = {
            RANKS: threads.rank,
            GENERATORS: threads.generator,
            EVALUATION_GENERATORS: threads.evaluation_generator,
        }
    return tuple(replace(group, threads=counts.get(group.name, 1)) for group in groups)


def _devices(
    config: RunConfig, groups: Sequence[ActorGroup], parts: dict[str, tuple[Part, ...]], hardware: Hardware
) -> Iterator[Device]:
    colocated = config.cluster.placement == "colocated"
    for held, number in (_shared_gpus(config, groups) if colocated else _gpus(groups)).items():
        in_turns = config.generators_sleep and len(held) > 1
        for at_work in held if in_turns else ("",):
            yield Device(
                name=f"GPU with {' + '.join(held)}" + (f" while the {at_work} works" if in_turns else ""),
                number=number,
                memory=hardware.gpu,
                parts=tuple(
                    part for name in held for part in parts[name] if not in_turns or part.stays or name == at_work
                ),
            )
    on_machine = [group for group in groups if group.number and not group.gpus]
    if on_machine:
        yield Device(
            name="machine with " + " + ".join(f"{group.number} x {group.name}" for group in on_machine),
            number=1,
            memory=hardware.machine,
            parts=tuple(
                replace(part, num_bytes=part.num_bytes * group.number)
                for group in on_machine
                for part in parts[group.name]
            ),
        )


def _shared_gpus(config: RunConfig, groups: Sequence[ActorGroup]) -> Counter[tuple[str, ...]]:
    """The number of colocated GPUs, each with one actor of every group, by the groups' names."""
    number = config.engine.num_generators * config.engine.tensor_parallel_size
    return Counter({tuple(group.name for group in groups): number})


def _gpus(groups: Sequence[ActorGroup]) -> Counter[tuple[str, ...]]:
    """The number of GPUs with actors of the same groups, by the groups' names."""
    whole: Counter[tuple[str, ...]] = Counter()
    shared: list[list[ActorGroup]] = []  # the actors on each shared GPU
    for group in groups:
        if group.gpus >= 1:
            whole[(group.name,)] += group.number * math.ceil(group.gpus)
        elif group.gpus:
            for _ in range(group.number):
                room = (held for held in shared if sum(each.gpus for each in held) + group.gpus <= 1 + 1e-6)
                if (first := next(room, None)) is None:
                    shared.append([group])
                else:
                    first.append(group)
    return whole + Counter(tuple(group.name for group in held) for held in shared)
