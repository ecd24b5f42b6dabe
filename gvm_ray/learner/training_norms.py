"""Gradient norms of the samples of an optimizer update, from the backward pass that trains on them anyway.

A micro-batch's backward pass reaches the output of the input embedding, and its gradient there [R, S, H] holds each
sample's own at its positions. Added up by token, they are the gradient of the embedding matrix of that sample's term of
the loss; nothing is computed but that sum.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from gvm_ray.functional.gradient_norms import embedding_gradient_square_norms
from gvm_ray.learner.policy import PolicyModule, looked_up_gradients
from gvm_ray.learner.sequences import SequenceBatch
from gvm_ray.types import Float64Array


class TrainingGradientNorms:
    """Collects the norms of the N samples of one update, over its micro-batches and then over the ranks.

    With tied embeddings the norm is that of the input's part of the gradient, without the output head's.
    """

    def __init__(self, policy: PolicyModule, *, num_samples: int, device: torch.device) -> None:
        self._embedding = policy.causal_lm.get_input_embeddings()
        self._square_norms = torch.zeros(num_samples, dtype=torch.float64, device=device)

    @contextmanager
    def collected(self, indices: NDArray[np.int64], batch: SequenceBatch) -> Iterator[None]:
        """Inside, a forward and backward pass over `batch` fills in the norms of its samples, `indices`."""

        def collect(gradient: Tensor) -> None:
            rows = looked_up_gradients(self._embedding, gradient, batch.input_ids)
            norms = embedding_gradient_square_norms(rows, batch.input_ids, samples=batch.sample_indices)
            self._square_norms[torch.from_numpy(indices).to(norms.device)] = norms[: len(indices)].double()

        def watch(_module: torch.nn.Module, _inputs: Any, output: Tensor) -> None:
            if torch.is_grad_enabled():  # a reference of the same model passes through, too
                output.requires_grad_().register_hook(collect)  # a frozen embedding's doesn't by itself

        handle = self._embedding.register_forward_hook(watch)
        try:
            yield
        finally:
            handle.remove()

    def reduce(self, factors: Float64Array) -> Float64Array:
        """[N] norms, each divided by the absolute value of what multiplied the sample's loss; NaN where that was 0.

        A collective call.
        """
        dist.all_reduce(self._square_norms)
        return self._square_norms.sqrt().cpu().numpy() / np.where(factors == 0, np.nan, np.abs(factors))
