"""A task, and how one is solved."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gvm_ray.types.arrays import IntArray

_OPENED_TAG = re.compile(r"<(think|thinking|thought|reasoning)>\s*\Z")


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """One task, rendered and tokenized."""

    prompt_id: str  # stable over runs: given by the data, or a hash of the content
    text: str  # what the tokenizer was given (template applied)
    token_ids: IntArray  # [T]
    answer: str  # gold answer, as the verifier is given it
    features: Mapping[str, Any] = field(default_factory=dict)  # small: level, subject, a scorer's entry ...

    @property
    def opened_tag(self) -> str:
        """The tag, with the blanks behind it, by which the prompt itself begins the model's thinking; else empty.

        Some chat templates end with `<think>`, so that a response begins within it.
        """
        opened = _OPENED_TAG.search(self.text)
        return opened[0] if opened else ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Demonstration:
    """A prompt with a reference rationale, for the supervised warm start."""

    prompt_token_ids: IntArray  # [T_prompt]
    response_token_ids: IntArray  # [T_response], end-of-sequence included
