"""The configuration of each policy of a measurement: a run, with another warm start or with a trained model."""

from pathlib import Path
from typing import Any

from gvm_ray.config import PredictionConfig, RunConfig, parse_config
from gvm_ray.config.lab import PolicyConfig
from gvm_ray.config.load import merged, read_toml
from gvm_ray.exceptions import ConfigError


def policy_config(settings: PredictionConfig, policy: PolicyConfig, *, folder: Path) -> RunConfig:
    """Build the configuration of the run whose starting policy is measured.

    Args:
        settings: the measurement.
        policy: one of its policies.
        folder: folder of its TOML file, to which the run's path is relative.

    Raises:
        ConfigError: the run's settings are wrong, or it has no warm start to lengthen.
    """
    values = merged(read_toml(folder / settings.config), settings.set)
    changes: dict[str, Any] = {"name": settings.name, "runs_dir": settings.runs_dir, "allocator": {"type": "uniform"}}
    if policy.model is not None:
        values.pop("warm_start", None)
        values.pop("model", None)
        changes["model"] = {"type": "pretrained", "path": policy.model}
    if policy.warm_start_updates is not None:
        if "warm_start" not in values:
            raise ConfigError(
                f"policy {policy.name!r} sets warm_start_updates={policy.warm_start_updates}, and {settings.config!r} "
                "has no [warm_start]; add the table there, or leave the setting out"
            )
        changes["warm_start"] = {"num_updates": policy.warm_start_updates}
    values.pop("allocator", None)
    return parse_config(merged(values, changes), origin=f"{settings.config}, policy {policy.name}")
