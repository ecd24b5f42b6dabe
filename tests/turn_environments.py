"""Environments of multi-turn tests, imported by path in the reward actors."""

from collections.abc import Sequence

from gvm_ray.types import Prompt


def second_chance(prompt: Prompt, turns: Sequence[str]) -> str | None:
    """Poses the problem once more where it was not answered rightly."""
    return None if f"\\boxed{{{prompt.answer}}}" in turns[-1] else prompt.text


def no_text(prompt: Prompt, turns: Sequence[str]) -> int:
    """What an environment must not return."""
    return len(turns)


not_callable = "text"
