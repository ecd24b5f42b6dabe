"""Rows in which a prompt stands once, with its responses behind it; and the attention inside such a row.

A prompt attends to itself, a response to its prompt and to itself, both causally, and positions go on from the prompt's
last in each of its responses. Segments (prompts and responses) of like sizes are padded to a tile, and a tile is one
call of scaled_dot_product_attention: what is padded is attention alone, everything else works on the row as it is.
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

KERNELS = "sdpa_shared"  # the name that transformers has for `shared_sdpa`

_SPARE_SCORES = 2**18  # padded attention scores of a tile that cost less than one more call
_PADDED_SHARE = 1.3  # of a tile's scores to those of its segments alone
_MOST_MASKED_SCORES = 2**22  # of a tile of several prompts' lengths, for its mask is as large
_KEPT_KEYS = 3  # copies of keys and values that are kept for the backward pass, in lengths of the row


@dataclass(frozen=True, kw_only=True, eq=False)
class Tile:
    """b segments of T queries, padded on their right; each has S keys, its prompt's on their right, then its own."""

    shape: tuple[int, int, int]  # b, T, S
    query_positions: Tensor  # [b, T] or, where all are the same, [1, T]
    key_positions: Tensor  # [b, S] or [1, S]
    inside: Tensor  # [b, S] or [1, S] bool, False at the padding of prompts
    causal: bool  # T = S, and nothing but later keys is hidden


@dataclass(frozen=True, kw_only=True, eq=False)
class SharedRow:
    """Where prompts and their responses stand in a row of N tokens, and the tiles that its attention is computed in."""

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
class _Segment:
    """A prompt, or a response behind its prompt, of at least one token."""

    start: int
    length: int
    prompt_start: int = 0
    prompt_length: int = 0  # 0 of a prompt itself

    @property
    def num_keys(self) -> int:
        return self.prompt_length + self.length

    def keys(self) -> NDArray[np.int64]:
        prompt = np.arange(self.prompt_start, self.prompt_start + self.prompt_length)
        return np.concatenate([prompt, np.arange(self.start, self.start + self.length)])


def shared_row(
    prompt_lengths: Sequence[int], response_lengths: Sequence[Sequence[int]], *, device: torch.device
) -> SharedRow:
    """The row of prompts, each with the responses behind it.

    Args:
        prompt_lengths: tokens of each prompt, at least 1.
        response_lengths: for each prompt, tokens of its responses; one without tokens takes no place.
        device: of the tensors.
    """
    segments, start = [], 0
    for prompt_length, lengths in zip(prompt_lengths, response_lengths, strict=True):
        prompt = _Segment(start=start, length=prompt_length)
        start += prompt_length
        segments.append(prompt)
        for length in lengths:
            if length:
                behind = {"prompt_start": prompt.start, "prompt_length": prompt_length}
                segments.append(_Segment(start=start, length=length, **behind))
            start += length
    tiles = [_tile(members, device=device) for members in _divide(segments)]
    query_index = np.concatenate([queries for _, queries, _ in tiles])
    places = np.empty(start, dtype=np.int64)
    places[query_index[::-1]] = np.arange(len(query_index))[::-1]  # padding repeats a token that stands before it
    positions = np.concatenate([np.arange(s.prompt_length, s.num_keys) for s in segments])
    lengths, keys = [s.length for s in segments], [s.num_keys for s in segments]
    arrays = {
        "position_ids": positions[np.newaxis],
        "query_index": query_index,
        "key_index": np.concatenate([index for _, _, index in tiles]),
        "places": places,
        "segment_ends": np.array([0, *accumulate(lengths)], dtype=np.int32),
        "segment_keys": np.concatenate([s.keys() for s in segments]),
        "segment_key_ends": np.array([0, *accumulate(keys)], dtype=np.int32),
    }
    tensors: dict[str, Any] = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    return SharedRow(tiles=tuple(tile for tile, _, _ in tiles), longest=(max(lengths), max(keys)), **tensors)


def _divide(segments: Sequence[_Segment]) -> list[list[_Segment]]:
    """Segments by tile: of like sizes, and prompts apart from responses."""
    tiles: list[list[_Segment]] = []
    padded_to, exact = (0, 0), 0
    for segment in sorted(segments, key=lambda s: (s.prompt_length, s.length), reverse=True):
        members = tiles[-1] if tiles else []
        length, prompt_length = max(padded_to[0], segment.length), padded_to[1]
        scores = (len(members) + 1) * length * (length + prompt_length)
        exact += segment.length * segment.num_keys
        joins = bool(members) and bool(segment.prompt_length) == bool(prompt_length)
        joins = joins and scores <= _PADDED_SHARE * exact + _SPARE_SCORES
        if joins and (segment.prompt_length == prompt_length or scores <= _MOST_MASKED_SCORES):
            members.append(segment)
            padded_to = (length, prompt_length)
        else:
            tiles.append([segment])
            padded_to, exact = (segment.length, segment.prompt_length), segment.length * segment.num_keys
    return tiles


def _tile(members: Sequence[_Segment], *, device: torch.device) -> tuple[Tile, NDArray[np.int64], NDArray[np.int64]]:
    """A tile, and the places in the row of its queries and keys."""
    lengths, prompt_lengths = (np.array([getattr(s, name) for s in members]) for name in ("length", "prompt_length"))
    starts, prompt_starts = (np.array([getattr(s, name) for s in members]) for name in ("start", "prompt_start"))
    length, prompt_length = int(lengths.max()), int(prompt_lengths.max())
    own = starts[:, np.newaxis] + np.minimum(np.arange(length), lengths[:, np.newaxis] - 1)
    slots = np.arange(prompt_length)
    prompts = prompt_starts[:, np.newaxis] + np.minimum(slots, prompt_lengths[:, np.newaxis] - 1)
    keys = np.concatenate([prompts, own], axis=1) if prompt_length else own

    distinct = prompt_lengths if (prompt_lengths != prompt_length).any() else prompt_lengths[:1]
    own_positions = distinct[:, np.newaxis] + np.arange(length)
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


@dataclass(eq=False)
class Pattern:
    """Which positions a kind of layer lets attend to which: all before, or a window or chunk of them.

    It stands for the masks, which depend on a row's tiles, and keeps them for all layers of the kind.
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
    """Make `KERNELS` known to transformers: SDPA as ever, and `shared_sdpa` for rows with shared prompts."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(KERNELS, _attention)
    AttentionMaskInterface.register(KERNELS, _mask_or_pattern)


def _mask_or_pattern(
    *,
    attention_mask: Tensor | None = None,
    mask_function: Callable[..., Tensor],
    local_size: int | None = None,
    kv_length: int,
    **arguments: Any,
) -> Any:
    """What each layer gets as its mask. Only rows with shared prompts come with an attention mask, of ones."""
    from transformers.masking_utils import causal_mask_function, sdpa_mask

    if attention_mask is None:
        return sdpa_mask(mask_function=mask_function, local_size=local_size, kv_length=kv_length, **arguments)
    if local_size is not None:
        return Pattern(mask_function if local_size < kv_length else None)
    if mask_function is not causal_mask_function:
        raise NotImplementedError("masks by other things than the distance of two positions")
    return Pattern(None)


@torch.compiler.disable
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
    if torch.is_grad_enabled() and len(shared_row.key_index) > _KEPT_KEYS * query.shape[2]:
        return checkpoint(shared_sdpa, *operands, use_reentrant=False, preserve_rng_state=False), None
    return shared_sdpa(*operands), None


def shared_sdpa(
    query: Tensor, key: Tensor, value: Tensor, row: SharedRow, pattern: Pattern, scaling: float | None = None
) -> Tensor:
    """Attention [1, N, heads, D'] inside a row with shared prompts, tile by tile.

    Args:
        query: [1, heads, N, D].
        key: [1, heads or a divisor of them, N, D].
        value: [1, as many as keys, N, D'].
        row: where prompts and responses stand.
        pattern: what attends to what.
        scaling: of scores; None takes D^-1/2.
    """
    grouped = query.shape[1] != key.shape[1]
    if grouped and query.device.type != "cpu":  # with masks only the CPU's kernel takes fewer heads of keys as they are
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
        grouped = False
    queries, keys, values = (
        tensor[0].transpose(0, 1).index_select(0, index).split([tile.shape[0] * tile.shape[place] for tile in row.tiles])
        for tensor, index, place in ((query, row.query_index, 1), (key, row.key_index, 2), (value, row.key_index, 2))
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
