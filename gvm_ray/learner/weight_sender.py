"""The learners' side of a transfer: vLLM's own trainer engines, set up anew whenever other generators take part."""

from collections.abc import Callable
from typing import Any, Protocol

import torch

from gvm_ray.config.run import DeadlineConfig
from gvm_ray.learner.policy import PolicyModule
from gvm_ray.learner.transfer_client import AskMembers, TransferClient
from gvm_ray.learner.weight_source import PolicyWeights
from gvm_ray.types import Delivery, TransferWorld, WeightTransfer

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
