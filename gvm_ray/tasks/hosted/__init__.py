"""Environments of other libraries: their prompts, the turns between them and the policy, and their scores.

Such an environment is made where it can do no harm: in a reward process, or in a process of its own that only reads its
prompts (`python -m gvm_ray.tasks.hosted`). Its constructor may start threads, set signal handlers or load data.
"""

import functools
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gvm_ray.config.environments import GymnasiumEnvironmentConfig, HostedEnvironmentSettings
from gvm_ray.exceptions import ConfigError
from gvm_ray.types import Prompt

__all__ = ["Entry", "HostedEnvironment", "Score", "check_installed", "hosted_environment", "start_of"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One prompt of an environment, in values that JSON can hold."""

    messages: Sequence[Mapping[str, str]] | str  # a chat, or text
    answer: str = ""  # empty if only the environment knows
    start: Mapping[str, Any]  # all that starts the episode again; goes with the prompt


@dataclass(frozen=True, kw_only=True)
class Score:
    """An environment's judgement of an episode."""

    reward: float
    metrics: Mapping[str, float] = field(default_factory=dict)


class HostedEnvironment(Protocol):
    """An environment of another library. It remembers nothing of an episode between calls."""

    def entries(self, *, split: str, size: int | None, seed: int) -> Sequence[Entry]:
        """The first `size` prompts of a split, always the same.

        Raises:
            DataError: it has none, or none that is text.
        """
        ...

    def respond(self, prompt: Prompt, turns: Sequence[str]) -> str | None:
        """The observation after the policy's turns so far (at least one); None if the episode is over."""
        ...

    def score(self, prompt: Prompt, turns: Sequence[str], *, cut: bool) -> Score:
        """The score of an episode with these turns, the last of them cut at the token limit or not.

        Raises:
            Exception: a reward function failed.
        """
        ...


def check_installed(config: HostedEnvironmentSettings) -> None:
    """Refuse an environment whose library isn't installed, without importing it.

    Raises:
        ConfigError: it isn't.
    """
    if importlib.util.find_spec(config.type) is None:
        raise ConfigError(f"environment.type={config.type!r} needs a package; run pip install 'gvm-ray[{config.type}]'")


def start_of(prompt: Prompt) -> Mapping[str, Any]:
    """All that starts the prompt's episode.

    Raises:
        ValueError: the prompt comes from another source.
    """
    start = prompt.features.get("environment")
    if start is None:
        raise ValueError(f"prompt {prompt.prompt_id!r} has no feature 'environment'; use prompts of that source")
    return start


def hosted_environment(config: HostedEnvironmentSettings) -> HostedEnvironment:
    """The environment, made once in a process.

    Its library is imported and its data loaded here, which may take longer than a reward may.

    Raises:
        ConfigError: the library is not installed, or has no such environment, or not one that fits.
    """
    check_installed(config)
    return _made(config.model_dump_json(include={"type", "id", "arguments"}), type(config))


@functools.cache
def _made(settings: str, kind: type[Any]) -> HostedEnvironment:
    config = kind.model_validate_json(settings)
    if isinstance(config, GymnasiumEnvironmentConfig):
        from gvm_ray.tasks.hosted.gymnasium import GymnasiumEnvironment

        return GymnasiumEnvironment(config)
    from gvm_ray.tasks.hosted.verifiers import VerifiersEnvironment

    return VerifiersEnvironment(config)
