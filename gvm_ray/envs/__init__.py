"""Prompts and the environment they are answered in; importing it registers `gvm_ray/Prompt-v0` with Gymnasium."""

from gymnasium.envs.registration import register

from gvm_ray.envs.prompt_report import PromptReport, SourceReport
from gvm_ray.envs.prompt_set import PromptSets, demonstrations, load_prompts
from gvm_ray.envs.prompt_source import load_tasks
from gvm_ray.envs.prompt_stream import ShuffledPrompts
from gvm_ray.envs.task import Task
from gvm_ray.envs.templates import render

__all__ = [
    "PromptReport",
    "PromptSets",
    "ShuffledPrompts",
    "SourceReport",
    "Task",
    "demonstrations",
    "load_prompts",
    "load_tasks",
    "render",
]

register(
    id="gvm_ray/Prompt-v0",
    entry_point="gvm_ray.envs.prompt_env:PromptEnv",
    vector_entry_point="gvm_ray.envs.vector_prompt_env:VectorPromptEnv",
)
