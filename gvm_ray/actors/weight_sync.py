"""New weights from the learners to the generators through Ray's object store: one put per bucket, zero-copy reads."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import ray

from gvm_ray.types import WeightsRef

if TYPE_CHECKING:
    import torch


def publish(
    named_tensors: "Iterable[tuple[str, torch.Tensor]]", *, policy_version: int, bucket_bytes: int = 256 * 2**20
) -> WeightsRef:
    """Copy the tensors into the object store; every node fetches each bucket once for all its generators.

    The buckets live as long as a copy of the returned reference, and no longer than the process that published them.
    """
    from gvm_ray.functional.buckets import pack  # imports torch, which a generator may do without

    location = tuple(map(ray.put, pack(named_tensors, bucket_bytes=bucket_bytes)))  # holds no bucket past its put
    return WeightsRef(policy_version=policy_version, location=location)


def fetch(weights: WeightsRef, *, timeout_s: float | None = None) -> Iterator[tuple[str, Any]]:
    """The published tensors in order, as read-only views into the object store, one bucket at a time.

    Raises:
        ray.exceptions.GetTimeoutError: a bucket did not arrive within `timeout_s` seconds.
    """
    for ref in weights.location:
        bucket: Any = ray.get(ref, timeout=timeout_s)
        yield from bucket.tensors()
