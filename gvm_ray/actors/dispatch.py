"""Which generator samples what: predicted lengths, and requests to the generator with the fewest tokens before it."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from gvm_ray.types import GroupOutcome, SampleRequest

Pieces = list[tuple[int, SampleRequest]]  # (position among all requests, request or a part of it)

_SMOOTHING = 0.5  # weight of a prompt's newest mean length against its earlier ones


class LengthHistory:
    """Predicts response tokens: of a prompt from its own samples, of an unknown one from all samples so far."""

    def __init__(self, *, max_tokens: int) -> None:
        self._by_prompt: dict[str, float] = {}
        self._mean = float(max_tokens)  # until anything was seen

    def observe(self, outcome: GroupOutcome) -> None:
        """Remember the lengths of a prompt's samples."""
        if not len(outcome.num_tokens):
            return
        length = float(outcome.num_tokens.sum()) / len(outcome.num_tokens)
        known = self._by_prompt.get(outcome.prompt_id, length)
        self._by_prompt[outcome.prompt_id] = known + _SMOOTHING * (length - known)
        rate = 1 / min(len(self._by_prompt), 1000)  # the plain mean at first, then the recent one
        self._mean += rate * (length - self._mean)

    def predict(self, request: SampleRequest) -> float:
        """Tokens of all the request's samples together."""
        return len(request.seeds) * self._by_prompt.get(request.prompt.prompt_id, self._mean)


def assign(requests: Sequence[SampleRequest], *, loads: Sequence[float], lengths: LengthHistory) -> list[Pieces]:
    """A share of the requests for each generator, longest first; the same for the same arguments.

    Longest processing time first (R. L. Graham, 1969): the next longest request goes to the generator with the fewest
    predicted tokens before it. A request longer than an even share is split.

    Args:
        requests: what is to be sampled.
        loads: [G] predicted tokens that each generator has yet to sample.
        lengths: predicts a request's tokens.
    """
    total = sum(lengths.predict(request) for request in requests)
    pieces: list[tuple[float, int, SampleRequest]] = []
    for position, request in enumerate(requests):
        num_parts = min(len(request.seeds), -(-lengths.predict(request) * len(loads) // max(total, 1.0)))
        pieces += [(lengths.predict(part), position, part) for part in _split(request, num_parts=int(num_parts))]
    shares: list[Pieces] = [[] for _ in loads]
    queue = [(load, generator) for generator, load in enumerate(loads)]  # ties go to the first generator
    heapq.heapify(queue)
    for tokens, position, piece in sorted(pieces, key=lambda item: -item[0]):
        load, generator = queue[0]
        shares[generator].append((position, piece))
        heapq.heapreplace(queue, (load + tokens, generator))
    return shares


def _split(request: SampleRequest, *, num_parts: int) -> Iterator[SampleRequest]:
    """The request in near-equal parts, in order of its samples."""
    if num_parts <= 1:
        yield request
        return
    bounds = np.linspace(0, len(request.seeds), num_parts + 1).round().astype(int)
    for start, stop in pairwise(bounds.tolist()):
        yield replace(request, sample_indices=request.sample_indices[start:stop], seeds=request.seeds[start:stop])
