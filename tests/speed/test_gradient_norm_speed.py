"""Per-sample gradient norms: times by pytest-benchmark, results against one backward pass a sample in float64."""

from typing import Any

import pytest
import torch

from gvm_ray.lab.speed.gradient_norms import norms_one_by_one, random_batch, tiny_policy
from gvm_ray.learner.policy import sample_gradient_norms
from gvm_ray.types import GradientParameters


@pytest.mark.parametrize(("tied", "parameters"), [(True, "embed_tokens"), (False, "embed_tokens"), (False, "lm_head")])
def test_norms_equal_those_of_single_backward_passes(
    benchmark: Any, tied: bool, parameters: GradientParameters
) -> None:
    policy = tiny_policy(vocab_size=8000, tied=tied)
    batch = random_batch(4, vocab_size=8000, device=torch.device("cpu"))
    norms = benchmark(lambda: sample_gradient_norms(policy, batch, parameters=parameters))
    exact = norms_one_by_one(policy.double(), batch, parameters=parameters)  # in float32 the loop is off by 2e-4
    torch.testing.assert_close(norms.double(), exact, rtol=1e-5, atol=0.0)
