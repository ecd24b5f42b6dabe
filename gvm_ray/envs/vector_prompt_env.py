"""The vectorised PromptEnv: scores a batch of responses with one call."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from gvm_ray.envs.environments import Environment
from gvm_ray.envs.prompt_env import PromptEnv
from gvm_ray.exceptions import ConfigError, DataError
from gvm_ray.protocols import RewardFunction
from gvm_ray.types import BoolArray, Completion, Float64Array, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class VectorPromptEnv(VectorEnv[tuple[str, ...], Sequence[str | Completion], np.ndarray]):
    """`num_envs` environments side by side. When an episode ends, the same call returns a new prompt, and
    `infos["final_obs"]` and `infos["final_info"]` belong to the response just scored.
    """

    def __init__(
        self,
        num_envs: int,
        *,
        prompts: Sequence[Prompt],
        reward: RewardFunction | Mapping[str, RewardFunction],
        max_tokens: int | None = None,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        environment: Environment | None = None,
    ) -> None:
        """Create the environments; see `PromptEnv` for the arguments.

        Raises:
            DataError: there are no prompts, but each step draws new ones.
        """
        if not prompts:
            raise DataError("VectorPromptEnv draws new prompts after each step, but was given none; write prompts=...")
        self.num_envs = num_envs
        self._envs = [
            PromptEnv(prompts, reward=reward, max_tokens=max_tokens, tokenizer=tokenizer, environment=environment)
            for _ in range(num_envs)
        ]
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}
        self.single_observation_space = self._envs[0].observation_space
        self.single_action_space = self._envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Begin with a prompt in each environment, drawn at random or given by `options`.

        Args:
            seed: One for each environment; a number s stands for s, s + 1, ...
            options: {"prompt_ids": [...]} or {"prompts": [...]}, with one entry for each environment.

        Raises:
            ConfigError: an option is unknown or has the wrong length.
            DataError: a prompt is unknown.
        """
        if isinstance(seed, int):
            seed = range(seed, seed + self.num_envs)
        seeds = [None] * self.num_envs if seed is None else seed
        choices = self._choices(options or {})
        infos: dict[str, Any] = {}
        observations: list[str] = []
        for i, (env, env_seed, choice) in enumerate(zip(self._envs, seeds, choices, strict=True)):
            observation, info = env.reset(seed=env_seed, options=choice)
            observations.append(observation)
            infos = self._add_info(infos, info, i)
        return tuple(observations), infos

    def step(
        self, actions: Sequence[str | Completion]
    ) -> tuple[tuple[str, ...], Float64Array, BoolArray, BoolArray, dict[str, Any]]:
        """Take one turn or response in each environment.

        Returns:
            New prompts or answers to a turn, rewards [num_envs] (NaN = unscored), terminated [num_envs], truncated
            [num_envs], infos.
        """
        rewards = np.zeros(self.num_envs, dtype=np.float64)
        terminated = np.zeros(self.num_envs, dtype=np.bool_)
        truncated = np.zeros(self.num_envs, dtype=np.bool_)
        infos: dict[str, Any] = {}
        observations: list[str] = []
        for i, (env, action) in enumerate(zip(self._envs, actions, strict=True)):
            observation, rewards[i], terminated[i], truncated[i], info = env.step(action)
            if terminated[i] or truncated[i]:
                ended = {"final_obs": observation, "final_info": info}
                observation, info = env.reset()
                info |= ended
            observations.append(observation)
            infos = self._add_info(infos, info, i)
        return tuple(observations), rewards, terminated, truncated, infos

    def _choices(self, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The reset options of each environment."""
        if unknown := options.keys() - {"prompt_ids", "prompts"}:
            raise ConfigError(
                f"VectorPromptEnv.reset doesn't know options {sorted(unknown)}; write 'prompt_ids' or 'prompts'"
            )
        choices: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for name, values in options.items():
            if len(values) != self.num_envs:
                raise ConfigError(
                    f"options[{name!r}] has {len(values)} entries for {self.num_envs} environments; write one for each"
                )
            for choice, value in zip(choices, values, strict=True):
                choice[name.removesuffix("s")] = value
        return choices
