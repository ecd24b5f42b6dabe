"""The resource plan: a run's actors and the devices that they fill, checked and printed."""

from collections.abc import Iterator
from dataclasses import dataclass

from gvm_ray.exceptions import ResourceError
from gvm_ray.maths.memory import ModelSizes
from gvm_ray.resources.hardware import Memory


@dataclass(frozen=True, kw_only=True)
class ActorGroup:
    """Actors of one kind."""

    name: str
    number: int
    cpus: float  # per actor
    gpus: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a device's memory, and a way to make it smaller."""

    name: str
    num_bytes: int
    remedy: str
    stays: bool = False  # if learners and generators take turns on a GPU: stays there during the other's turn


@dataclass(frozen=True, kw_only=True)
class Device:
    """One of `number` GPUs with the same contents, or the machine whose memory is shared by actors without a GPU.

    GPUs on which learners and generators take turns are two devices, one for each side at work; the fuller one decides.
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
class KeyValueCache:
    """The key-value cache of one generator."""

    num_tokens: int
    max_model_len: int
    remedy: str


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
            yield f"  {group.number:>4} x {group.name:<15}{group.cpus:g} CPUs, {group.gpus:g} GPUs each"
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
