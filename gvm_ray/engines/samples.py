"""What every engine does around sampling: check the requests, find the end-of-sequence token, form completions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gvm_ray.exceptions import DataError
from gvm_ray.types import Completion, SampleRequest, SamplingParameters


@dataclass(frozen=True, kw_only=True)
class RawSample:
    """What an engine sampled, before decoding."""

    token_ids: Sequence[int]  # [T], end-of-sequence included
    logprobs: Sequence[float]  # [T] nats


def check_lengths(requests: Sequence[SampleRequest], *, sampling: SamplingParameters, max_model_len: int) -> None:
    """Raises:
    DataError: a prompt and its response would not fit into the engine's context.
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


def form_completions(
    requests: Sequence[SampleRequest],
    *,
    samples: Sequence[RawSample],
    tokenizer: Any,
    policy_version: int,
) -> list[tuple[Completion, ...]]:
    """The samples, given in order of requests and their seeds, as one tuple of completions for each request."""
    texts: list[str] = tokenizer.batch_decode([list(s.token_ids) for s in samples], skip_special_tokens=True)
    completions = _completions(samples, texts=texts, eos_token_id=tokenizer.eos_token_id, policy_version=policy_version)
    return [tuple(next(completions) for _ in request.seeds) for request in requests]


def _completions(
    samples: Sequence[RawSample], *, texts: list[str], eos_token_id: int, policy_version: int
) -> Iterator[Completion]:
    for sample, text in zip(samples, texts, strict=True):
        assert len(sample.token_ids) == len(sample.logprobs) > 0
        yield Completion(
            token_ids=np.asarray(sample.token_ids, dtype=np.int32),
            logprobs=np.asarray(sample.logprobs, dtype=np.float32),
            policy_version=policy_version,
            finish_reason="stop" if sample.token_ids[-1] == eos_token_id else "length",
            text=text,
        )
