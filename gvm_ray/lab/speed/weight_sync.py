"""Benchmark of weight sync: publishing weights to the object store and reading views, against a plain memory copy."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from gvm_ray.actors.weight_sync import fetch, publish
from gvm_ray.lab.speed.suite import BenchOptions, BenchRow, compare, local_cluster

NamedTensors = list[tuple[str, torch.Tensor]]


def measure(options: BenchOptions) -> Iterator[BenchRow]:
    """Measure MB/s of publishing and fetching some large and many small tensors.

    Needs memory for four times the largest case. Starts a local Ray if none runs.
    """
    with local_cluster(object_store_mb=3 * 2**10):
        for num_tensors, tensor_bytes in ((200, 2**20 if options.quick else 5 * 2**20), (2000, 2**14)):
            yield from sync_rows(named_tensors(num_tensors, tensor_bytes), repeats=3 if options.quick else 7)


def named_tensors(num_tensors: int, tensor_bytes: int) -> NamedTensors:
    """Create random float32 vectors."""
    generator = torch.Generator().manual_seed(0)
    return [
        (f"layers.{index}.weight", torch.randn(tensor_bytes // 4, generator=generator)) for index in range(num_tensors)
    ]


def sync_rows(named: NamedTensors, *, repeats: int) -> list[BenchRow]:
    """Measure publishing and fetching these tensors, against copying their bytes into used and into new memory."""
    arrays = [tensor.numpy() for _, tensor in named]
    megabytes = sum(array.nbytes for array in arrays) / 1e6
    warm = [array.copy() for array in arrays]

    def into_warm_memory() -> None:
        for target, source in zip(warm, arrays, strict=True):
            np.copyto(target, source)

    def into_fresh_memory() -> list[np.ndarray]:
        return [array.copy() for array in arrays]

    def through_the_object_store() -> None:
        weights = publish(named, policy_version=0)
        assert len(list(fetch(weights))) == len(named)

    bare: dict[str, Callable[[], object]] = {"warm": into_warm_memory, "fresh": into_fresh_memory}
    rows = []
    for memory, copy in bare.items():
        ours_s, bare_s = compare(through_the_object_store, copy, repeats=repeats)
        rows.append(
            BenchRow(
                name=f"weight sync, {megabytes:,.0f} MB in {len(named)} tensors",
                value=megabytes / ours_s,
                unit="MB/s",
                floor=megabytes / bare_s,
                floor_name=f"np.copyto into {memory} memory",
            )
        )
    return rows
