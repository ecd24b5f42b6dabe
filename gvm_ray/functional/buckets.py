"""Named tensors packed into flat byte buckets, so that weights travel as a few large arrays instead of many small ones.

A bucket's array goes through Ray's object store without a copy on the reading side; only one bucket is in the making at
any time, so the peak is the model plus one bucket.
"""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

_ALIGNMENT = 64  # bytes: a view of any dtype needs an offset that its item size divides


@dataclass(frozen=True, kw_only=True, eq=False)
class Bucket:
    """Some named tensors, end to end in one byte array."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]  # torch names without the prefix: "float32", "bfloat16" ...
    offsets: tuple[int, ...]  # bytes from the start of data
    data: NDArray[np.uint8]  # [bytes]

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors as views of the bytes, in order. They must not be written: others read them too."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nobody writes
            flat = torch.from_numpy(self.data)
        for name, shape, dtype_name, offset in zip(self.names, self.shapes, self.dtypes, self.offsets, strict=True):
            dtype: torch.dtype = getattr(torch, dtype_name)
            num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            yield name, flat[offset : offset + num_bytes].view(dtype).view(shape)


def pack(named_tensors: Iterable[tuple[str, torch.Tensor]], *, bucket_bytes: int = 256 * 2**20) -> Iterator[Bucket]:
    """The tensors as buckets of at most `bucket_bytes`, in order; a larger tensor gets a bucket of its own.

    Tensors are taken from the iterable one at a time and copied once (tensors on other devices are copied to the CPU).
    """
    buffer, layout, used = np.empty(0, dtype=np.uint8), list[tuple[str, tuple[int, ...], str, int]](), 0
    for name, tensor in named_tensors:
        num_bytes = tensor.numel() * tensor.element_size()
        if layout and used + num_bytes > bucket_bytes:
            yield _bucket(layout, buffer[:used])
            layout, used = [], 0
        if not layout:
            buffer = np.empty(max(bucket_bytes, num_bytes), dtype=np.uint8)  # pages are only taken when written
        flat = torch.from_numpy(buffer[used : used + num_bytes])
        if num_bytes:
            flat.view(tensor.dtype).copy_(tensor.detach().reshape(-1))
        layout.append((name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), used))
        used += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
    if layout:
        yield _bucket(layout, buffer[:used])


def _bucket(layout: list[tuple[str, tuple[int, ...], str, int]], data: NDArray[np.uint8]) -> Bucket:
    names, shapes, dtypes, offsets = zip(*layout, strict=True)
    return Bucket(names=names, shapes=shapes, dtypes=dtypes, offsets=offsets, data=data)
