"""The plan of a measurement: the run whose policy is measured, and a checked configuration for each arm."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gvm_ray.config import EstimatorConfig, RunConfig, parse_config
from gvm_ray.config.load import merged, read_toml
from gvm_ray.exceptions import ConfigError

_ARMS_OWN = {"allocator", "learner"}  # settings that don't change the samples, the budget or the target


@dataclass(frozen=True, kw_only=True)
class PlannedArm:
    """An allocator with an algorithm."""

    algorithm: str
    name: str
    config: RunConfig


def base_config(estimator: EstimatorConfig, *, folder: Path) -> RunConfig:
    """Build the configuration of the run whose starting policy is measured, with the measurement's step size.

    Args:
        estimator: the measurement.
        folder: folder of its TOML file, to which the run's path is relative.

    Raises:
        ConfigError: the run's settings are wrong.
    """
    return parse_config(_base_values(estimator, folder), origin=str(folder / estimator.config))


def planned_arms(estimator: EstimatorConfig, *, folder: Path) -> list[PlannedArm]:
    """Plan every arm with every algorithm, grouped by algorithm.

    Raises:
        ConfigError: an arm's settings are wrong, or change the policy, the samples, the budget or the target.
    """
    values, base = _base_values(estimator, folder), base_config(estimator, folder=folder)
    arms = []
    for algorithm in estimator.algorithms:
        own = parse_config(merged(values, algorithm.set), origin=algorithm.name).algorithm
        shared = base.model_copy(update={"algorithm": own}).model_dump(exclude=_ARMS_OWN)
        for arm in estimator.arms:
            if not arm.runs_with(algorithm.name):
                continue
            changes = merged(merged(algorithm.set, arm.set), arm.by_algorithm.get(algorithm.name, {}))
            config = parse_config(merged(values, changes), origin=f"{algorithm.name}/{arm.name}")
            found = config.model_dump(exclude=_ARMS_OWN)
            if different := [name for name in shared if found[name] != shared[name]]:
                raise ConfigError(
                    f"arm {arm.name!r} with algorithm {algorithm.name!r} changes {', '.join(different)}, but all share "
                    "one policy, its samples, one budget and one target; set `allocator` and `learner` in an arm, "
                    f"`algorithm` in [[algorithms]], and the rest in {estimator.config!r}"
                )
            if config.needs.response_states:
                raise ConfigError(
                    f"arm {arm.name!r} predicts from hidden states of responses (allocator.type="
                    f"{config.allocator.type!r}), which the pool of samples lacks; leave it out, and compare it by "
                    "`gvm-ray compare`"
                )
            arms.append(PlannedArm(algorithm=algorithm.name, name=arm.name, config=config))
    return arms


def _base_values(estimator: EstimatorConfig, folder: Path) -> dict[str, Any]:
    values = read_toml(folder / estimator.config)
    values.pop("allocator", None)  # each arm has its own
    changes: dict[str, Any] = {
        "name": estimator.name,
        "runs_dir": estimator.runs_dir,
        "prompts_per_step": estimator.step_prompts,
    }
    if estimator.samples_per_prompt is not None:
        changes["samples_per_prompt"] = estimator.samples_per_prompt
    return merged(values, changes)
