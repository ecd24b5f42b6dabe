"""One task as its source gives it, before a template and a tokenizer turn it into a Prompt."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Task:
    """A problem with its gold answer."""

    prompt_id: str  # given by the data, or a hash of the content
    problem: str  # as the source has it, no template applied
    answer: str  # gold answer as text; empty where the task's own scorer grades
    features: Mapping[str, Any] = field(default_factory=dict)
    rationale: str | None = None  # a reference response, for the warm start


def content_id(problem: str, answer: str) -> str:
    """16 hex digits that depend on the problem and the answer alone, so they are the same in every run."""
    return hashlib.sha256(f"{problem}\0{answer}".encode()).hexdigest()[:16]


def normalised(problem: str) -> str:
    """The problem with every run of whitespace as one space: what two copies of a problem have in common."""
    return " ".join(problem.split())
