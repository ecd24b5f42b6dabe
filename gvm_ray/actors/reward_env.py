"""The environment that a reward process makes for itself; separate from the reward actor, so that it needs no Ray."""

import functools

from gvm_ray.config.environments import EnvironmentSettings, SingleTurnConfig
from gvm_ray.config.rewards import EnvironmentRewardConfig, RewardsConfig
from gvm_ray.envs.environments import create_environment
from gvm_ray.envs.prompt_env import PromptEnv
from gvm_ray.rewards import create_reward
from gvm_ray.rewards.sandbox import Sandbox
from gvm_ray.tasks.hosted import hosted_environment


def make_reward_env(
    config: RewardsConfig, *, max_tokens: int, environment: EnvironmentSettings | None = None
) -> PromptEnv:
    """The configured environment and reward as a PromptEnv. Every reset must name its prompt.

    Raises:
        ConfigError: a reward or environment can't be imported.
    """
    for term in config.terms:
        if isinstance(term, EnvironmentRewardConfig) and term.environment is not None:
            hosted_environment(term.environment)  # here, where no response waits for it
    return PromptEnv(
        reward=create_reward(config),
        max_tokens=max_tokens,
        environment=create_environment(environment or SingleTurnConfig()),
    )


def make_reward_sandbox(
    config: RewardsConfig, *, max_tokens: int, environment: EnvironmentSettings | None = None
) -> Sandbox:
    """The sandbox for the configured environment, reward and limits; not yet started."""
    return Sandbox(
        functools.partial(make_reward_env, config, max_tokens=max_tokens, environment=environment),
        timeout_s=config.timeout_s,
        memory_mb=config.memory_mb,
        allow_network=config.allow_network,
        pass_env=config.pass_env,
    )
