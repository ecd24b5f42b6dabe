"""Rows that hold each prompt once with its responses behind it, and the attention within such a row.

A prompt attends to itself, a response to its prompt and to itself, both causally. Each response's positions continue
from its prompt's last. Attention is computed in tiles: sequences of similar sizes, padded, in one call of
scaled_dot_product_attention. Only attention is padded; everything else works on the row itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from gvm_ray.maths.memory import KEPT_KEY_COPIES

KERNELS = "sdpa_shared"  # the name that transformers has for `shared_sdpa`

_SPARE_SCORES = 2**18  # padded attention scores of a tile that cost less than one more call
_PADDED_SHARE = 1.3  # of a tile's scores to those of its segments alone
_MOST_MASKED_SCORES = 2**22  # of a tile of several prompts' lengths, for its mask is as large


@dataclass(frozen=True, kw_only=True, eq=False)
class Tile:
    """b sequences of T queries, padded on the right, and S keys each.

    In a causal tile, queries and keys are the same tokens (T = S). Otherwise the queries are a response, and the keys
    its prompt, padded on the right, and the response.
    """

    shape: tuple[int, int, int]  # b, T, S
    query_positions: Tensor  # [b, T] or, where all are the same, [1, T]
    key_positions: Tensor  # [b, S] or [1, S]
    inside: Tensor  # [b, S] or [1, S] bool, False at the padding of prompts
    causal: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class SharedRow:
    """A row of N tokens with shared prompts: positions, and the tiles in which its attention is computed."""

    position_ids: Tensor  # [1, N] int64 of each token within its sample, from 0
    tiles: tuple[Tile, ...]
    query_index: Tensor  # [sum of b x T] int64: places in the row of the tiles' queries
    key_index: Tensor  # [sum of b x S] int64: those of their keys
    places: Tensor  # [N] int64: where each token is among the tiles' queries
    segment_ends: Tensor  # [M + 1] int32: segment m of the row is at segment_ends[m] ... segment_ends[m + 1] - 1
    segment_keys: Tensor  # [K] int64: places of the keys of each segment, one segment after the other, not padded
    segment_key_ends: Tensor  # [M + 1] int32: the keys of segment m are at segment_key_ends[m] ... in `segment_keys`
    longest: tuple[int, int]  # tokens of the longest segment, and keys that one has


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sequence:
    """Places in the row of tokens that attend causally to a prompt and to themselves."""

    prompt: NDArray[np.int64]  # may be none
    own: NDArray[np.int64]  # at least one

    @property
    def keys(self) -> NDArray[np.int64]:
        return np.concatenate([self.prompt, self.own])


def shared_row(
    prompt_lengths: Sequence[int], response_lengths: Sequence[Sequence[int]], *, device: torch.device
) -> SharedRow:
    """Lay out a row of prompts, each with its responses behind it.

    Args:
        prompt_lengths: tokens of each prompt, at least 1.
        response_lengths: tokens of each prompt's responses; an empty response takes no place.
        device: of the tensors.
    """
    segments, attending = _sequences(prompt_lengths, response_lengths)
    num_tokens = sum(len(segment.own) for segment in segments)
    tiles = [_tile(members, device=device) for members in _divide(attending)]
    query_index = np.concatenate([queries for _, queries, _ in tiles])
    places = np.empty(num_tokens, dtype=np.int64)
    places[query_index[::-1]] = np.arange(len(query_index))[::-1]  # of a token that comes again, as padding, the first
    lengths, keys = [len(segment.own) for segment in segments], [len(segment.keys) for segment in segments]
    arrays = {
        "position_ids": np.concatenate([len(s.prompt) + np.arange(len(s.own)) for s in segments])[np.newaxis],
        "query_index": query_index,
        "key_index": np.concatenate([index for _, _, index in tiles]),
        "places": places,
        "segment_ends": np.array([0, *accumulate(lengths)], dtype=np.int32),
        "segment_keys": np.concatenate([segment.keys for segment in segments]),
        "segment_key_ends": np.array([0, *accumulate(keys)], dtype=np.int32),
    }
    tensors: dict[str, Any] = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    return SharedRow(tiles=tuple(tile for tile, _, _ in tiles), longest=(max(lengths), max(keys)), **tensors)


def _sequences(
    prompt_lengths: Sequence[int], response_lengths: Sequence[Sequence[int]]
) -> tuple[list[_Sequence], list[_Sequence]]:
    """The row's segments (prompts and responses) in order, and the sequences whose attention is computed.

    A response at least as long as its prompt attends together with it: one causal sequence of both needs fewer scores
    than the response's queries over all keys, and no mask. It includes the prompt's own attention.
    """
    none = np.zeros(0, dtype=np.int64)
    segments: list[_Sequence] = []
    attending: list[_Sequence] = []
    start = 0
    for prompt_length, lengths in zip(prompt_lengths, response_lengths, strict=True):
        starts = [*accumulate(lengths, initial=start + prompt_length)]
        prompt = np.arange(start, start + prompt_length)
        responses = [
            _Sequence(prompt=prompt, own=np.arange(first, first + length))
            for first, length in zip(starts, lengths, strict=False)
            if length
        ]
        alone = _Sequence(prompt=none, own=prompt)
        together = [_Sequence(prompt=none, own=r.keys) for r in responses if len(r.own) >= prompt_length]
        segments += [alone, *responses]
        attending += [*(together or [alone]), *(r for r in responses if len(r.own) < prompt_length)]
        start = starts[-1]
    return segments, attending


def _divide(sequences: Sequence[_Sequence]) -> list[list[_Sequence]]:
    """Group sequences of similar sizes into tiles; those with a prompt's keys apart from the others."""
    tiles: list[list[_Sequence]] = []
    longest, exact = 0, 0
    for sequence in sorted(sequences, key=lambda s: (len(s.prompt), len(s.own)), reverse=True):
        members, length = tiles[-1] if tiles else [], len(sequence.own)
        prompt_length = len(members[0].prompt) if members else 0  # the longest of them
        padded = max(longest, length)
        scores = (len(members) + 1) * padded * (padded + prompt_length)
        exact += length * len(sequence.keys)
        alike = bool(members) and bool(len(sequence.prompt)) == bool(prompt_length)
        fits = len(sequence.prompt) == prompt_length or scores <= _MOST_MASKED_SCORES
        if alike and fits and scores <= _PADDED_SHARE * exact + _SPARE_SCORES:
            members.append(sequence)
            longest = padded
        else:
            tiles.append([sequence])
            longest, exact = length, length * len(sequence.keys)
    return tiles


def _tile(members: Sequence[_Sequence], *, device: torch.device) -> tuple[Tile, NDArray[np.int64], NDArray[np.int64]]:
    """A tile, and the places of its queries and keys in the row."""
    prompt_lengths = np.array([len(s.prompt) for s in members])
    length, prompt_length = max(len(s.own) for s in members), int(prompt_lengths.max())
    own = np.stack([_padded(s.own, length) for s in members])
    keys = np.concatenate([np.stack([_padded(s.prompt, prompt_length) for s in members]), own], axis=1)

    distinct = prompt_lengths if (prompt_lengths != prompt_length).any() else prompt_lengths[:1]
    own_positions, slots = distinct[:, np.newaxis] + np.arange(length), np.arange(prompt_length)
    prompt_positions = np.broadcast_to(slots, (len(distinct), prompt_length))
    inside = np.concatenate([slots < distinct[:, np.newaxis], np.ones(own_positions.shape, dtype=np.bool_)], axis=1)
    arrays = {
        "query_positions": own_positions,
        "key_positions": np.concatenate([prompt_positions, own_positions], axis=1),
        "inside": inside,
    }
    tensors: dict[str, Any] = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    shape = (len(members), length, prompt_length + length)
    return Tile(shape=shape, causal=not prompt_length, **tensors), own.reshape(-1), keys.reshape(-1)


def _padded(places: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    return np.pad(places, (0, length - len(places)), mode="edge") if len(places) < length else places


@dataclass(eq=False)
class Pattern:
    """Attention pattern of a kind of layer: all earlier positions, or a window or chunk of them.

    It takes the place of a mask, which depends on the row's tiles, and caches the tiles' masks for all such layers.
    """

    function: Callable[..., Tensor] | None  # of transformers, (batch, head, query position, key position); None: all
    masks: dict[tuple[int, torch.dtype], Tensor | None] = field(default_factory=dict)

    def mask(self, row: SharedRow, index: int, dtype: torch.dtype) -> Tensor | None:
        """[b or 1, 1, T, S] added to the scores of a tile, or None where it is just causal."""
        if (index, dtype) not in self.masks:
            self.masks[index, dtype] = self._mask(row.tiles[index], dtype)
        return self.masks[index, dtype]

    def _mask(self, tile: Tile, dtype: torch.dtype) -> Tensor | None:
        if tile.causal and self.function is None:
            return None
        queries, keys = tile.query_positions.unsqueeze(-1), tile.key_positions.unsqueeze(1)
        visible = (keys <= queries) & tile.inside.unsqueeze(1)
        if self.function is not None:
            visible = visible & self.function(0, 0, queries, keys)
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return mask.masked_fill_(~visible, -torch.inf).unsqueeze(1)


def register_shared_sdpa() -> None:
    """Register `KERNELS` with transformers: plain SDPA, and `shared_sdpa` for rows with shared prompts."""
    from transformers import AttentionInterface, AttentionMaskInterface

    # Not as a decorator: that imports torch's compiler wherever this module is imported, which takes a second.
    AttentionInterface.register(KERNELS, torch.compiler.disable(_attention))
    AttentionMaskInterface.register(KERNELS, _mask_or_pattern)


def _mask_or_pattern(
    *,
    attention_mask: Tensor | None = None,
    mask_function: Callable[..., Tensor],
    local_size: int | None = None,
    kv_length: int,
    **arguments: Any,
) -> Any:
    """The mask or pattern of each layer. Only rows with shared prompts come with an attention mask, of ones."""
    from transformers.masking_utils import causal_mask_function, sdpa_mask

    if attention_mask is None:
        return sdpa_mask(mask_function=mask_function, local_size=local_size, kv_length=kv_length, **arguments)
    if local_size is not None:
        return Pattern(mask_function if local_size < kv_length else None)
    if mask_function is not causal_mask_function:
        raise NotImplementedError("masks by other things than the distance of two positions")
    return Pattern(None)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    shared_row: SharedRow | None = None,
    scaling: float | None = None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if shared_row is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **arguments)
    if not isinstance(attention_mask, Pattern) or arguments.get("position_bias") is not None:
        raise NotImplementedError("masks and biases of a layer's own")
    if query.shape[2] != key.shape[2] or query.shape[2] != len(shared_row.places):
        raise NotImplementedError("attention to other tokens than the row's")
    operands = (query, key, value, shared_row, attention_mask, scaling)
    if torch.is_grad_enabled() and len(shared_row.key_index) > KEPT_KEY_COPIES * query.shape[2]:
        return checkpoint(shared_sdpa, *operands, use_reentrant=False, preserve_rng_state=False), None
    return shared_sdpa(*operands), None


def shared_sdpa(
    query: Tensor, key: Tensor, value: Tensor, row: SharedRow, pattern: Pattern, scaling: float | None = None
) -> Tensor:
    """Attention [1, N, heads, D'] within a row with shared prompts, tile by tile.

    Args:
        query: [1, heads, N, D].
        key: [1, heads or a divisor of them, N, D].
        value: [1, as many as keys, N, D'].
        row: where prompts and responses stand.
        pattern: the positions that attend to each other.
        scaling: of scores; None takes D^-1/2.
    """
    grouped = query.shape[1] != key.shape[1]
    if grouped and query.device.type != "cpu":  # with masks only the CPU's kernel takes fewer heads of keys as they are
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
        grouped = False
    num_queries, num_keys = ([tile.shape[0] * tile.shape[place] for tile in row.tiles] for place in (1, 2))
    queries, keys, values = (
        tensor[0].transpose(0, 1).index_select(0, index).split(sizes)
        for tensor, index, sizes in (
            (query, row.query_index, num_queries),
            (key, row.key_index, num_keys),
            (value, row.key_index, num_keys),
        )
    )
    attended = []
    for index, (tile, *operands) in enumerate(zip(row.tiles, queries, keys, values, strict=True)):
        mask = pattern.mask(row, index, query.dtype)
        heads_first = [operand.unflatten(0, (tile.shape[0], -1)).transpose(1, 2) for operand in operands]
        result = scaled_dot_product_attention(
            *heads_first, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
        )
        attended.append(result.transpose(1, 2).flatten(0, 1))
    return torch.cat(attended).index_select(0, row.places).unsqueeze(0)
