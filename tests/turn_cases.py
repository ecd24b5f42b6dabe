"""A prompt and hand-made completions of several turns."""

from collections.abc import Sequence

import numpy as np
from tiny_models import make_prompt

from gvm_ray.learner.scratch_model import build_character_tokenizer
from gvm_ray.types import Completion

PROMPT = make_prompt("1+1=")


def said(text: str, *, turns: tuple[str, ...] = (), sampled: Sequence[bool] | None = None) -> Completion:
    """A finished completion of `text`, every character a token, and the end."""
    token_ids = [*build_character_tokenizer()(text)["input_ids"], 1]
    return Completion(
        token_ids=np.array(token_ids, dtype=np.int32),
        logprobs=-np.arange(1, len(token_ids) + 1, dtype=np.float32),
        policy_versions=np.full(len(token_ids), 3, dtype=np.int32),
        finish_reason="stop",
        text=text,
        turns=turns,
        sampled=None if sampled is None else np.array(sampled),
    )
