"""Named tensors in buckets of bounded size, so that weights travel as a few large objects instead of many small ones.

A bucket holds each tensor as an array of bytes. Pickle protocol 5 passes such arrays out of band, so Ray's object store
takes them without a packing copy and returns them as views. Only one bucket is built at a time, so peak memory is the
model plus one bucket.
"""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Bucket:
    """Named tensors as arrays of bytes."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]  # torch names without the prefix: "float32", "bfloat16" ...
    data: tuple[NDArray[np.uint8], ...]  # [bytes] of each

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors as views of the bytes, in order. Don't write to them: other processes read the same memory."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nobody writes
            arrays = [torch.from_numpy(data) for data in self.data]
        for name, shape, dtype_name, flat in zip(self.names, self.shapes, self.dtypes, arrays, strict=True):
            dtype: torch.dtype = getattr(torch, dtype_name)
            yield name, flat.view(dtype).view(shape) if flat.numel() else torch.empty(shape, dtype=dtype)


def pack(named_tensors: Iterable[tuple[str, torch.Tensor]], *, bucket_bytes: int = 256 * 2**20) -> Iterator[Bucket]:
    """Pack the tensors into buckets of at most `bucket_bytes`, in order. A larger tensor gets a bucket of its own.

    Tensors are taken from the iterable one at a time. A bucket shares memory with contiguous CPU tensors: put it into
    the object store, or copy it, before they change.
    """
    members: list[tuple[str, torch.Tensor]] = []
    used = 0
    for name, tensor in named_tensors:
        if members and used + tensor.nbytes > bucket_bytes:
            yield _bucket(members)
            members, used = [], 0
        members.append((name, tensor.detach().cpu()))
        used += tensor.nbytes
    if members:
        yield _bucket(members)


def _bucket(members: list[tuple[str, torch.Tensor]]) -> Bucket:
    return Bucket(
        names=tuple(name for name, _ in members),
        shapes=tuple(tuple(tensor.shape) for _, tensor in members),
        dtypes=tuple(str(tensor.dtype).removeprefix("torch.") for _, tensor in members),
        data=tuple(_bytes(tensor) for _, tensor in members),
    )


def _bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    if not tensor.numel():  # may have strides of 0, which can't be viewed as another dtype
        return np.empty(0, dtype=np.uint8)
    return tensor.reshape(-1).view(torch.uint8).numpy()
