"""Sending weights from the learner ranks to the generators by vLLM's weight-transfer engines."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from gvm_ray.config.run import DeadlineConfig
from gvm_ray.exceptions import DeadlineExceeded, SystemFailure
from gvm_ray.learner.policy import PolicyModule, full_tensor_names, named_full_tensors
from gvm_ray.maths.checksum import TensorChecksum
from gvm_ray.types import (
    Delivery,
    FinishUpdate,
    JoinWorld,
    ReceiveWeights,
    StartUpdate,
    TransferMember,
    TransferPhase,
    TransferWorld,
    WeightTransfer,
)

Message = tuple[TransferMember, TransferPhase]
# Sends every message and waits for the answers, so many seconds at most. Gives back, by name, what members failed with
# and None for those that did not answer; empty when all are done. Returns at the first failure.
AskMembers = Callable[[Sequence[Message], float], Mapping[str, Exception | None]]


class TransferStopped(SystemFailure):
    """A generator failed, and the sender is to go no further; the delivery says the rest."""


class TransferClient:
    """A vLLM `VLLMWeightSyncClient` by its members, which vLLM's trainer side drives. For one transfer after the other.

    Args:
        ask: reaches the members.
        transfer: named in errors.
        deadlines: `start_s` for connecting, `sample_s` for samples under way, `sync_s` for each other phase.
        raises: whether a failure raises `TransferStopped` in the sender. Else the later phases do nothing, for a sender
            whose ranks all have to go through the whole round.
        on_failure: called at the first failure of a transfer, maybe in another thread than the sender's: it is to free
            the sender from a call that waits for a member.
    """

    def __init__(
        self,
        ask: AskMembers,
        *,
        transfer: WeightTransfer,
        deadlines: DeadlineConfig,
        raises: bool,
        on_failure: Callable[[], None],
    ) -> None:
        self._ask = ask
        self._transfer = transfer
        self._deadlines = deadlines
        self._raises = raises
        self._on_failure = on_failure
        self._world = TransferWorld(generation=-1, members=())
        self._policy_version = -1
        self._checksum: Callable[[], str] = str
        self._failures: dict[str, Exception] = {}
        self._halfway = False

    def aim(self, world: TransferWorld, *, policy_version: int, checksum: Callable[[], str]) -> None:
        """A new transfer, to these generators; `checksum` gives that of what was sent, once it was."""
        self._world = world
        self._policy_version = policy_version
        self._checksum = checksum
        self._failures = {}
        self._halfway = False

    @property
    def delivery(self) -> Delivery:
        """How the present transfer went so far."""
        return Delivery(policy_version=self._policy_version, failures=dict(self._failures), halfway=self._halfway)

    # --- the four calls of vLLM ---------------------------------------------------------------------------------------
    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        """Connect the members. vLLM means one engine, so each member's workers are given ranks of their own."""
        messages: list[Message] = []
        rank_offset = 1  # rank 0 sends
        for member in self._world.members:
            info = {**init_info, "rank_offset": rank_offset} if "rank_offset" in init_info else init_info
            messages.append((member, JoinWorld(generation=self._world.generation, init_info=info)))
            rank_offset += member.num_workers
        self._all("init", messages, timeout_s=self._deadlines.start_s, setting="deadlines.start_s")

    def start_weight_update(self) -> None:
        """All members at rest, which those with samples under way may first end."""
        deadlines = self._deadlines
        timeout_s = deadlines.sync_s + deadlines.sample_s
        phase = StartUpdate(
            generation=self._world.generation,
            policy_version=self._policy_version,
            silence_s=timeout_s + deadlines.sync_s,  # one may rest for as long as another takes to
        )
        self._same("start", phase, timeout_s=timeout_s)

    def update_weights(self, update_info: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """All members receive what is announced; returns when they have it."""
        assert isinstance(update_info, Mapping), "a list, one for each worker, is of transfers that aren't used here"
        phase = ReceiveWeights(generation=self._world.generation, update_info=update_info)
        self._same("update", phase, timeout_s=self._deadlines.sync_s)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """All members compare checksums and go on; the version is that of the transfer."""
        phase = FinishUpdate(
            generation=self._world.generation, policy_version=self._policy_version, checksum=self._checksum()
        )
        self._same("finish", phase, timeout_s=self._deadlines.sync_s)

    def _same(self, name: str, phase: TransferPhase, *, timeout_s: float) -> None:
        self._all(name, [(m, phase) for m in self._world.members], timeout_s=timeout_s, setting="deadlines.sync_s")

    def _all(self, name: str, messages: Sequence[Message], *, timeout_s: float, setting: str) -> None:
        if self._failures:
            return
        failures = self._ask(messages, timeout_s)
        if not failures:
            return
        what = f"weights version {self._policy_version} by {self._transfer}, phase {name!r}"
        longer = 2 * getattr(self._deadlines, setting.removeprefix("deadlines."))
        for member, error in failures.items():
            self._failures[member] = error or DeadlineExceeded(
                f"{what}: {member} took longer than {timeout_s:g} s; give it longer with --set {setting}={longer:g}"
            )
        self._halfway = name != "init"
        self._on_failure()
        if self._raises:
            raise TransferStopped(f"{what} failed at {', '.join(failures)}")


class TensorMeta(NamedTuple):
    """What is sent of one weight."""

    name: str  # Hugging Face
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class PolicyWeights:
    """A vLLM `WeightSource` by its members.

    Unlike vLLM's `ModuleSource` it sends what a generator samples with: adapters merged in, in the engine's dtype, and
    a tied output head by its own name as well, for engines that pack it apart from the embedding.

    Every rank iterates together with the others, as gathering is a collective call.

    Args:
        policy: gives the present one.
        dtype: of what is sent.
        device: where the gathered tensors are.
    """

    def __init__(self, policy: Callable[[], PolicyModule], *, dtype: torch.dtype, device: torch.device) -> None:
        self._policy = policy
        self._dtype = dtype
        self._device = device
        self._round: Iterator[tuple[str, Tensor]] | None = None
        self._checksum = TensorChecksum()

    def metadata(self) -> list[TensorMeta]:
        """What iteration gives, in order; gathers nothing."""
        policy = self._policy()
        return [
            TensorMeta(alias, self._dtype, shape)
            for name, shape in full_tensor_names(policy)
            for alias in _aliases(name, tied=policy.tied)
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self._checksum = TensorChecksum()
        self._round = self._checksum.following(self._tensors())
        return self._round

    @property
    def checksum(self) -> str:
        """Of what the last iteration has given so far."""
        return self._checksum.hexdigest()

    def finish_round(self) -> None:
        """Take part in what is left of a round that was broken off, or never begun: the other ranks wait in it."""
        for _ in self if self._round is None else self._round:
            pass
        self._round = None

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        policy = self._policy()
        for name, tensor in named_full_tensors(policy, dtype=self._dtype, device=self._device):
            for alias in _aliases(name, tied=policy.tied):
                yield alias, tensor


def _aliases(name: str, *, tied: bool) -> tuple[str, ...]:
    return (name, "lm_head.weight") if tied and name.endswith("embed_tokens.weight") else (name,)


Endpoint = Callable[[], tuple[str, int]]  # address of this node, and a port that is free


class TransferBackend(Protocol):
    """One of vLLM's transfers."""

    # Whether a sender that stops halfway leaves the other ranks in nothing but the gathering of weights. Else they wait
    # for each other in every bucket, and a round has to be gone through to its end.
    can_stop: bool

    def init_info(self, world: TransferWorld, *, rank: int, weights: PolicyWeights) -> Any:
        """vLLM's `TrainerInitInfo`."""
        ...


class NCCLBackend:
    """Rank 0 broadcasts packed buckets to all workers of all generators, each on a GPU of its own."""

    can_stop = True

    def __init__(self, endpoint: Endpoint, *, bucket_bytes: int) -> None:
        self._endpoint = endpoint
        self._bucket_bytes = bucket_bytes

    def init_info(self, world: TransferWorld, *, rank: int, weights: PolicyWeights) -> Any:
        """With a fresh port, as the one of an earlier world may linger."""
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        address, port = self._endpoint() if rank == 0 else ("", 0)  # the other ranks don't connect
        return NCCLTrainerInitInfo(
            rank=rank,
            master_address=address,
            master_port=port,
            world_size=world.size,
            packed=True,
            packed_buffer_size_bytes=self._bucket_bytes,
        )


class IPCBackend:
    """Every rank lends its GPU's workers a bucket in that GPU's memory."""

    can_stop = False

    def __init__(self, *, bucket_bytes: int) -> None:
        self._bucket_bytes = bucket_bytes

    def init_info(self, world: TransferWorld, *, rank: int, weights: PolicyWeights) -> Any:
        """A bucket has to hold the largest tensor."""
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        largest = max(meta.num_bytes for meta in weights.metadata())
        return IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=max(self._bucket_bytes, largest))


class WeightSender:
    """Sends the policy's weights to the generators of a world; every rank calls, and rank 0 sends.

    Args:
        policy: gives the present one.
        transfer: "nccl" or "ipc".
        dtype: of the generators' engines.
        device: of this rank.
        rank: of this process among the learners.
        bucket_bytes: GPU memory of one bucket.
        deadlines: of the phases.
        ask: reaches the generators.
        endpoint: where they can reach rank 0.
    """

    def __init__(
        self,
        policy: Callable[[], PolicyModule],
        *,
        transfer: WeightTransfer,
        dtype: torch.dtype,
        device: torch.device,
        rank: int,
        bucket_bytes: int,
        deadlines: DeadlineConfig,
        ask: AskMembers,
        endpoint: Endpoint,
    ) -> None:
        self._backend = _backend(transfer, bucket_bytes=bucket_bytes, endpoint=endpoint)
        self._weights = PolicyWeights(policy, dtype=dtype, device=device)
        self._rank = rank
        self._client = TransferClient(
            ask,
            transfer=transfer,
            deadlines=deadlines,
            raises=self._backend.can_stop,
            on_failure=self._disconnect,
        )
        self._engine: Any = None  # vLLM's, connected to the generators of a world
        self._generation = -1

    @torch.no_grad()
    def send(self, world: TransferWorld, *, policy_version: int) -> Delivery:
        """How it went, on rank 0; the other ranks only help to gather.

        Raises:
            Exception: this rank's own; the generators' failures are in the delivery.
        """
        weights = self._weights
        self._client.aim(world, policy_version=policy_version, checksum=lambda: weights.checksum)
        try:
            self._connected(world).send_weights()
        except Exception:
            if not self._client.delivery.failures:
                raise  # else this is what a generator's failure led to
        weights.finish_round()
        return self._client.delivery

    def _connected(self, world: TransferWorld) -> Any:
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

        if self._engine is not None and self._generation == world.generation:
            return self._engine
        self._disconnect()
        self._engine = WeightTransferTrainerFactory.trainer_init(
            self._backend.init_info(world, rank=self._rank, weights=self._weights),
            client=self._client,
            source=self._weights,  # pyright: ignore[reportArgumentType]  # it has the members, not the base class
        )
        self._generation = world.generation
        return self._engine

    def _disconnect(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown()


def _backend(transfer: WeightTransfer, *, bucket_bytes: int, endpoint: Endpoint) -> TransferBackend:
    match transfer:
        case "nccl":
            return NCCLBackend(endpoint, bucket_bytes=bucket_bytes)
        case "ipc":
            return IPCBackend(bucket_bytes=bucket_bytes)
        case "object_store":
            raise AssertionError("the object store needs no sender")
