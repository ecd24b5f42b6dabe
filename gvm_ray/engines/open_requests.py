"""Bookkeeping that all engines share: checks requests, assigns samples to requests, and forms completions."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gvm_ray.exceptions import DataError
from gvm_ray.types import Completion, IntArray, SampleRequest, SamplingParameters


@dataclass(frozen=True, kw_only=True)
class RawSample:
    """One sample of an engine, before decoding."""

    token_ids: Sequence[int]  # [T], including an end token
    logprobs: Sequence[float]  # [T] nats
    versions: Sequence[tuple[int, int]]  # (policy version, index of its first token), in order


@dataclass(frozen=True, kw_only=True, eq=False)
class _OpenRequest:
    request: SampleRequest
    samples: dict[int, RawSample] = field(default_factory=dict)  # position among the request's samples -> sample

    @property
    def complete(self) -> bool:
        return len(self.samples) == len(self.request.seeds)


class OpenRequests:
    """The unanswered requests of an engine; each of their samples has a number."""

    def __init__(self, tokenizer: Any, *, end_token_ids: Collection[int], max_model_len: int) -> None:
        self._tokenizer = tokenizer
        self._end_token_ids = end_token_ids
        self._max_model_len = max_model_len
        self._owners: dict[int, tuple[_OpenRequest, int]] = {}  # sample number -> request, position in it
        self._next_number = 0
        self._complete: list[_OpenRequest] = []
        self._num_open = 0

    def __len__(self) -> int:
        return self._num_open

    def add(
        self, requests: Sequence[SampleRequest], sampling: SamplingParameters
    ) -> Iterator[tuple[int, SampleRequest, int]]:
        """Register the requests; yields (sample number, request, seed) for each sample.

        Raises:
            DataError: a prompt and its response would not fit into the engine's context; no request is registered.
        """
        check_lengths(requests, sampling=sampling, max_model_len=self._max_model_len)
        for request in requests:
            owner = _OpenRequest(request=request)
            self._num_open += 1
            if owner.complete:  # the request has no samples
                self._complete.append(owner)
            for position, seed in enumerate(request.seeds):
                number, self._next_number = self._next_number, self._next_number + 1
                self._owners[number] = (owner, position)
                yield number, request, seed

    def finish(self, number: int, sample: RawSample) -> None:
        """Record a finished sample."""
        owner, position = self._owners.pop(number)
        owner.samples[position] = sample
        if owner.complete:
            self._complete.append(owner)

    def take_complete(self) -> list[tuple[SampleRequest, tuple[Completion, ...]]]:
        """Remove and return the complete requests, with their completions."""
        complete, self._complete = self._complete, []
        self._num_open -= len(complete)
        return [(owner.request, self._completions(owner)) for owner in complete]

    def clear(self) -> list[int]:
        """Remove all requests, and return the numbers of the unfinished samples."""
        numbers = list(self._owners)
        self._owners, self._complete, self._num_open = {}, [], 0
        return numbers

    def _completions(self, owner: _OpenRequest) -> tuple[Completion, ...]:
        samples = [owner.samples[position] for position in range(len(owner.samples))]
        if not samples:
            return ()
        texts: list[str] = self._tokenizer.batch_decode(
            # The end token is not part of the text, even if the tokenizer doesn't count it as special.
            [list(s.token_ids[:-1] if self._has_ended(s) else s.token_ids) for s in samples],
            skip_special_tokens=True,
        )
        return tuple(self._completion(sample, text) for sample, text in zip(samples, texts, strict=True))

    def _completion(self, sample: RawSample, text: str) -> Completion:
        assert len(sample.token_ids) == len(sample.logprobs) > 0
        return Completion(
            token_ids=np.asarray(sample.token_ids, dtype=np.int32),
            logprobs=np.asarray(sample.logprobs, dtype=np.float32),
            policy_versions=_versions_by_token(sample),
            finish_reason="stop" if self._has_ended(sample) else "length",
            text=text,
        )

    def _has_ended(self, sample: RawSample) -> bool:
        """Whether the sample ends with an end token; else it was cut."""
        return sample.token_ids[-1] in self._end_token_ids


def check_lengths(requests: Sequence[SampleRequest], *, sampling: SamplingParameters, max_model_len: int) -> None:
    """Check that requests fit into the engine's context.

    Raises:
        DataError: a prompt is empty, or together with its response too long.
    """
    for request in requests:
        num_tokens = len(request.prompt.token_ids)
        if num_tokens == 0:
            raise DataError(f"prompt {request.prompt.prompt_id!r} has no tokens; leave it out")
        if num_tokens + sampling.max_tokens > max_model_len:
            raise DataError(
                f"prompt {request.prompt.prompt_id!r} has {num_tokens} tokens; with sampling.max_tokens="
                f"{sampling.max_tokens} that is {num_tokens + sampling.max_tokens}, and the engine was started for "
                f"{max_model_len}; write prompts.max_tokens={num_tokens} or more, or leave the prompt out"
            )


def _versions_by_token(sample: RawSample) -> IntArray:
    starts = [start for _, start in sample.versions]
    lengths = np.diff([*starts, len(sample.token_ids)])
    return np.repeat(np.array([version for version, _ in sample.versions], dtype=np.int32), lengths)
