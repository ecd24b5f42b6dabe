"""Division of samples into micro-batches, and of demonstrations into batches."""

import heapq

import numpy as np
from numpy.typing import ArrayLike, NDArray


def micro_batches(
    lengths: ArrayLike, *, max_tokens: int, num_ranks: int, packed: bool = False
) -> list[list[NDArray[np.int64]]]:
    """Indices of the samples of each micro-batch, for each rank.

    Ranks get near-equal token counts (longest sample first, to the least loaded rank). On a rank samples stand by
    falling length, so that little is padded and the largest forward pass comes first. Every rank gets the same number
    of micro-batches, filled up with empty ones, because sharded forward passes are collective calls.

    Args:
        lengths: [N] tokens of each sample.
        max_tokens: bound on rows x longest row of a micro-batch, padding included; a longer sample stands alone.
        num_ranks: number of learners.
        packed: samples stand end to end without padding, and the bound is on the sum of their lengths.

    Returns:
        num_ranks lists of index arrays; no sample at all gives empty lists.
    """
    lengths = _token_counts(lengths, name="lengths")
    if max_tokens < 1 or num_ranks < 1:
        raise ValueError(f"max_tokens={max_tokens} and num_ranks={num_ranks} must be at least 1")
    longest_first = np.argsort(-lengths, kind="stable")
    shares = _spread(longest_first, lengths, num_parts=num_ranks)
    return _as_many([_fill(indices, lengths, max_tokens=max_tokens, packed=packed) for indices in shares])


def shared_micro_batches(
    prompts: ArrayLike, *, prompt_tokens: ArrayLike, response_tokens: ArrayLike, max_tokens: int, num_ranks: int
) -> list[list[NDArray[np.int64]]]:
    """Indices of the samples of each micro-batch, for each rank, if samples of one prompt share it.

    A prompt's samples stay together, longest response first, unless they exceed the bound or a division gives the ranks
    more even loads. Then each part reads the prompt again. Parts are divided among ranks and micro-batches as
    `micro_batches` divides samples.

    Args:
        prompts: [N] number of each sample's prompt.
        prompt_tokens: [N] tokens of each sample's prompt.
        response_tokens: [N] tokens of each sample's response.
        max_tokens: bound on the tokens of a micro-batch, each prompt once; a longer sample stands alone.
        num_ranks: number of learners.

    Returns:
        num_ranks lists of index arrays; no sample at all gives empty lists.
    """
    prompts = _token_counts(prompts, name="prompts")
    lengths = _token_counts(prompt_tokens, name="prompt_tokens")
    responses = _token_counts(response_tokens, name="response_tokens")
    if max_tokens < 1 or num_ranks < 1:
        raise ValueError(f"max_tokens={max_tokens} and num_ranks={num_ranks} must be at least 1")
    order = np.lexsort((-responses, prompts))
    groups = np.split(order, np.flatnonzero(np.diff(prompts[order])) + 1) if len(order) else []
    share = -(-int(responses.sum() + sum(lengths[group[0]] for group in groups)) // num_ranks)
    best: list[list[NDArray[np.int64]]] = []
    least = np.inf
    for most in (max_tokens, *([] if num_ranks == 1 else (share, share // 2, share // 4))):
        parts = [part for group in groups for part in _divide(group, lengths, responses, most=min(most, max_tokens))]
        sizes = np.array([lengths[part[0]] + responses[part].sum() for part in parts], dtype=np.int64)
        shares = _spread(np.argsort(-sizes, kind="stable"), sizes, num_parts=num_ranks)
        if (load := max(int(sizes[indices].sum()) for indices in shares)) < least:
            ranks = [_fill(indices, sizes, max_tokens=max_tokens, packed=True) for indices in shares]
            best = [[np.concatenate([parts[i] for i in batch]) for batch in batches] for batches in ranks]
            least = load
    return _as_many(best)


def _divide(
    group: NDArray[np.int64], lengths: NDArray[np.int64], responses: NDArray[np.int64], *, most: int
) -> list[NDArray[np.int64]]:
    """Cut the samples of one prompt, longest first, into parts of at most `most` tokens with the prompt."""
    room = max(most - int(lengths[group[0]]), 1)
    return _fill(group, responses, max_tokens=room, packed=True)


def _as_many(ranks: list[list[NDArray[np.int64]]]) -> list[list[NDArray[np.int64]]]:
    """Append empty micro-batches until all ranks have the same number."""
    most = max(len(batches) for batches in ranks)
    return [batches + [np.zeros(0, dtype=np.int64)] * (most - len(batches)) for batches in ranks]


def split_updates(num_tokens: ArrayLike, *, num_updates: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Sample indices of each optimizer update: random parts, near-equal in tokens, every sample in exactly one.

    Samples in random order go to the part with the fewest tokens so far; two parts differ by at most the longest
    sample, and one is empty only when there are fewer samples than updates.

    Args:
        num_tokens: [N] tokens of each sample.
        num_updates: number of parts.
        rng: decides the order.
    """
    num_tokens = _token_counts(num_tokens, name="num_tokens")
    if num_updates < 1:
        raise ValueError(f"num_updates={num_updates} must be at least 1")
    return _spread(rng.permutation(len(num_tokens)), num_tokens, num_parts=num_updates)


def _spread(order: NDArray[np.int64], sizes: NDArray[np.int64], *, num_parts: int) -> list[NDArray[np.int64]]:
    """Each index in turn to the part with the smallest total size, then the fewest members; ties to the first part."""
    members: list[list[int]] = [[] for _ in range(num_parts)]
    loads = [(0, 0, part) for part in range(num_parts)]
    for index in order.tolist():
        size, count, part = loads[0]
        members[part].append(index)
        heapq.heapreplace(loads, (size + int(sizes[index]), count + 1, part))
    return [np.array(part, dtype=np.int64) for part in members]


def _fill(
    indices: NDArray[np.int64], lengths: NDArray[np.int64], *, max_tokens: int, packed: bool
) -> list[NDArray[np.int64]]:
    """Cut indices of falling length into micro-batches as full as `max_tokens` allows."""
    batches: list[NDArray[np.int64]] = []
    stops = np.cumsum(lengths[indices])
    start = 0
    while start < len(indices):
        longest = max(int(lengths[indices[start]]), 1)
        if packed:
            stop = int(np.searchsorted(stops - stops[start] + longest, max_tokens, side="right"))
        else:
            stop = start + max_tokens // longest
        stop = max(stop, start + 1)
        batches.append(indices[start:stop])
        start = stop
    return batches


def _token_counts(values: ArrayLike, *, name: str) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)) or (array < 0).any():
        raise ValueError(f"{name} must be a vector of integers >= 0, got {array.dtype} of shape {array.shape}")
    return array.astype(np.int64)


def demonstration_batches(num_demonstrations: int, *, batch_size: int, num_updates: int, seed: int) -> list[np.ndarray]:
    """Indices of each warm-start update: consecutive slices of one random order after another.

    Every demonstration is seen once before any is seen twice; a batch may reach over the end of an order.
    """
    if num_demonstrations < 1:
        raise ValueError("a warm start needs at least one demonstration")
    total = num_updates * batch_size
    orders = [
        np.random.default_rng((seed, epoch)).permutation(num_demonstrations)
        for epoch in range(-(-total // num_demonstrations))
    ]
    return list(np.concatenate(orders)[:total].reshape(num_updates, batch_size))
