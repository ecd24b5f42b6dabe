"""Updates of a real model: the same with prompts that samples share and with a padded copy for each."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gvm_ray.types import RolloutGroup
from tests.real.learners import batch_of, config_of, learner_of

Weights = dict[str, Tensor]


def distance(a: Weights, b: Weights) -> float:
    """The L2 norm of the difference of all weights."""
    assert a.keys() == b.keys()
    return float(torch.stack([(a[name] - b[name]).norm() for name in a]).norm())


@pytest.mark.parametrize("algorithm", [{"type": "grpo"}, {"type": "raft++", "updates_per_batch": 2}])
def test_shared_and_padded_prompts_give_the_same_update(
    folder: str, weights: Weights, groups: list[RolloutGroup], algorithm: dict[str, Any]
) -> None:
    """Adam's epsilon is large against a gradient of norm 1 in so many weights: they move in proportion to it."""
    metrics, after = [], []
    for packing in ("shared", "padded"):
        config = config_of(folder, algorithm=algorithm, packing=packing)
        learner = learner_of(config, folder)
        assert learner.policy.shares_prompts == (packing == "shared")
        metrics.append(learner.update(batch_of(config, groups), groups).metrics)
        after.append({name: tensor.clone() for name, tensor in learner.named_full_tensors()})
    assert metrics[0] == pytest.approx(metrics[1], abs=3e-4, rel=3e-4)
    assert metrics[0]["num_updates"] == algorithm.get("updates_per_batch", 1)
    assert distance(after[0], after[1]) < 1e-3 * distance(after[1], weights)
