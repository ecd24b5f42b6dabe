"""How new weights travel, and the steps of a transfer that learners and generators take part in together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

WeightTransfer = Literal["object_store", "nccl", "ipc"]


@dataclass(frozen=True, kw_only=True)
class LiveWeights:
    """Location of weights that the learners hold and send to the generators of a world, instead of storing them."""

    transfer: WeightTransfer
    buckets: tuple[Any, ...] = ()  # object refs of the same weights, where generators outside the world need them too


@dataclass(frozen=True, kw_only=True, eq=False)
class TransferMember:
    """A generator that takes part."""

    name: str
    actor: Any  # handle
    num_workers: int  # processes of its engine that receive, one a GPU


@dataclass(frozen=True, kw_only=True, eq=False)
class TransferWorld:
    """Which generators take part. A communicator can't change its members: a new generation is set up anew."""

    generation: int
    members: tuple[TransferMember, ...]

    @property
    def size(self) -> int:
        """Processes: the learners' sender and every worker of every generator."""
        return 1 + sum(member.num_workers for member in self.members)


@dataclass(frozen=True, kw_only=True, eq=False)
class Delivery:
    """How a transfer went; the learners themselves are well."""

    policy_version: int  # of what was sent
    # By generator: what it failed with. The others have the weights, unless `halfway`.
    failures: Mapping[str, Exception] = field(default_factory=dict)
    halfway: bool = False  # the other generators may hold parts of two policies


# --- what the learners' sender asks of every generator, in this order; answers come when it is done -------------------
@dataclass(frozen=True, kw_only=True, eq=False)
class JoinWorld:
    """Set up the connection to the sender, in place of an earlier one."""

    generation: int
    init_info: Mapping[str, Any]  # vLLM's


@dataclass(frozen=True, kw_only=True, eq=False)
class StartUpdate:
    """Stop between two steps, and make ready to take weights."""

    generation: int
    policy_version: int
    silence_s: float  # without a further message for so long, the sender counts as gone


@dataclass(frozen=True, kw_only=True, eq=False)
class ReceiveWeights:
    """Take some weights, or all."""

    generation: int
    update_info: Mapping[str, Any]  # vLLM's


@dataclass(frozen=True, kw_only=True, eq=False)
class FinishUpdate:
    """Compare what came with what was sent, and go on sampling with it."""

    generation: int
    policy_version: int
    checksum: str


TransferPhase = JoinWorld | StartUpdate | ReceiveWeights | FinishUpdate
