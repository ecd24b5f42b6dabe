"""Builders for the tests of the predictor and of what it remembers."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gvm_ray.types import Float64Array, GroupOutcome, GroupRef, Prompt, TrainedNorms

NAN = float("nan")


def prompts(count: int, *, first: int = 0, **features: Any) -> list[Prompt]:
    """So many prompts with ids from `first` on."""
    return [
        Prompt(prompt_id=str(i), text="", token_ids=np.zeros(1, dtype=np.int32), answer="", features=features)
        for i in range(first, first + count)
    ]


def outcome(prompt_id: str, rewards: Sequence[float] | Float64Array, *, num_tokens: int = 5) -> GroupOutcome:
    """Samples of a prompt, NaN being unscored."""
    n = len(rewards)
    return GroupOutcome(
        prompt_id=prompt_id,
        sample_indices=tuple(range(n)),
        rewards=np.array(rewards, dtype=np.float64),
        num_tokens=np.full(n, num_tokens, dtype=np.int32),
        policy_versions=np.zeros(n, dtype=np.int32),
        truncated=np.zeros(n, dtype=np.bool_),
        ref=GroupRef(ref=None, index=0),
    )


def trained(prompt_id: str, norms: Sequence[float], *, positive: Sequence[bool]) -> TrainedNorms:
    """Norms of trained samples."""
    return TrainedNorms(prompt_id=prompt_id, positive=np.array(positive), norms=np.array(norms))
