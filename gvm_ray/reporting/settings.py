"""Settings of runs side by side: which differ, and which are not the defaults."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gvm_ray.config import parse_config
from gvm_ray.exceptions import ConfigError

_OWN_NAMES = ("name", "runs_dir")  # of every run


def flat_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name, such as `learner.optimizer.learning_rate`; lists are left whole."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def differing_settings(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str | None]]:
    """Dotted name -> its value in each run as JSON, None where a run lacks it; only those that differ.

    Args:
        configs: nested settings of each run, resolved.
    """
    flat = [flat_settings(config) for config in configs]
    names = dict.fromkeys(name for settings in flat for name in settings if name not in _OWN_NAMES)
    rows = {name: [json.dumps(each[name]) if name in each else None for each in flat] for name in names}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def chosen_settings(config: Mapping[str, Any]) -> dict[str, str] | None:
    """Dotted name -> value as JSON of what differs from the defaults; None for settings of another version, of which
    the defaults aren't known.
    """
    try:
        run = parse_config(config)
    except ConfigError:
        return None
    values = flat_settings(run.model_dump(mode="json"))
    names = dict.fromkeys(_chosen_names(run.model_dump(mode="json", exclude_defaults=True)))
    return {name: json.dumps(values[name]) for name in names if name in values and name not in _OWN_NAMES}


def _chosen_names(chosen: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Of settings without their defaults, and of each table its variant, which counts as a default of that variant."""
    yield f"{prefix}type"
    for name, value in chosen.items():
        if isinstance(value, Mapping):
            yield from _chosen_names(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
