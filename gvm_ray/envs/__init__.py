"""Prompt environments of gymnasium's shape; importing the package registers `gvm_ray/Prompt-v0`."""

from gymnasium.envs.registration import register

register(
    id="gvm_ray/Prompt-v0",
    entry_point="gvm_ray.envs.prompt_env:PromptEnv",
    vector_entry_point="gvm_ray.envs.prompt_env:VectorPromptEnv",
)
