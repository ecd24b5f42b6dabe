"""Projected gradients of the log-probs of single responses."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from gvm_ray.learner.policy import PolicyModule, embedding_row_gradients, sample_gradient_norms
from gvm_ray.learner.sequences import SequenceBatch, TrainSample, pad_samples, prompt_sample
from gvm_ray.maths.gradient_norms import embedding_gradient_square_norms
from gvm_ray.types import Float64Array, FloatArray, GradientParameters, IntArray, Pooling


class CountSketch:
    """A fixed linear map from P to D dimensions, which adds each entry, with a random sign, to one of D sums at random.

    Inner products are preserved in expectation over the map, with a variance of at most
    (|x|^2 |y|^2 + (x . y)^2) / D (Charikar, Chen, Farach-Colton 2002; Weinberger et al. 2009, arXiv 0902.2206, Lemma
    2). The map needs only P numbers; a Gaussian matrix needs P x D.
    """

    def __init__(self, num_entries: int, *, size: int, seed: int, device: torch.device | None = None) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.size = size
        self._sums = torch.randint(size, (num_entries,), generator=generator, dtype=torch.int32).to(device)
        self._signs = (torch.randint(2, (num_entries,), generator=generator, dtype=torch.int8) * 2 - 1).to(device)

    def __call__(self, vector: Tensor) -> Tensor:
        """Map `vector` [P] to [D], in the same dtype."""
        return vector.new_zeros(self.size).index_add_(0, self._sums, vector * self._signs)


_ROWS = 64  # samples or prompts in a pass without parameter gradients


class ScoreGradients:
    """Gradients of sum_t ln pi(y_t | x) with respect to all parameters, at the sampling temperature.

    Args:
        policy: the whole policy, unsharded.
        size: number of dimensions to project on; None keeps the whole gradient.
        seed: seed of the projection.
    """

    def __init__(self, policy: PolicyModule, *, size: int | None, seed: int) -> None:
        self._policy = policy
        self._parameters = list(policy.parameters())  # a tied matrix appears once
        self._device = self._parameters[0].device
        num_entries = sum(parameter.numel() for parameter in self._parameters)
        self._size = size or num_entries
        self._sketch = None if size is None else CountSketch(num_entries, size=size, seed=seed, device=self._device)

    def projected(self, samples: Sequence[TrainSample]) -> FloatArray:
        """Compute projected gradients [N, D] in float32, with one backward pass per sample."""
        gradients = np.empty((len(samples), self._size), dtype=np.float32)
        for row, sample in enumerate(samples):
            logprobs, _ = self._policy(pad_samples([sample], device=self._device))
            parts = torch.autograd.grad(logprobs.sum(), self._parameters)
            gradient = torch.cat([part.reshape(-1) for part in parts]).float()
            gradients[row] = (gradient if self._sketch is None else self._sketch(gradient)).cpu().numpy()
        return gradients

    def pilot_norms(self, samples: Sequence[TrainSample], *, parameters: GradientParameters) -> Float64Array:
        """Compute the norms [N] that an allocator gets for pilots; see `Learner.gradient_norms`."""
        return self._by_batch(samples, lambda batch: sample_gradient_norms(self._policy, batch, parameters=parameters))

    def training_norms(self, samples: Sequence[TrainSample]) -> Float64Array:
        """Compute the norms [N] at the input embedding, as training measures them; see `TrainedNorms`."""
        return self._by_batch(samples, self._input_embedding_norms)

    @torch.no_grad()
    def prompt_states(self, token_ids: Sequence[IntArray], *, pooling: Pooling) -> FloatArray:
        """Compute hidden states [P, F] as an allocator gets them; see `PolicyModule.prompt_states`."""
        batches = self._batches([prompt_sample(ids) for ids in token_ids])
        parts = [self._policy.prompt_states(batch, pooling=pooling) for batch in batches]
        return torch.cat(parts).cpu().numpy()

    def _input_embedding_norms(self, batch: SequenceBatch) -> Tensor:
        _, _, gradients = embedding_row_gradients(self._policy, batch, square_norms=False)
        return embedding_gradient_square_norms(gradients, batch.input_ids).sqrt()

    def _by_batch(self, samples: Sequence[TrainSample], measure: Callable[[SequenceBatch], Tensor]) -> Float64Array:
        """Compute one number per sample [N]."""
        return torch.cat([measure(batch) for batch in self._batches(samples)]).double().cpu().numpy()

    def _batches(self, samples: Sequence[TrainSample]) -> Iterator[SequenceBatch]:
        for start in range(0, len(samples), _ROWS):
            yield pad_samples(samples[start : start + _ROWS], device=self._device)
