"""The checksum of sent weights: the same for the same bits on any layout, another for any change."""

import pytest
import torch
from torch import Tensor

from gvm_ray.maths.checksum import TensorChecksum

TENSOR = torch.randn(70, 1000, generator=torch.Generator().manual_seed(0))


def checksum(*named: tuple[str, Tensor]) -> str:
    found = TensorChecksum()
    passed_on = list(found.following(named))
    assert [(name, id(tensor)) for name, tensor in passed_on] == [(name, id(tensor)) for name, tensor in named]
    return found.hexdigest()


def test_layout_and_order_do_not_matter() -> None:
    packed = torch.cat([torch.zeros(3), TENSOR.view(-1)])  # as a view into a bucket, at no word's beginning
    other = ("b", torch.arange(5))
    assert checksum(("a", TENSOR), other) == checksum(other, ("a", packed[3:].view(70, 1000)))
    assert checksum(("a", TENSOR)) == checksum(("a", TENSOR.t().contiguous().t()))


def flipped_bit(tensor: Tensor) -> Tensor:
    changed = tensor.clone()
    changed.view(-1).view(torch.uint8)[12_345] ^= 1
    return changed


def swapped(tensor: Tensor, first: int, second: int) -> Tensor:
    flat = tensor.clone().view(-1)
    flat[[first, second]] = flat[[second, first]]
    return flat.view_as(tensor)


@pytest.mark.parametrize(
    "named",
    [
        ("b", TENSOR),
        ("a", TENSOR.view(1000, 70)),
        ("a", TENSOR.bfloat16()),
        ("a", TENSOR.view(torch.int32)),
        ("a", flipped_bit(TENSOR)),
        ("a", swapped(TENSOR, 10, 12)),  # two words of a row
        ("a", swapped(TENSOR, 10, 10 + 8192)),  # the same place of two rows
    ],
    ids=["name", "shape", "dtype", "type", "bit", "columns", "rows"],
)
def test_any_change_is_another_checksum(named: tuple[str, Tensor]) -> None:
    assert checksum(named) != checksum(("a", TENSOR))


def test_a_missing_and_a_repeated_tensor_count() -> None:
    named = ("a", TENSOR)
    assert len({checksum(), checksum(named), checksum(named, named)}) == 3


@pytest.mark.parametrize("tensor", [torch.tensor(1.5), torch.empty(0, 3), torch.ones(3, dtype=torch.int8)])
def test_tiny_tensors_have_one(tensor: Tensor) -> None:
    assert checksum(("a", tensor)) == checksum(("a", tensor.clone()))
