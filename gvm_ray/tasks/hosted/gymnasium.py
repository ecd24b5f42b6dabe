"""A gymnasium environment whose observations and actions are text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
from gymnasium.spaces import Text

from gvm_ray.config.environments import GymnasiumEnvironmentConfig
from gvm_ray.exceptions import ConfigError, DataError
from gvm_ray.tasks.hosted import Entry, Score, start_of
from gvm_ray.types import Prompt

DEFAULT_EPISODES = 1000


@dataclass(frozen=True, kw_only=True)
class _Step:
    observation: str
    reward: float
    over: bool


class GymnasiumEnvironment:
    """Episodes by seed: the first observation is the prompt, a turn is an action, the score is the sum of the rewards.

    Raises:
        ConfigError: there is no environment of this id, or its spaces aren't `Text`.
    """

    def __init__(self, config: GymnasiumEnvironmentConfig) -> None:
        self._id = config.id
        try:
            self._env: gymnasium.Env[Any, Any] = gymnasium.make(config.id, **config.arguments)
        except (gymnasium.error.Error, ImportError, TypeError) as error:
            raise ConfigError(
                f"environment.id={config.id!r} with arguments {config.arguments}: {error}; write the id of a gymnasium "
                "environment, with its module if it isn't registered yet: 'my_module:Mine-v0'"
            ) from error
        spaces = {"observation_space": self._env.observation_space, "action_space": self._env.action_space}
        if wrong := {name: type(space).__name__ for name, space in spaces.items() if not isinstance(space, Text)}:
            raise ConfigError(f"environment.id={config.id!r} has {wrong}; both spaces must be gymnasium.spaces.Text")

    def entries(self, *, split: str, size: int | None, seed: int) -> Sequence[Entry]:
        """One prompt for each seed from `seed` on; a gymnasium environment has no splits."""
        entries = []
        for number in range(seed, seed + (size or DEFAULT_EPISODES)):
            observation = self._reset(number)
            if not observation.strip():
                raise DataError(f"environment {self._id!r} gives no text for seed {number}; a prompt must have some")
            entries.append(Entry(messages=observation, start={"seed": number}))
        return entries

    def respond(self, prompt: Prompt, turns: Sequence[str]) -> str | None:
        """The observation after the last action; None if the episode ended with it."""
        last = [*self._play(prompt, turns)][-1]
        return None if last.over else last.observation

    def score(self, prompt: Prompt, turns: Sequence[str], *, cut: bool) -> Score:
        """The sum of the rewards of all turns; turns after the episode's end count nothing."""
        return Score(reward=sum(step.reward for step in self._play(prompt, turns)))

    def _play(self, prompt: Prompt, turns: Sequence[str]) -> Iterator[_Step]:
        self._reset(start_of(prompt)["seed"])
        for turn in turns:
            observation, reward, terminated, truncated, _ = self._env.step(turn)
            yield _Step(observation=_text(observation), reward=float(reward), over=terminated or truncated)
            if terminated or truncated:
                return

    def _reset(self, seed: int) -> str:
        return _text(self._env.reset(seed=seed)[0])


def _text(observation: object) -> str:
    if not isinstance(observation, str):
        raise TypeError(f"the environment observed a {type(observation).__name__}; a Text space holds strings")
    return observation
