"""The learning-rate schedule, clipping, and weight decay."""

from typing import Literal

import pytest
import torch
import torch.distributed as dist
from torch import nn

from gvm_ray.config.model import OptimizerConfig, ScheduleConfig
from gvm_ray.learner.optimizer import PolicyOptimizer, clip_gradients, learning_rate_factor


@pytest.fixture(autouse=True)
def _one_rank() -> None:
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def _factors(schedule: ScheduleConfig, *, total_updates: int) -> list[float]:
    return [learning_rate_factor(i, schedule=schedule, total_updates=total_updates) for i in range(total_updates + 1)]


def test_constant_with_warm_up() -> None:
    assert _factors(ScheduleConfig(warmup_updates=3), total_updates=4) == [0.25, 0.5, 0.75, 1, 1]


def test_linear_decay_ends_after_the_last_update() -> None:
    schedule = ScheduleConfig(type="linear", min_ratio=0.2)
    assert _factors(schedule, total_updates=4) == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])
    assert learning_rate_factor(9, schedule=schedule, total_updates=4) == pytest.approx(0.2)


def test_cosine_decay_after_warm_up() -> None:
    schedule = ScheduleConfig(type="cosine", warmup_updates=1, min_ratio=0.1)
    # after the warm-up 1, 0.1 + 0.9 (1 + cos(pi / 2)) / 2
    assert _factors(schedule, total_updates=3) == pytest.approx([0.5, 1, 0.55, 0.1])


@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize("warmup_updates", [0, 1, 3, 4, 9])
@pytest.mark.parametrize("total_updates", [1, 2, 4])
def test_no_update_has_the_rate_0(kind: Literal["linear", "cosine"], warmup_updates: int, total_updates: int) -> None:
    schedule = ScheduleConfig(type=kind, warmup_updates=warmup_updates, min_ratio=0)
    assert min(_factors(schedule, total_updates=total_updates)[:total_updates]) >= 0.1


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_single_update_has_the_full_rate_and_reports_it(kind: Literal["linear", "cosine"]) -> None:
    config = OptimizerConfig(learning_rate=0.5, schedule=ScheduleConfig(type=kind))
    optimizer = PolicyOptimizer(_with_gradient([1.0]), config, total_updates=1, max_skipped_updates=1)
    optimizer.apply(where="step 1")
    assert optimizer.adamw.param_groups[0]["lr"] == optimizer.last_learning_rate == 0.5


def test_the_last_learning_rate_is_that_of_the_last_update_made() -> None:
    config = OptimizerConfig(learning_rate=1.0, schedule=ScheduleConfig(type="linear"))
    module = _with_gradient([1.0])
    optimizer = PolicyOptimizer(module, config, total_updates=4, max_skipped_updates=3)
    rates = [optimizer.last_learning_rate]
    for gradient in (1.0, 1.0, float("nan"), 1.0):
        module.weight.grad = torch.tensor([[gradient]])
        optimizer.apply(where="a step")
        rates.append(optimizer.last_learning_rate)
    assert rates == [1, 1, 0.75, 0.75, 0.5]  # the third one was skipped
    assert optimizer.learning_rate == 0.25


def _with_gradient(values: list[float]) -> nn.Module:
    module = nn.Linear(len(values), 1, bias=False)
    module.weight.grad = torch.tensor([values])
    return module


def test_clipping_scales_to_the_bound() -> None:
    module = _with_gradient([3.0, 4.0])
    assert clip_gradients(module, max_norm=1.0) == pytest.approx(5.0)
    torch.testing.assert_close(module.weight.grad, torch.tensor([[0.6, 0.8]]))


def test_small_gradients_are_left_alone() -> None:
    module = _with_gradient([0.3, 0.4])
    assert clip_gradients(module, max_norm=1.0) == pytest.approx(0.5)
    torch.testing.assert_close(module.weight.grad, torch.tensor([[0.3, 0.4]]))


def test_weight_decay_spares_vectors() -> None:
    module = nn.Linear(2, 2)
    nn.init.ones_(module.weight)
    nn.init.ones_(module.bias)
    module.weight.grad, module.bias.grad = torch.zeros(2, 2), torch.zeros(2)
    PolicyOptimizer(
        module, OptimizerConfig(learning_rate=0.1, weight_decay=0.5), total_updates=1, max_skipped_updates=1
    ).apply(where="step 1")
    torch.testing.assert_close(module.weight.data, torch.full((2, 2), 0.95))  # 1 - 0.1 * 0.5
    torch.testing.assert_close(module.bias.data, torch.ones(2))


def test_a_skipped_update_neither_counts_nor_moves_the_schedule() -> None:
    module = _with_gradient([float("nan"), 1.0])
    before = module.weight.detach().clone()
    config = OptimizerConfig(learning_rate=1.0, schedule=ScheduleConfig(warmup_updates=1))
    optimizer = PolicyOptimizer(module, config, total_updates=10, max_skipped_updates=2)
    optimizer.apply(where="step 1")
    assert (optimizer.num_updates, optimizer.learning_rate) == (0, 0.5)
    assert module.weight.grad is None
    torch.testing.assert_close(module.weight.data, before)
