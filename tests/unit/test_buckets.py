"""Weights in buckets of bytes: exact round trips, whatever the dtype, shape and bucket size."""

import pickle
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gvm_ray.actors.buckets import Bucket, pack


def _round_trip(named: list[tuple[str, torch.Tensor]], *, bucket_bytes: int) -> list[tuple[str, torch.Tensor]]:
    return [item for bucket in pack(named, bucket_bytes=bucket_bytes) for item in bucket.tensors()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_round_trip_keeps_names_shapes_dtypes_and_bits(dtype: torch.dtype) -> None:
    named = [
        ("matrix", torch.tensor([[1.5, -2.0, 0.0], [3.0, 4.0, 5.0]]).to(dtype)),
        ("transposed", torch.arange(6.0).reshape(2, 3).t().to(dtype)),  # not contiguous
        ("scalar", torch.tensor(7.0).to(dtype)),
        ("empty", torch.zeros(0, 3, dtype=dtype)),
        ("vector", torch.tensor([9.0]).to(dtype)),
    ]
    result = _round_trip(named, bucket_bytes=2**20)
    assert [name for name, _ in result] == [name for name, _ in named]
    for (_, expected), (_, actual) in zip(named, result, strict=True):
        assert actual.dtype == dtype
        assert actual.shape == expected.shape
        assert torch.equal(actual, expected)


def test_buckets_hold_at_most_bucket_bytes_unless_one_tensor_is_larger() -> None:
    named = [(str(i), torch.full((count,), float(i))) for i, count in enumerate([16, 16, 16, 100, 1])]
    buckets = list(pack(named, bucket_bytes=128))  # a tensor of 16 float32 is 64 bytes
    assert [bucket.names for bucket in buckets] == [("0", "1"), ("2",), ("3",), ("4",)]
    assert [[data.nbytes for data in bucket.data] for bucket in buckets] == [[64, 64], [64], [400], [4]]


def test_packing_takes_tensors_only_as_needed() -> None:
    taken: list[int] = []

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for i in range(4):
            taken.append(i)
            yield str(i), torch.zeros(16)

    buckets = pack(tensors(), bucket_bytes=64)
    next(buckets)
    assert taken == [0, 1]  # the second only showed that the first bucket was full


def test_bytes_are_copied_only_by_the_one_who_keeps_them() -> None:
    """As the object store does: packing shares memory, and every array goes over out of band."""
    weight = torch.nn.Parameter(torch.ones(4))
    (packed,) = pack([("weight", weight)])
    assert packed.data[0].ctypes.data == weight.data_ptr()
    out_of_band: list[pickle.PickleBuffer] = []
    stream = pickle.dumps(packed, protocol=5, buffer_callback=out_of_band.append)
    kept = bytes(out_of_band[0].raw())
    bucket: Bucket = pickle.loads(stream, buffers=[kept])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # read-only memory makes torch warn
        ((_, tensor),) = bucket.tensors()
    weight.data.zero_()
    assert tensor.data_ptr() == np.frombuffer(kept, dtype=np.uint8).ctypes.data
    assert tensor.tolist() == [1, 1, 1, 1]


def test_nothing_packs_to_nothing() -> None:
    assert list(pack([])) == []


@settings(max_examples=50, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), max_size=8),
    bucket_bytes=st.integers(1, 600),
)
def test_any_shapes_survive(shapes: list[list[int]], bucket_bytes: int) -> None:
    generator = np.random.default_rng(0)
    named = [
        (str(i), torch.from_numpy(generator.normal(size=shape)).to(torch.bfloat16)) for i, shape in enumerate(shapes)
    ]
    result = _round_trip(named, bucket_bytes=bucket_bytes)
    assert len(result) == len(named)
    assert all(torch.equal(a, b) and na == nb for (na, a), (nb, b) in zip(named, result, strict=True))
