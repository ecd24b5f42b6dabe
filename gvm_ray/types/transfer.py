"""Weight transfers from learners to generators: members, phases and results."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

WeightTransfer = Literal["object_store", "nccl", "ipc"]


@dataclass(frozen=True, kw_only=True)
class AdapterSpec:
    """LoRA adapters that engines are sent instead of whole weights: a layer computes W x + scale B A x."""

    rank: int
    scale: float
    # Of A [rank, in] and B [out, rank] of every adapted layer, named LAYER.lora_A.weight and LAYER.lora_B.weight.
    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the adapted layers."""
        return tuple(name.removesuffix(".lora_A.weight") for name, _ in self.shapes if name.endswith(".lora_A.weight"))


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model with its tokenizer, as an engine loads it."""

    path: str  # Hugging Face folder or hub id
    max_model_len: int  # prompt and response tokens of the longest request
    revision: str | None = None  # of a hub id; None takes the newest
    trust_remote_code: bool = False  # run code that comes with the model
    transfer: WeightTransfer = "object_store"  # how the learners send weights; "nccl" and "ipc" are vLLM's alone
    adapters: AdapterSpec | None = None  # if given, new weights are adapters beside the weights of `path`


@dataclass(frozen=True, kw_only=True)
class LiveWeights:
    """Weights that the learners keep and send directly to the generators of a world, instead of storing them."""

    transfer: WeightTransfer
    buckets: tuple[Any, ...] = ()  # object refs of the same weights, if generators outside the world need them too


@dataclass(frozen=True, kw_only=True, eq=False)
class TransferMember:
    """A generator that takes part in transfers."""

    name: str
    actor: Any  # handle
    num_workers: int  # receiving processes of its engine, one per GPU


@dataclass(frozen=True, kw_only=True, eq=False)
class TransferWorld:
    """The generators that take part. A communicator can't change its members, so every generation gets a new one."""

    generation: int
    members: tuple[TransferMember, ...]

    @property
    def size(self) -> int:
        """The number of processes: the learners' sender and every worker of every generator."""
        return 1 + sum(member.num_workers for member in self.members)


@dataclass(frozen=True, kw_only=True, eq=False)
class Delivery:
    """The result of a transfer in which no learner failed."""

    policy_version: int  # of the weights sent
    # Generator -> its error. The others have the weights, unless `halfway`.
    failures: Mapping[str, Exception] = field(default_factory=dict)
    halfway: bool = False  # the other generators may hold parts of two policies


# --- phases: the learners' sender asks them of every generator, in this order; each is answered when done -------------
@dataclass(frozen=True, kw_only=True, eq=False)
class JoinWorld:
    """Set up the connection to the sender; it replaces an earlier one."""

    generation: int
    init_info: Mapping[str, Any]  # vLLM's


@dataclass(frozen=True, kw_only=True, eq=False)
class StartUpdate:
    """Stop between two steps, and prepare to take weights."""

    generation: int
    policy_version: int
    silence_s: float  # after this time without a message, the sender counts as gone


@dataclass(frozen=True, kw_only=True, eq=False)
class ReceiveWeights:
    """Receive some or all weights."""

    generation: int
    update_info: Mapping[str, Any]  # vLLM's


@dataclass(frozen=True, kw_only=True, eq=False)
class FinishUpdate:
    """Compare the received weights with the sent ones, and continue sampling with them."""

    generation: int
    policy_version: int
    checksum: str


TransferPhase = JoinWorld | StartUpdate | ReceiveWeights | FinishUpdate
