"""What a run takes, before it starts: its actors, which of them share a GPU, and what fills that GPU's memory.

Arithmetic on settings and the model's widths: no cluster is asked and no large library imported. Whether the cluster
has as many CPUs and GPUs is seen when the run connects to it.
"""

import math
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from gvm_ray.config import RunConfig
from gvm_ray.config.model import ModelSettings, ScratchModelConfig
from gvm_ray.exceptions import ResourceError
from gvm_ray.functional.memory import ModelSizes, key_value_bytes, learner_bytes
from gvm_ray.learner.character_tokenizer import BOXED_TOKEN, CHARACTERS, EOS_TOKEN, PAD_TOKEN
from gvm_ray.pretrained import read_model_sizes

_GIB = 2**30
_VALUE_BYTES = {"float32": 4, "bfloat16": 2}
_ASSUMED_GPU_GIB = 80.0  # an A100's or H100's
# Of a rank: CUDA's context, NCCL's buffers, and the gaps between what the allocator hands out.
_CUDA_BYTES = 2 * _GIB
# Of vLLM besides weights and cache: CUDA's context and graphs, and the activations of its largest batch.
_ENGINE_BYTES = 3 * _GIB


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Of a GPU or of a machine."""

    num_bytes: int | None  # None = not known, so nothing is refused
    source: str  # of the number


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a run is planned against."""

    gpu: Memory  # each
    machine: Memory


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


@dataclass(frozen=True, kw_only=True)
class Device:
    """One of several GPUs that are filled alike, or the machine whose memory actors without a GPU share."""

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
            yield f"{device.number} x {device.name}: {_gib(device.needed)} of {has} ({memory.source})"
            for part in device.parts:
                yield f"  {part.num_bytes / _GIB:8.2f} GiB  {part.name}"
        tokens, longest = self.cache.num_tokens, self.cache.max_model_len
        yield f"generator cache  {tokens:,} tokens: {tokens // longest:,} sequences of up to {longest:,} tokens"


def plan_resources(config: RunConfig, sizes: ModelSizes, hardware: Hardware, *, learners: bool = True) -> ResourcePlan:
    """The plan of a run.

    GPUs are filled in Ray's way: an actor that asks for a part of one goes to the first that has as much left.

    Args:
        config: the run.
        sizes: of its model.
        hardware: what there is.
        learners: false where nothing is trained.
    """
    engine, learner, rewards = config.engine, config.learner, config.rewards
    ranks = ActorGroup(
        name="learner rank",
        number=learner.num_workers if learners else 0,
        cpus=learner.cpus_per_worker,
        gpus=learner.gpus_per_worker,
    )
    generators = ActorGroup(
        name="generator",
        number=engine.num_generators,
        cpus=engine.cpus_per_generator,
        gpus=engine.gpus_per_generator,
    )
    engine_parts, cache = _engine_parts(config, sizes, hardware.gpu)
    parts = {ranks.name: _learner_parts(config, sizes), generators.name: engine_parts}
    return ResourcePlan(
        sizes=sizes,
        actors=(
            ranks,
            generators,
            ActorGroup(name="reward actor", number=rewards.num_actors, cpus=rewards.cpus_per_actor),
            ActorGroup(name="allocator", number=1, cpus=0),
        ),
        devices=tuple(_devices((ranks, generators), parts, hardware)),
        cache=cache,
    )


def find_hardware(config: RunConfig) -> Hardware:
    """The memory that a run is planned against: as set, else this machine's, else an assumption that says so."""
    if config.cluster.address or os.environ.get("RAY_ADDRESS"):
        machine = Memory(num_bytes=None, source="of the cluster's nodes")
    else:
        pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        machine = Memory(num_bytes=pages, source="of this machine")
    if config.cluster.gpu_memory_gib is not None:
        gpu = Memory(num_bytes=int(config.cluster.gpu_memory_gib * _GIB), source="cluster.gpu_memory_gib")
    elif (config.learner.gpus_per_worker or config.engine.gpus_per_generator) and (smallest := _smallest_gpu()):
        gpu = Memory(num_bytes=smallest, source="of this machine's smallest GPU")
    else:
        source = "assumed: no GPU here, and cluster.gpu_memory_gib is not set"
        gpu = Memory(num_bytes=int(_ASSUMED_GPU_GIB * _GIB), source=source)
    return Hardware(gpu=gpu, machine=machine)


def _smallest_gpu() -> int | None:
    """Bytes; asked of the driver, for CUDA would keep a context on the GPU in this process."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return min((int(mib) * 2**20 for mib in answer if mib.isdigit()), default=None)


def sizes_of_settings(model: ModelSettings) -> ModelSizes:
    """Widths of the model that the settings name; no weight is read.

    Raises:
        ModelError: it has no configuration, or one without widths.
    """
    if not isinstance(model, ScratchModelConfig):
        return read_model_sizes(model.path, revision=model.revision)
    return ModelSizes(
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
        query_size=model.hidden_size,
        key_value_size=model.hidden_size // model.num_heads * model.num_key_value_heads,
        feed_forward_size=model.intermediate_size,
        vocab_size=len((PAD_TOKEN, EOS_TOKEN, BOXED_TOKEN, *CHARACTERS)),
        tied=model.tie_word_embeddings,
    )


def _devices(groups: Sequence[ActorGroup], parts: dict[str, tuple[Part, ...]], hardware: Hardware) -> Iterator[Device]:
    for held, number in Counter(map(tuple, _gpus(groups))).items():
        yield Device(
            name=f"GPU with {' + '.join(held)}",
            number=number,
            memory=hardware.gpu,
            parts=tuple(part for name in held for part in parts[name]),
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


def _gpus(groups: Sequence[ActorGroup]) -> list[list[str]]:
    """Names of the groups whose actors lie on each GPU."""
    left: list[float] = []
    held: list[list[str]] = []
    for group in groups:
        for _ in range(group.number if group.gpus else 0):
            shared = (i for i, free in enumerate(left) if group.gpus < 1 and free >= group.gpus - 1e-6)
            if (place := next(shared, None)) is not None:
                left[place] -= group.gpus
                held[place].append(group.name)
            else:
                number = math.ceil(group.gpus)
                left += [max(1 - group.gpus, 0.0)] * number
                held += [[group.name] for _ in range(number)]
    return held


def _learner_parts(config: RunConfig, sizes: ModelSizes) -> tuple[Part, ...]:
    """Of one rank."""
    learner = config.learner
    num_bytes = learner_bytes(
        sizes,
        num_ranks=learner.num_workers,
        micro_batch_tokens=max(learner.micro_batch_tokens, _max_model_len(config)),  # a longer sample stands alone
        chunk_tokens=learner.logprob_chunk_tokens,
        value_bytes=_VALUE_BYTES[learner.dtype],
        has_reference=config.algorithm.kl.coefficient > 0,
        activation_checkpointing=learner.activation_checkpointing,
    )
    smaller = "take a smaller model"
    sharded = smaller
    if learner.gpus_per_worker:
        sharded = f"give it more GPUs, which share it (learner.num_workers={learner.num_workers}), or {smaller}"
    activations = f"lower learner.micro_batch_tokens={learner.micro_batch_tokens}"
    if not learner.activation_checkpointing:
        activations += ", or write learner.activation_checkpointing=true"
    remedies = {
        "reference_weights": f"write algorithm.kl.coefficient=0, or {sharded}",
        "gathered_weights": smaller,
        "activations": activations,
        "logits": f"lower learner.logprob_chunk_tokens={learner.logprob_chunk_tokens}",
    }
    parts = [
        Part(name=name.replace("_", " "), num_bytes=count, remedy=remedies.get(name, sharded))
        for name, count in asdict(num_bytes).items()
        if count
    ]
    if learner.gpus_per_worker:
        parts.append(Part(name="learner's CUDA", num_bytes=_CUDA_BYTES, remedy="take a larger GPU"))
    return tuple(parts)


def _engine_parts(config: RunConfig, sizes: ModelSizes, gpu: Memory) -> tuple[tuple[Part, ...], KeyValueCache]:
    """Of one GPU of a generator, or of a generator without one, and what its cache holds."""
    engine, max_model_len = config.engine, _max_model_len(config)
    value_bytes, ways = _VALUE_BYTES[engine.dtype], engine.tensor_parallel_size
    weights = sizes.num_parameters * value_bytes
    if engine.gpus_per_generator and gpu.num_bytes is not None:
        share = engine.gpu_memory_utilization
        cache_bytes = int(share * gpu.num_bytes) - weights // ways - _ENGINE_BYTES
        parts = (
            Part(
                name="engine weights",
                num_bytes=weights // ways,
                remedy=f"raise engine.tensor_parallel_size={ways}, or take a smaller model",
            ),
            Part(name="engine's CUDA", num_bytes=_ENGINE_BYTES, remedy="take a larger GPU"),
            Part(
                name="key-value cache",
                num_bytes=max(cache_bytes, 0),
                remedy=f"lower engine.gpu_memory_utilization={share:g}, which it fills",
            ),
        )
        remedy = f"raise engine.gpu_memory_utilization={share:g} or engine.tensor_parallel_size={ways}"
    else:
        ways, cache_bytes = 1, int(engine.kv_cache_gib * _GIB)
        fewer = f"lower engine.num_generators={engine.num_generators}"
        parts = (
            # Once more while new ones are loaded.
            Part(name="engine weights", num_bytes=2 * weights, remedy=f"{fewer}, or take a smaller model"),
            Part(
                name="key-value cache",
                num_bytes=cache_bytes,
                remedy=f"lower engine.kv_cache_gib={engine.kv_cache_gib:g}, or {fewer}",
            ),
        )
        remedy = f"raise engine.kv_cache_gib={engine.kv_cache_gib:g}"
    num_tokens = max(cache_bytes, 0) * ways // key_value_bytes(sizes, value_bytes=value_bytes)
    return parts, KeyValueCache(num_tokens=num_tokens, max_model_len=max_model_len, remedy=remedy)


def _max_model_len(config: RunConfig) -> int:
    """Prompt and response tokens."""
    return config.prompts.max_tokens + config.sampling.max_tokens


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.1f}"
