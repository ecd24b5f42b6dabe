"""A checksum of named tensors that two processes can compare, on whichever device each of them holds the tensors."""

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

_ROW_WORDS = 4096


class TensorChecksum:
    """Of every bit of the tensors given so far, of their names, dtypes and shapes, and not of the order they came in.

    A tensor's bits are read as 64-bit words in rows; the sums of the rows and of the columns, each weighted by its
    index, tell where a word stands. Integers wrap around, so devices that add in different orders agree. One pass over
    the tensor; nothing is copied to the CPU before `hexdigest`.
    """

    def __init__(self) -> None:
        self._sums: list[tuple[str, Tensor]] = []  # what a tensor is called and looks like; [2] int64 on its device

    def following(self, named_tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The tensors, each added as it is passed on."""
        for name, tensor in named_tensors:
            self.add(name, tensor)
            yield name, tensor

    def add(self, name: str, tensor: Tensor) -> None:
        """One more tensor; under the same name too it counts again."""
        self._sums.append((f"{name} {tensor.dtype} {list(tensor.shape)}", _word_sums(tensor.detach())))

    def hexdigest(self) -> str:
        """32 hexadecimal digits."""
        lines = sorted(f"{what} {sums.tolist()}" for what, sums in self._sums)
        return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


def _word_sums(tensor: Tensor) -> Tensor:
    """[2] int64: row sums weighted by row, and column sums weighted by column."""
    flat = tensor.contiguous().view(-1).view(torch.uint8) if tensor.numel() else tensor.new_empty(0, dtype=torch.uint8)
    row_bytes = _ROW_WORDS * 8
    whole = flat.numel() // row_bytes * row_bytes
    rest = flat.new_zeros(row_bytes)
    rest[: flat.numel() - whole] = flat[whole:]
    head = flat[:whole]
    if head.storage_offset() % 8:  # a view of words must begin at one
        head = head.clone()
    rows = head.view(torch.int64).view(-1, _ROW_WORDS)
    last = rest.view(torch.int64)
    row_sums = torch.cat([rows.sum(1), last.sum().view(1)])
    column_sums = rows.sum(0) + last
    return torch.stack([_weighted(row_sums), _weighted(column_sums)])


def _weighted(sums: Tensor) -> Tensor:
    return (sums * torch.arange(1, sums.numel() + 1, device=sums.device)).sum()
