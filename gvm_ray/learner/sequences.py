"""What the learners train on, sample by sample, and the padded tensors of a micro-batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from gvm_ray.functional.packing import micro_batches
from gvm_ray.types import BoolArray, Demonstration, FloatArray, IntArray, RolloutGroup, TrainBatch


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainSample:
    """One sample: its tokens, the engine's log-probs, and what the algorithm made of its reward."""

    prompt_ids: IntArray  # [T_prompt]
    response_ids: IntArray  # [T]
    engine_logprobs: FloatArray  # [T] nats
    advantage: float = 0.0
    old_logprobs: FloatArray | None = None  # [T] nats, the learner's own from before the batch's first update
    weight: float = 0.0  # of the sum of its token losses in the batch loss
    sampled: BoolArray | None = None  # [T] False at an environment's tokens, which are read but not learned

    @property
    def length(self) -> int:
        """Prompt and response tokens."""
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True, kw_only=True, eq=False)
class SequenceBatch:
    """A micro-batch, padded with 0 on the right: B samples of S tokens, responses of T tokens, each at least 1."""

    input_ids: Tensor  # [B, S] int64, prompt then response
    targets: Tensor  # [B, T] int64 response tokens
    mask: Tensor  # [B, T] bool, True at response tokens that the policy sampled
    first_state: Tensor  # [B] int64: the hidden state at first_state + t predicts response token t


def rank_micro_batches(samples: Sequence[TrainSample], *, max_tokens: int) -> list[NDArray[np.int64]]:
    """Indices of this rank's micro-batches, as many as on every other rank; trailing ones may be empty."""
    lengths = np.array([sample.length for sample in samples], dtype=np.int64)
    return micro_batches(lengths, max_tokens=max_tokens, num_ranks=dist.get_world_size())[dist.get_rank()]


def pad_samples(samples: Sequence[TrainSample], *, device: torch.device) -> SequenceBatch:
    """The tensors of some samples. None at all give one row without response tokens, so that a rank that ran out of
    samples can still take part in the collective calls of a forward and backward pass."""
    num_rows = max(len(samples), 1)
    input_ids = np.zeros((num_rows, max([s.length for s in samples], default=1)), dtype=np.int64)
    targets = np.zeros((num_rows, max([len(s.response_ids) for s in samples], default=1)), dtype=np.int64)
    first_state, num_targets = np.zeros(num_rows, dtype=np.int64), np.zeros(num_rows, dtype=np.int64)
    for row, sample in enumerate(samples):
        start, stop = len(sample.prompt_ids), sample.length
        input_ids[row, :start], input_ids[row, start:stop] = sample.prompt_ids, sample.response_ids
        targets[row, : stop - start] = sample.response_ids
        first_state[row], num_targets[row] = start - 1, stop - start
    mask = np.arange(targets.shape[1]) < num_targets[:, None]
    for row, sample in enumerate(samples):
        if sample.sampled is not None:
            mask[row, : len(sample.sampled)] = sample.sampled
    on_device = [torch.from_numpy(array).to(device) for array in (input_ids, targets, mask, first_state)]
    return SequenceBatch(input_ids=on_device[0], targets=on_device[1], mask=on_device[2], first_state=on_device[3])


def pad_values(values: Sequence[NDArray[np.floating]], like: Tensor) -> Tensor:
    """Float32 [B, T] of ragged per-token values, 0 at padding, on the device and of the shape of `like`."""
    padded = np.zeros(tuple(like.shape), dtype=np.float32)
    for row, value in enumerate(values):
        padded[row, : len(value)] = value
    return torch.from_numpy(padded).to(like.device)


def train_sample(group: RolloutGroup, index: int, *, advantage: float = 0.0, weight: float = 0.0) -> TrainSample:
    """Completion `index` of a group as a sample."""
    completion = group.completion(index)
    return TrainSample(
        prompt_ids=group.prompt.token_ids,
        response_ids=completion.token_ids,
        engine_logprobs=completion.logprobs,
        advantage=advantage,
        weight=weight,
        sampled=completion.sampled,
    )


def prompt_sample(token_ids: IntArray) -> TrainSample:
    """A prompt by itself: a sample with an empty response."""
    return TrainSample(prompt_ids=token_ids, response_ids=token_ids[:0], engine_logprobs=np.zeros(0, dtype=np.float32))


def samples_of_batch(batch: TrainBatch, groups: Sequence[RolloutGroup]) -> list[TrainSample]:
    """The kept samples of a batch; `groups` are the groups behind batch.groups, in order."""
    return [
        train_sample(group, int(index), advantage=float(advantage), weight=float(weight))
        for kept, group in zip(batch.groups, groups, strict=True)
        for index, advantage, weight in zip(kept.sample_indices, kept.advantages, kept.weights, strict=True)
    ]


def samples_of_demonstrations(demonstrations: Sequence[Demonstration]) -> list[TrainSample]:
    """Demonstrations as samples, each with the weight that makes the summed loss a mean over all response tokens."""
    num_tokens = sum(len(d.response_token_ids) for d in demonstrations)
    return [
        TrainSample(
            prompt_ids=d.prompt_token_ids,
            response_ids=d.response_token_ids,
            engine_logprobs=np.zeros(0, dtype=np.float32),
            weight=1.0 / max(num_tokens, 1),
        )
        for d in demonstrations
    ]
