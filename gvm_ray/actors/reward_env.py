"""The environment that a reward process makes for itself; apart from the reward actor, so that it needs no Ray."""

from gvm_ray.config.rewards import RewardsConfig
from gvm_ray.envs.prompt_env import PromptEnv
from gvm_ray.rewards import create_reward


def make_reward_env(config: RewardsConfig, *, max_tokens: int) -> PromptEnv:
    """A PromptEnv whose every reset names its prompt.

    Raises:
        ConfigError: a reward function can't be imported.
    """
    return PromptEnv(reward=create_reward(config), max_tokens=max_tokens)
