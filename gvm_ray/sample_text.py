"""A sampled response as a person reads it. The loop logs a few of them; all others never pass through the driver."""

from dataclasses import dataclass
from typing import Literal

Rank = Literal["best", "worst"]  # by reward, among the samples of a step


@dataclass(frozen=True, kw_only=True)
class SampleText:
    """One response of a step, with what came of it."""

    rank: Rank
    prompt_id: str
    prompt: str  # template applied
    completion: str
    answer: str  # gold answer
    reward: float
    num_tokens: int  # of the response
    truncated: bool  # cut at max_tokens
    policy_version: int  # of its oldest token
