"""Sending weights from the learner ranks to the generators with vLLM's weight-transfer engines."""

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
# (messages, timeout in seconds) -> failures. Sends every message and waits for the answers, until the first failure.
# Failures are by member name: its error, or None if it didn't answer in time. Empty if all members are done.
AskMembers = Callable[[Sequence[Message], float], Mapping[str, Exception | None]]


class TransferStopped(SystemFailure):
    """A generator failed, so the sender stops; the delivery has the details."""


class TransferClient:
    """Client of vLLM's trainer side: passes its calls on to the generators. Used for one transfer after the other.

    Has the methods of vLLM's `VLLMWeightSyncClient` without inheriting from it.

    Args:
        ask: sends messages to the generators.
        transfer: named in errors.
        deadlines: `start_s` for connecting, `sample_s` for samples under way, `sync_s` for each other phase.
        raises: whether a failure raises `TransferStopped` in the sender. Otherwise later phases do nothing; for
            senders whose ranks must all go through the whole round.
        on_failure: called at the first failure of a transfer, possibly in another thread than the sender's. It must
            release the sender from a call that waits for a generator.
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
        """Begin a new transfer to these generators; `checksum` gives the checksum of the weights once they are sent."""
        self._world = world
        self._policy_version = policy_version
        self._checksum = checksum
        self._failures = {}
        self._halfway = False

    @property
    def delivery(self) -> Delivery:
        """Outcome of the current transfer so far."""
        return Delivery(policy_version=self._policy_version, failures=dict(self._failures), halfway=self._halfway)

    # --- the four calls of vLLM ---------------------------------------------------------------------------------------
    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        """Connect the generators. vLLM expects one engine, so here each generator's workers get their own ranks."""
        messages: list[Message] = []
        rank_offset = 1  # rank 0 sends
        for member in self._world.members:
            info = {**init_info, "rank_offset": rank_offset} if "rank_offset" in init_info else init_info
            messages.append((member, JoinWorld(generation=self._world.generation, init_info=info)))
            rank_offset += member.num_workers
        self._all("init", messages, timeout_s=self._deadlines.start_s, setting="deadlines.start_s")

    def start_weight_update(self) -> None:
        """Pause all generators. They may finish their samples under way first."""
        deadlines = self._deadlines
        timeout_s = deadlines.sync_s + deadlines.sample_s
        phase = StartUpdate(
            generation=self._world.generation,
            policy_version=self._policy_version,
            silence_s=timeout_s + deadlines.sync_s,  # a paused generator may wait this long for the others to pause
        )
        self._same("start", phase, timeout_s=timeout_s)

    def update_weights(self, update_info: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Have all generators receive the announced weights; returns once they have them."""
        assert isinstance(update_info, Mapping), "lists, with an item for each worker, are for transfers not used here"
        phase = ReceiveWeights(generation=self._world.generation, update_info=update_info)
        self._same("update", phase, timeout_s=self._deadlines.sync_s)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Have all generators compare checksums and resume; `weight_version` is ignored for the transfer's own."""
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
    """Name, dtype and shape of a weight to be sent."""

    name: str  # Hugging Face
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class PolicyWeights:
    """The policy's weights as generators need them. Has the methods of vLLM's `WeightSource` without inheriting.

    Unlike vLLM's `ModuleSource`, it merges adapters, converts to the engine's dtype, and also sends a tied output head
    under its own name, for engines that store it apart from the embedding.

    All ranks must iterate together, as gathering is a collective call.

    Args:
        policy: returns the current policy.
        dtype: of the tensors sent.
        device: of the gathered tensors.
    """

    def __init__(self, policy: Callable[[], PolicyModule], *, dtype: torch.dtype, device: torch.device) -> None:
        self._policy = policy
        self._dtype = dtype
        self._device = device
        self._round: Iterator[tuple[str, Tensor]] | None = None
        self._checksum = TensorChecksum()

    def metadata(self) -> list[TensorMeta]:
        """Metadata of the tensors that iteration yields, in order; gathers nothing."""
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
        """Checksum of the tensors that the last iteration has yielded so far."""
        return self._checksum.hexdigest()

    def finish_round(self) -> None:
        """Complete a round that was broken off or never begun: the other ranks wait in it."""
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


Endpoint = Callable[[], tuple[str, int]]  # returns this node's address and a free port


class TransferBackend(Protocol):
    """One of vLLM's transfers."""

    # Whether the sender may stop halfway: true if the other ranks then wait only in the gathering of weights, false if
    # ranks wait for each other in every bucket, so that a round must be completed.
    can_stop: bool

    def init_info(self, world: TransferWorld, *, rank: int, weights: PolicyWeights) -> Any:
        """vLLM's `TrainerInitInfo`."""
        ...


class NCCLBackend:
    """NCCL: rank 0 broadcasts packed buckets to all workers of all generators, each on its own GPU."""

    can_stop = True

    def __init__(self, endpoint: Endpoint, *, bucket_bytes: int) -> None:
        self._endpoint = endpoint
        self._bucket_bytes = bucket_bytes

    def init_info(self, world: TransferWorld, *, rank: int, weights: PolicyWeights) -> Any:
        """vLLM's `TrainerInitInfo`, with a new port: the port of an earlier world may still be in use."""
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
    """CUDA IPC: every rank shares a bucket in its GPU's memory with the generator workers on that GPU."""

    can_stop = False

    def __init__(self, *, bucket_bytes: int) -> None:
        self._bucket_bytes = bucket_bytes

    def init_info(self, world: TransferWorld, *, rank: int, weights: PolicyWeights) -> Any:
        """vLLM's `TrainerInitInfo`; the bucket is large enough for the largest tensor."""
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        largest = max(meta.num_bytes for meta in weights.metadata())
        return IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=max(self._bucket_bytes, largest))


class WeightSender:
    """Sends the policy's weights to the generators of a world. Every rank must call `send`.

    Args:
        policy: returns the current policy.
        transfer: "nccl" or "ipc".
        dtype: of the generators' engines.
        device: of this rank.
        rank: of this process among the learners.
        bucket_bytes: GPU memory of one bucket.
        deadlines: of the phases.
        ask: sends messages to the generators.
        endpoint: returns an address and port at which they can reach rank 0.
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
        self._engine: Any = None  # vLLM's trainer engine, connected to the generators of a world
        self._generation = -1

    @torch.no_grad()
    def send(self, world: TransferWorld, *, policy_version: int) -> Delivery:
        """Send the weights; returns the outcome, valid on rank 0.

        Raises:
            Exception: an error of this rank; the generators' failures are in the delivery.
        """
        weights = self._weights
        self._client.aim(world, policy_version=policy_version, checksum=lambda: weights.checksum)
        try:
            self._connected(world).send_weights()
        except Exception:
            if not self._client.delivery.failures:
                raise  # otherwise the exception is a consequence of a generator's failure
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
            source=self._weights,  # pyright: ignore[reportArgumentType]  # has the methods, but not the base class
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
