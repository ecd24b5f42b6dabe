"""Measurements of a policy without training, and gradient norms measured during training."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from gvm_ray.learner.policy import PolicyModule, looked_up_gradients, reshard, sample_gradient_norms
from gvm_ray.learner.sequences import BatchLayout, SequenceBatch, TrainSample, prompt_samples
from gvm_ray.maths.gradient_norms import embedding_gradient_square_norms
from gvm_ray.types import BoolArray, Float64Array, FloatArray, GradientParameters, IntArray, Pooling, TrainBatch


class PolicyMeasurements:
    """Forward passes, and backward passes that reach no parameter, over one policy.

    Args:
        policy: the sharded policy.
        layout: of the micro-batches.
    """

    def __init__(self, policy: PolicyModule, *, layout: BatchLayout) -> None:
        self._policy = policy
        self._layout = layout
        self._device = layout.device

    @torch.no_grad()
    def logprobs(self, samples: Sequence[TrainSample]) -> list[FloatArray]:
        """[T] nats for each sample."""
        stops = np.cumsum([0, *(len(s.response_ids) for s in samples)])
        flat = self._zeros(int(stops[-1]))
        for indices, batch in self._layout.micro_batches(samples):
            logprobs, _ = self._policy(batch)
            for row, i in enumerate(indices):
                flat[stops[i] : stops[i + 1]] = logprobs[row, : stops[i + 1] - stops[i]]
        values = self._gathered(flat)
        return [values[start:stop] for start, stop in pairwise(stops)]

    def gradient_norms(self, samples: Sequence[TrainSample], *, parameters: GradientParameters) -> Float64Array:
        """[N] norm of each sample's gradient of its log-probs' sum, in one matrix; see `sample_gradient_norms`."""
        norms = self._zeros(len(samples), dtype=torch.float64)
        for indices, batch in self._layout.micro_batches(samples, by_sample=True):
            computed = sample_gradient_norms(self._policy, batch, parameters=parameters)
            norms[torch.from_numpy(indices).to(self._device)] = computed[: len(indices)].double()
        return self._gathered(norms)

    @torch.no_grad()
    def prompt_states(self, token_ids: Sequence[IntArray], *, pooling: Pooling) -> tuple[FloatArray, int]:
        """[P, F] pooled final hidden states of prompts of at least one token (see `PolicyModule.prompt_states`), and
        the number of tokens that were run through the model for them.

        Where the layout may share prompts, a prefix that all have in common is read once in each micro-batch. Gradient
        norms don't share it: of tokens that several samples read, none has a gradient of its own.
        """
        size = self._policy.causal_lm.config.hidden_size
        width = {"mean": size, "last": size, "both": 2 * size, "entropy": 1}[pooling]
        states, num_tokens = self._zeros(len(token_ids), width), self._zeros(1, dtype=torch.float64)
        samples, prefix = prompt_samples(token_ids, shared=self._layout.shared)
        for indices, batch in self._layout.micro_batches(samples, by_sample=not prefix):
            pooled = self._policy.prompt_states(batch, pooling=pooling)
            states[torch.from_numpy(indices).to(self._device)] = pooled[: len(indices)]
            num_tokens += sum(samples[i].length for i in indices) - prefix * max(len(indices) - 1, 0)
        return self._gathered(states), int(self._gathered(num_tokens)[0])

    def _zeros(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._device)

    def _gathered(self, values: Tensor) -> NDArray[Any]:
        """The sum over ranks, each of which filled in its own samples' values."""
        reshard(self._policy)
        dist.all_reduce(values)
        return values.cpu().numpy()


def measured_samples(batch: TrainBatch, *, per_class: int | None) -> BoolArray:
    """[N] True for the samples of a batch, group after group, whose gradient norms are measured in training.

    These are the first `per_class` of each group's samples with a positive advantage, and as many with a negative one;
    all samples if it is None. The order of a prompt's samples says nothing about them.
    """
    measured = [np.zeros(len(group.advantages), dtype=np.bool_) for group in batch.groups]
    for group, chosen in zip(batch.groups, measured, strict=True):
        for members in (group.advantages > 0, group.advantages < 0):
            chosen[np.flatnonzero(members)[:per_class]] = True
        if per_class is None:
            chosen[:] = True
    return np.concatenate([*measured, np.zeros(0, dtype=np.bool_)])


class TrainingGradientNorms:
    """Collects the norms of some of the N samples of one update, over its micro-batches and then over the ranks.

    With tied embeddings the norm is that of the input's part of the gradient, without the output head's.

    Args:
        policy: the sharded policy.
        measured: [N] True for the samples to measure, each of which needs its own copy of its prompt.
        device: of the policy.
    """

    def __init__(self, policy: PolicyModule, *, measured: BoolArray, device: torch.device) -> None:
        self._embedding = policy.causal_lm.get_input_embeddings()
        self.measured = measured
        self._square_norms = torch.zeros(len(measured), dtype=torch.float64, device=device)

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
        """[N] norms, each divided by the absolute value of what multiplied the sample's loss; NaN where that was 0, and
        where none was measured.

        A collective call.
        """
        dist.all_reduce(self._square_norms)
        known = self.measured & (factors != 0)
        return self._square_norms.sqrt().cpu().numpy() / np.where(known, np.abs(factors), np.nan)
