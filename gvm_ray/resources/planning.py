"""Planning of a run's resources from its RunConfig: the actors, those that share a GPU, and its contents."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from gvm_ray.config import RunConfig
from gvm_ray.maths.memory import ModelSizes
from gvm_ray.resources.hardware import Hardware, generator_bundles, rank_gpus
from gvm_ray.resources.parts import engine_parts, learner_parts
from gvm_ray.resources.plan import ActorGroup, Device, Part, ResourcePlan

RANKS, GENERATORS, EVALUATION_GENERATORS = "learner rank", "generator", "evaluation generator"


def plan_resources(config: RunConfig, sizes: ModelSizes, hardware: Hardware, *, learners: bool = True) -> ResourcePlan:
    """The resource plan of a run.

    An actor that needs a share of a GPU is assumed to go, as with Ray, to the first GPU with enough left.

    Args:
        config: the run.
        sizes: of its model.
        hardware: the available memory.
        learners: False if nothing is trained.
    """
    groups = actor_groups(config, learners=learners)
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
        cpus=engine.cpus_per_generator,
        gpus=sum(generator_bundles(engine, placement=config.cluster.placement)),
    )
    groups = (
        ActorGroup(
            name=RANKS,
            number=learner.num_workers if learners else 0,
            cpus=learner.cpus_per_worker,
            gpus=rank_gpus(config),
        ),
        a_generator,
        replace(a_generator, name=EVALUATION_GENERATORS, number=config.evaluation.num_generators if learners else 0),
        ActorGroup(name="reward actor", number=rewards.num_actors, cpus=rewards.cpus_per_actor),
        ActorGroup(name="allocator", number=int(learners), cpus=0),
    )
    return tuple(group for group in groups if group.number)


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
