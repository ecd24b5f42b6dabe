"""Prompts: their sources and templates, the set of a run and its stream."""

from gvm_ray.tasks.demonstrations import demonstrations
from gvm_ray.tasks.prompt_set import PromptReport, PromptSets, SourceReport, load_prompts, load_tasks
from gvm_ray.tasks.prompt_stream import ShuffledPrompts
from gvm_ray.tasks.rows import Task
from gvm_ray.tasks.templates import render

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
