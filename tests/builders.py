"""Domain objects as tests need them: a test writes what matters to it, and the rest has a default."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gvm_ray.types import (
    Completion,
    FinishReason,
    GroupOutcome,
    GroupRef,
    Prompt,
    RolloutGroup,
    SampleRequest,
    TrainedNorms,
    TrainGroup,
)

NAN = float("nan")  # the reward of an unscored sample


def prompt(
    prompt_id: object = "p",
    *,
    text: str = "?",
    token_ids: Sequence[int] = (0,),
    answer: str = "1",
    features: Mapping[str, Any] | None = None,
) -> Prompt:
    """One prompt; its id is made a string."""
    return Prompt(
        prompt_id=str(prompt_id),
        text=text,
        token_ids=np.array(token_ids, dtype=np.int32),
        answer=answer,
        features=dict(features or {}),
    )


def prompts(ids: int | Iterable[object], *, first: int = 0, **features: Any) -> list[Prompt]:
    """A prompt for each id, or so many with ids from `first` on; all with these features."""
    names = range(first, first + ids) if isinstance(ids, int) else ids
    return [prompt(each, features=features) for each in names]


def sample_request(
    of: object = "p", *, num_samples: int = 1, first_seed: int = 0, seeds: Sequence[int] | None = None
) -> SampleRequest:
    """Samples of a prompt, or of one with this id, with these seeds, or with first_seed, first_seed + 1 ..."""
    seeds = range(first_seed, first_seed + num_samples) if seeds is None else seeds
    asked = of if isinstance(of, Prompt) else prompt(of)
    return SampleRequest(prompt=asked, sample_indices=tuple(range(len(seeds))), seeds=tuple(seeds))


def completion(
    text: str = "",
    *,
    num_tokens: int = 1,
    token_ids: Sequence[int] | None = None,
    version: int = 0,
    finish_reason: FinishReason = "stop",
) -> Completion:
    """A completion whose tokens don't spell its text, each with log-prob 0; tokens are 0 unless they are given."""
    ids = np.zeros(num_tokens, dtype=np.int32) if token_ids is None else np.array(token_ids, dtype=np.int32)
    return Completion(
        token_ids=ids,
        logprobs=np.zeros(len(ids), dtype=np.float32),
        policy_versions=np.full(len(ids), version, dtype=np.int32),
        finish_reason=finish_reason,
        text=text,
    )


def group(of: object, completions: Sequence[Completion | str], *, rewards: ArrayLike | None = None) -> RolloutGroup:
    """The samples of a prompt, or of one with this id; a mere text is a completion of one token."""
    return RolloutGroup.of(
        of if isinstance(of, Prompt) else prompt(of),
        [completion(each) if isinstance(each, str) else each for each in completions],
        rewards=None if rewards is None else np.array(rewards, dtype=np.float64),
    )


def outcome(
    prompt_id: object,
    rewards: ArrayLike,
    *,
    first_index: int = 0,
    num_tokens: int | Sequence[int] = 5,
    version: int = 0,
    truncated: bool | Sequence[bool] = False,
    gradient_norms: ArrayLike | None = None,
    ref: Any = None,
    **fields: Any,
) -> GroupOutcome:
    """The outcome of a prompt's samples of one round, NaN being unscored. One number stands for all samples."""
    values = np.array(rewards, dtype=np.float64)
    n = len(values)
    return GroupOutcome(
        prompt_id=str(prompt_id),
        sample_indices=tuple(range(first_index, first_index + n)),
        rewards=values,
        num_tokens=np.array(np.broadcast_to(num_tokens, n), dtype=np.int32),
        policy_versions=np.full(n, version, dtype=np.int32),
        truncated=np.array(np.broadcast_to(truncated, n), dtype=np.bool_),
        ref=GroupRef(ref=ref, index=0),
        gradient_norms=None if gradient_norms is None else np.array(gradient_norms, dtype=np.float64),
        **fields,
    )


def train_group(prompt_id: str, advantages: Sequence[float], *, num_tokens: int = 1) -> TrainGroup:
    """Trained samples with these advantages, each of weight 1."""
    n = len(advantages)
    return TrainGroup(
        prompt_id=prompt_id,
        ref=GroupRef(ref=None, index=0),
        sample_indices=np.arange(n, dtype=np.int32),
        advantages=np.array(advantages, dtype=np.float64),
        weights=np.ones(n),
        num_tokens=np.full(n, num_tokens, dtype=np.int32),
    )


def trained_norms(prompt_id: str, norms: Sequence[float], *, positive: Sequence[bool]) -> TrainedNorms:
    """Gradient norms that training measured."""
    return TrainedNorms(prompt_id=prompt_id, positive=np.array(positive), norms=np.array(norms))
