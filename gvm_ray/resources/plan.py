"""The actors of a run and the devices that they fill: what is refused, and how a person reads it."""

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
    cpus: float  # of each
    gpus: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """What takes memory, and how to make it smaller."""

    name: str
    num_bytes: int
    remedy: str
    stays: bool = False  # on a GPU while the other side, of learners and generators that take turns, is at work


@dataclass(frozen=True, kw_only=True)
class Device:
    """One of several GPUs that are filled alike, or the machine whose memory actors without a GPU share.

    GPUs that are filled in turns are two of these, one for each side at work: the fuller one decides.
    """

    name: str
    number: int
    memory: Memory
    parts: tuple[Part, ...]

    @property
    def needed(self) -> int:
        """Bytes of all parts."""
        return sum(part.num_bytes for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class KeyValueCache:
    """Of one generator."""

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
        """Refuse what can't fit.

        Raises:
            ResourceError: a device is too small for what lies on it, or a key-value cache for one sequence.
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
        """The plan as a person reads it."""
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
