"""Resource plans of runs on GPUs of 80 GiB."""

from pathlib import Path
from typing import Any

import pytest

from gvm_ray.config import RunConfig, parse_config
from gvm_ray.exceptions import ResourceError
from gvm_ray.pretrained import read_model_sizes
from gvm_ray.resources import Device, Hardware, Memory, ResourcePlan, plan_resources
from tests.model_shapes import write_shape

GIB = 2**30
HARDWARE = Hardware(gpu=Memory(num_bytes=80 * GIB, source="of a test"), machine=Memory(num_bytes=16 * GIB, source="-"))


def run_config(**changes: Any) -> RunConfig:
    """A run on whole GPUs with the paper's lengths; changes of `learner` and `engine` are laid over it."""
    values: dict[str, Any] = {
        "name": "plan",
        "model": {"type": "scratch"},
        "prompts": {"train": {"type": "arithmetic"}},
        "algorithm": {"type": "grpo", "kl": {"coefficient": 0.001}},
        **changes,
        "learner": {"dtype": "bfloat16", "gpus_per_worker": 1} | changes.get("learner", {}),
        "engine": {"dtype": "bfloat16", "gpus_per_generator": 1} | changes.get("engine", {}),
    }
    return parse_config(values)


def plan_of(folder: Path, model: str = "qwen2.5-math-1.5b", **changes: Any) -> ResourcePlan:
    return plan_resources(run_config(**changes), read_model_sizes(write_shape(folder, model)), HARDWARE)


def parts(device: Device) -> dict[str, float]:
    """GiB by name."""
    return {part.name: part.num_bytes / GIB for part in device.parts}


def refusal(plan: ResourcePlan) -> str:
    with pytest.raises(ResourceError) as error:
        plan.check()
    return str(error.value)
