"""Metrics summed over micro-batches, by hand; tests/ray/test_learner_group.py sums them over ranks."""

import pytest
import torch
import torch.distributed as dist

from gvm_ray.learner.losses import MetricSums


@pytest.fixture
def sums() -> MetricSums:
    if not dist.is_initialized():
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    return MetricSums(torch.device("cpu"))


def test_a_name_says_how_its_values_are_reduced(sums: MetricSums) -> None:
    for values, mask in (([[1.0, 3.0], [2.0, 9.0]], [[1, 1], [1, 0]]), ([[4.0, 7.0]], [[1, 0]])):
        for name in ("kl", "kl/max", "kl/effective_sample_size"):
            sums.add_tokens(name, torch.tensor(values), mask=torch.tensor(mask, dtype=torch.bool))
        sums.add("loss", torch.tensor(0.5))
    assert sums.reduce() == {"loss": 1.0, "kl": 2.5, "kl/max": 4.0, "kl/effective_sample_size": 10**2 / (4 * 30)}


def test_nothing_to_reduce_is_0_and_not_nan(sums: MetricSums) -> None:
    for name in ("kl", "kl/max", "kl/effective_sample_size"):
        sums.add_tokens(name, torch.tensor([[torch.nan]]), mask=torch.tensor([[False]]))
    assert sums.reduce() == {"loss": 0.0, "kl": 0.0, "kl/max": 0.0, "kl/effective_sample_size": 0.0}
