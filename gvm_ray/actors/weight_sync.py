"""New weights from the learners to the generators through Ray's object store: one put per bucket, zero-copy reads.

Weights that the learners send over NCCL or IPC are published as `LiveWeights`. Their reference has buckets only if
generators outside the transfer need them.
"""

import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from gvm_ray.actors.waiting import failure_of
from gvm_ray.exceptions import ObjectsLost
from gvm_ray.types import LiveWeights, TransferMember, TransferPhase, WeightsRef

if TYPE_CHECKING:
    import torch


def publish(
    named_tensors: "Iterable[tuple[str, torch.Tensor]]", *, policy_version: int, bucket_bytes: int = 256 * 2**20
) -> WeightsRef:
    """Copy the tensors into the object store; every node fetches each bucket once for all its generators.

    The buckets live as long as a copy of the returned reference, and no longer than the process that published them.
    """
    from gvm_ray.actors.buckets import pack  # here, as it imports torch, which some generators don't need

    location = tuple(map(ray.put, pack(named_tensors, bucket_bytes=bucket_bytes)))  # holds no bucket past its put
    return WeightsRef(policy_version=policy_version, location=location)


def buckets_of(weights: WeightsRef) -> Sequence[Any]:
    """Object refs of the buckets; empty if the weights were only sent."""
    return weights.location.buckets if isinstance(weights.location, LiveWeights) else weights.location


def fetch(weights: WeightsRef) -> Iterator[tuple[str, Any]]:
    """Fetch the published tensors in order, one bucket at a time, as read-only views into the object store.

    Raises:
        ObjectsLost: the weights were sent to other generators and not stored.
    """
    if isinstance(weights.location, LiveWeights) and not weights.location.buckets:
        raise ObjectsLost(
            f"weights version {weights.policy_version} were sent by {weights.location.transfer} and not stored"
        )
    for ref in buckets_of(weights):
        bucket: Any = ray.get(ref)
        yield from bucket.tensors()


def ask_members(
    messages: Sequence[tuple[TransferMember, TransferPhase]], timeout_s: float
) -> Mapping[str, Exception | None]:
    """Have every generator take its message; see `gvm_ray.learner.transfer.AskMembers`."""
    asked = {member.actor.transfer.remote(phase): member.name for member, phase in messages}
    waiting, end = list(asked), time.monotonic() + timeout_s
    while waiting:
        done, waiting = ray.wait(waiting, timeout=max(0.0, end - time.monotonic()))
        if not done:
            return dict.fromkeys(asked[ref] for ref in waiting)
        try:
            ray.get(done[0])
        except RayError as error:
            return {asked[done[0]]: failure_of(error, f"taking weights in {asked[done[0]]}")}
    return {}


def free_endpoint() -> tuple[str, int]:
    """This node's address, and a port that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return ray.util.get_node_ip_address(), probe.getsockname()[1]
