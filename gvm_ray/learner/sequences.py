"""Training samples, and the tensors of a micro-batch: padded rows, or one packed row.

A packed row holds samples end to end, or each prompt once with its responses behind it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from gvm_ray.learner.shared_prompts import SharedRow, shared_row
from gvm_ray.maths.packing import micro_batches, shared_micro_batches
from gvm_ray.types import BoolArray, Demonstration, FloatArray, IntArray, Pooling, RolloutGroup, TrainBatch

_WORTHWHILE = 0.95  # sharing prompts leaves fewer than this share of the tokens


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
class PackedRow:
    """Positions of B samples, N tokens in all, in one row, end to end and without padding."""

    position_ids: Tensor  # [1, N] int64 of each token within its sample, from 0
    cu_seqlens: Tensor  # [B + 1] int32: sample b is at cu_seqlens[b] ... cu_seqlens[b + 1] - 1
    max_length: int  # tokens of the longest sample


@dataclass(frozen=True, kw_only=True, eq=False)
class SequenceBatch:
    """A micro-batch of B samples, with responses of up to T tokens, in R rows of S tokens, each number at least 1.

    Padded: every sample is a row with 0 on its right (R = B). Packed: all are one row (R = 1, `packed`), and attention
    knows where each begins. Shared: all are one row (`shared`) that holds each prompt once for all its samples.
    Positions are counted through all R x S.
    """

    input_ids: Tensor  # [R, S] int64, prompt then response
    targets: Tensor  # [B, T] int64 response tokens
    mask: Tensor  # [B, T] bool, True at response tokens that the policy sampled
    starts: Tensor  # [B] int64: position of the sample's first token
    first_state: Tensor  # [B] int64: position of the prompt's last token, whose state predicts the response's first
    response_starts: Tensor  # [B] int64: position of the response's first token
    packed: PackedRow | None = None
    shared: SharedRow | None = None

    @property
    def attention_arguments(self) -> dict[str, Any]:
        """Arguments of transformers' backbones that keep packed samples apart. Flash kernels read the cu_seq_lens; the
        others get a block-diagonal mask, made from the position ids. Kernels for shared prompts read the row; the mask
        of ones keeps transformers from making a block-diagonal one."""
        if self.shared is not None:
            everything = torch.ones_like(self.input_ids)
            return {
                "position_ids": self.shared.position_ids,
                "attention_mask": everything,
                "shared_row": self.shared,
            }
        if self.packed is None:
            return {}
        ends, length = self.packed.cu_seqlens, self.packed.max_length
        lengths = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": length, "max_length_k": length}
        return {"position_ids": self.packed.position_ids, **lengths}

    @property
    def sample_indices(self) -> Tensor | None:
        """[R, S] int64 index of each packed token's sample; None if each row is a sample. Not for shared prompts."""
        assert self.shared is None, "tokens of a shared prompt belong to several samples"
        if self.packed is None:
            return None
        lengths = self.packed.cu_seqlens.diff()
        return torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths).unsqueeze(0)

    def state_positions(self) -> Tensor:
        """[B, T] positions of the states that predict the response tokens; that of the first one at padding."""
        places = torch.arange(self.mask.shape[1], device=self.mask.device) * self.mask
        later = (self.response_starts - 1).unsqueeze(1) + places
        return torch.where(places == 0, self.first_state.unsqueeze(1), later)

    def by_sample(self, values: Tensor) -> Tensor:
        """[B, S', ...] of values [R, S, ...], each sample in its own row, with 0 behind packed ones. Not for shared
        prompts."""
        assert self.shared is None, "tokens of a shared prompt belong to several samples"
        if self.packed is None:
            return values
        places = torch.arange(self.packed.max_length, device=values.device)
        inside = places < self.packed.cu_seqlens.diff().unsqueeze(1)
        rows = values.flatten(0, 1)[self.starts.unsqueeze(1) + places * inside]
        return torch.where(inside.view(*inside.shape, *[1] * (rows.ndim - 2)), rows, 0)

    def pooled(self, hidden: Tensor, *, pooling: Pooling) -> Tensor:
        """[B, F] of states [R, S, H] at the tokens of `prompt_samples`: their mean, the last one, or both."""
        prompt_lengths = self.first_state - self.starts + 1
        if self.shared is None:
            hidden, last = self.by_sample(hidden), (prompt_lengths - 1).unsqueeze(1)
            inside = torch.arange(hidden.shape[1], device=hidden.device) <= last
            mean = torch.where(inside.unsqueeze(-1), hidden, 0.0).sum(1) / (last + 1)
            final = hidden.take_along_dim(last.unsqueeze(-1), dim=1).squeeze(1)
        else:  # the prefix, then what each prompt has behind it
            own_lengths = self.mask.sum(1)
            sums = torch.segment_reduce(hidden[0], "sum", lengths=torch.cat([prompt_lengths[:1], own_lengths]))
            mean = (sums[:1] + sums[1:]) / (prompt_lengths + own_lengths).unsqueeze(1)
            final = hidden[0, torch.where(own_lengths > 0, self.response_starts + own_lengths - 1, self.first_state)]
        return {"mean": mean, "last": final, "both": torch.cat([mean, final], dim=-1)}[pooling]


@dataclass(frozen=True, kw_only=True)
class BatchLayout:
    """Layout of a rank's samples for its forward and backward passes."""

    max_tokens: int  # of a micro-batch; padding counts where there is any
    packed: bool
    device: torch.device
    shared: bool = False  # prompts stand once in a micro-batch where that leaves fewer tokens

    def micro_batches(
        self, samples: Sequence[TrainSample], *, separate: bool = False, by_sample: bool = False
    ) -> Iterator[tuple[NDArray[np.int64], SequenceBatch]]:
        """Indices and tensors of this rank's micro-batches, as many as on every other rank.

        The last ones may be empty. With `separate`, every sample has its own copy of its prompt; with `by_sample` too,
        and rows x the longest sample stay within the bound as well, for passes that call `SequenceBatch.by_sample` or
        `state_positions` on hidden states.
        """
        if self.shared and not (separate or by_sample) and sharing_pays(samples):
            yield from self._shared_micro_batches(samples)
            return
        lengths = np.array([sample.length for sample in samples], dtype=np.int64)
        ranks = micro_batches(
            lengths,
            max_tokens=self.max_tokens,
            num_ranks=dist.get_world_size(),
            packed=self.packed and not by_sample,
        )
        make = pack_samples if self.packed else pad_samples
        for indices in ranks[dist.get_rank()]:
            yield indices, make([samples[i] for i in indices], device=self.device)

    def _shared_micro_batches(
        self, samples: Sequence[TrainSample]
    ) -> Iterator[tuple[NDArray[np.int64], SequenceBatch]]:
        ranks = shared_micro_batches(
            prompts_of(samples),
            prompt_tokens=[len(s.prompt_ids) for s in samples],
            response_tokens=[len(s.response_ids) for s in samples],
            max_tokens=self.max_tokens,
            num_ranks=dist.get_world_size(),
        )
        for indices in ranks[dist.get_rank()]:
            yield indices, share_samples([samples[i] for i in indices], device=self.device)


def prompts_of(samples: Sequence[TrainSample]) -> NDArray[np.int64]:
    """[N] index of each sample's prompt, by its tokens, in order of first appearance."""
    numbers: dict[bytes, int] = {}
    keys = (sample.prompt_ids.astype(np.int64).tobytes() for sample in samples)
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def sharing_pays(samples: Sequence[TrainSample]) -> bool:
    """Whether reading each prompt once saves at least 5 % of the tokens, in a single micro-batch of any size."""
    _, firsts = np.unique(prompts_of(samples), return_index=True)
    total = sum(sample.length for sample in samples)
    spared = sum(len(sample.prompt_ids) for sample in samples) - sum(len(samples[i].prompt_ids) for i in firsts)
    return total - spared < _WORTHWHILE * total


def pad_samples(samples: Sequence[TrainSample], *, device: torch.device) -> SequenceBatch:
    """The tensors of some samples. None at all give one row without response tokens, so that a rank that ran out of
    samples can still take part in the collective calls of a forward and backward pass."""
    length = max([s.length for s in samples], default=1)
    starts = np.arange(max(len(samples), 1)) * length
    return _batch(samples, starts=starts, shape=(len(starts), length), device=device)


def pack_samples(samples: Sequence[TrainSample], *, device: torch.device) -> SequenceBatch:
    """The same in one row without padding; no samples at all give one token."""
    lengths = np.array([s.length for s in samples] or [1])
    ends = np.concatenate([[0], np.cumsum(lengths)])
    starts, num_tokens = ends[:-1], int(ends[-1])
    packed = PackedRow(
        position_ids=torch.from_numpy(np.arange(num_tokens) - np.repeat(starts, lengths)).to(device).unsqueeze(0),
        cu_seqlens=torch.from_numpy(ends.astype(np.int32)).to(device),
        max_length=int(lengths.max()),
    )
    return _batch(samples, starts=starts, shape=(1, num_tokens), device=device, packed=packed)


def share_samples(samples: Sequence[TrainSample], *, device: torch.device) -> SequenceBatch:
    """Tensors of the samples in one row without padding, each prompt once; without samples, one token."""
    numbers = prompts_of(samples)
    groups = [np.flatnonzero(numbers == number) for number in range(int(numbers.max(initial=-1)) + 1)]
    prompt_lengths = [len(samples[members[0]].prompt_ids) for members in groups] or [1]
    response_lengths = [[len(samples[i].response_ids) for i in members] for members in groups] or [[]]
    starts, responses = (np.zeros(max(len(samples), 1), dtype=np.int64) for _ in range(2))
    num_tokens = 0
    for members, prompt_length, lengths in zip(groups, prompt_lengths, response_lengths, strict=False):
        starts[members] = num_tokens
        responses[members] = num_tokens + prompt_length + np.cumsum([0, *lengths[:-1]])
        num_tokens += prompt_length + sum(lengths)
    row = shared_row(prompt_lengths, response_lengths, device=device)
    shape = (1, max(num_tokens, 1))
    return _batch(samples, starts=starts, responses=responses, shape=shape, device=device, shared=row)


def _batch(
    samples: Sequence[TrainSample],
    *,
    starts: NDArray[np.int64],
    shape: tuple[int, int],
    device: torch.device,
    responses: NDArray[np.int64] | None = None,
    packed: PackedRow | None = None,
    shared: SharedRow | None = None,
) -> SequenceBatch:
    """Write samples at `starts` into rows of a shape, responses at `responses` or else behind their prompts."""
    input_ids = np.zeros(shape[0] * shape[1], dtype=np.int64)
    targets = np.zeros((len(starts), max([len(s.response_ids) for s in samples], default=1)), dtype=np.int64)
    first_state, mask = starts.copy(), np.zeros(targets.shape, dtype=np.bool_)
    response_starts = starts + 1
    for row, sample in enumerate(samples):
        start, num_prompt, num_response = starts[row], len(sample.prompt_ids), len(sample.response_ids)
        response = start + num_prompt if responses is None else responses[row]
        input_ids[start : start + num_prompt] = sample.prompt_ids
        input_ids[response : response + num_response] = sample.response_ids
        targets[row, :num_response] = sample.response_ids
        mask[row, :num_response] = True if sample.sampled is None else sample.sampled
        first_state[row], response_starts[row] = start + num_prompt - 1, response
    arrays = {
        "input_ids": input_ids.reshape(shape),
        "targets": targets,
        "mask": mask,
        "starts": starts,
        "first_state": first_state,
        "response_starts": response_starts,
    }
    tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    return SequenceBatch(**tensors, packed=packed, shared=shared)


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


def prompt_samples(token_ids: Sequence[IntArray], *, shared: bool) -> tuple[list[TrainSample], int]:
    """Prompts by themselves, and the length of the prefix that they share, in tokens.

    Without a prefix, or where sharing it doesn't pay, each is a sample with an empty response (prefix 0). Otherwise the
    common prefix is every sample's prompt, and what follows it the response.
    """
    prefix = common_prefix(token_ids) if shared else 0
    samples = [_prompt_sample(ids, prefix) for ids in token_ids]
    if prefix and sharing_pays(samples):
        return samples, prefix
    return [_prompt_sample(ids, len(ids)) for ids in token_ids], 0


def common_prefix(token_ids: Sequence[IntArray]) -> int:
    """The number of tokens with which all the sequences begin; of a single one, its length."""
    if not token_ids:
        return 0
    prefix = token_ids[0][: min(len(ids) for ids in token_ids)]
    for ids in token_ids:
        differs = prefix != ids[: len(prefix)]
        if differs.any():
            prefix = prefix[: int(differs.argmax())]
    return len(prefix)


def _prompt_sample(token_ids: IntArray, prefix: int) -> TrainSample:
    none = np.zeros(0, dtype=np.float32)
    return TrainSample(prompt_ids=token_ids[:prefix], response_ids=token_ids[prefix:], engine_logprobs=none)


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
