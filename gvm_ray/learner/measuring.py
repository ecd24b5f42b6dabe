"""What one rank measures of the policy with passes that train nothing: log-probs, gradient norms, prompt states.

Every method is a collective call, as the learner's are: each rank takes its share of the samples, and all get the whole
answer. Afterwards the training state is as it was.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from gvm_ray.learner.policy import PolicyModule, reshard, sample_gradient_norms
from gvm_ray.learner.sequences import BatchLayout, TrainSample, prompt_sample
from gvm_ray.types import Float64Array, FloatArray, GradientParameters, IntArray, Pooling


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
    def prompt_states(self, token_ids: Sequence[IntArray], *, pooling: Pooling) -> FloatArray:
        """[P, F] pooled final hidden states of prompts of at least one token; see `PolicyModule.prompt_states`."""
        width = self._policy.causal_lm.config.hidden_size * (2 if pooling == "both" else 1)
        states = self._zeros(len(token_ids), width)
        samples = [prompt_sample(ids) for ids in token_ids]
        for indices, batch in self._layout.micro_batches(samples, by_sample=True):
            pooled = self._policy.prompt_states(batch, pooling=pooling)
            states[torch.from_numpy(indices).to(self._device)] = pooled[: len(indices)]
        return self._gathered(states)

    def _zeros(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._device)

    def _gathered(self, values: Tensor) -> NDArray[Any]:
        """The sum over ranks, each of which filled in its own samples' values."""
        reshard(self._policy)
        dist.all_reduce(values)
        return values.cpu().numpy()
