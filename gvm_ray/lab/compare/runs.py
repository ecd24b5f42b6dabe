"""The plan of a comparison: one run for each arm, setting and seed, all checked before the first one starts."""

import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gvm_ray.config import ComparisonConfig, RunConfig, parse_config
from gvm_ray.config.lab import ArmConfig, FamilyConfig, Phase, TrainingSetConfig, VariantConfig
from gvm_ray.config.load import merged, read_toml
from gvm_ray.exceptions import ConfigError
from gvm_ray.lab.compare.records import Setting
from gvm_ray.maths.student_t import MIN_SEEDS

# Settings that the arms of one setting must share, besides the number of updates.
_EQUAL = ("token_budget", "prefill_price", "model", "warm_start", "prompts", "sampling", "rewards", "evaluation")
# Settings that don't affect a run's results.
_DECIDES_NOTHING = {"runs_dir", "checkpoint", "deadlines", "cluster", "reporting"}


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One planned run. `base` builds its starting policy, which depends only on family and base."""

    phase: Phase
    setting: Setting
    arm: str
    seed: int  # of the comparison, by which arms are paired; the run's own adds the arm's offset
    base: RunConfig
    config: RunConfig  # its prompts.eval is the test "balanced"
    train_test: RunConfig  # the same, but prompts.eval is the test drawn like the training set

    @property
    def name(self) -> str:
        """The run's name for people: its place in the comparison."""
        return f"{self.phase}/{self.setting}/{self.arm}/{self.seed}"

    @property
    def token_budget(self) -> int:
        """Charged tokens that end the run."""
        assert self.config.token_budget is not None
        return self.config.token_budget

    @property
    def fingerprint(self) -> str:
        """A hash of the written settings that affect the results; a record with another hash is of another run.

        Settings left at their defaults are excluded, because new settings of a later version would invalidate every
        record.
        """
        configs = (self.base, self.config, self.train_test)
        parts = [each.model_dump_json(exclude_unset=True, exclude=_DECIDES_NOTHING) for each in configs]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def planned_runs(comparison: ComparisonConfig, *, folder: Path, phase: Phase) -> list[PlannedRun]:
    """Plan every run of a phase, grouped by engine and base, with the arms of a setting side by side.

    Args:
        comparison: the comparison.
        folder: folder of its TOML file, to which the families' paths are relative.
        phase: the phase, which selects seeds and tests.

    Raises:
        ConfigError: a run's settings are wrong, or the arms of a setting differ in settings that must be equal.
    """
    runs: list[PlannedRun] = []
    for family in comparison.families:
        values = {**read_toml(folder / family.config), "name": comparison.name, "runs_dir": comparison.runs_dir}
        for base in family.bases:
            for algorithm in comparison.algorithms:
                for training_set in family.training_sets:
                    runs += _setting_runs(comparison, values, family, base, training_set, algorithm, phase=phase)
    return runs


def selected(runs: Sequence[PlannedRun], patterns: Sequence[str]) -> list[PlannedRun]:
    """Select the runs whose family/base/training_set/algorithm/arm/seed matches one of the shell patterns, in order.

    Raises:
        ConfigError: a pattern matches no run.
    """
    keys = {run.name: run.name.removeprefix(f"{run.phase}/") for run in runs}
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(key, pattern) for key in keys.values()):
            raise ConfigError(f"--only {pattern} matches no run; they have names such as {next(iter(keys.values()))}")
    return [run for run in runs if any(fnmatch.fnmatchcase(keys[run.name], pattern) for pattern in patterns)]


def warnings(comparison: ComparisonConfig, *, phase: Phase) -> list[str]:
    """Warnings about what the results will lack, before anything is spent."""
    seeds = comparison.seeds(phase)
    if len(seeds) >= MIN_SEEDS:
        return []
    return [
        f"{phase}_seeds has {len(seeds)} seed(s), too few for an interval: the table will show none; write "
        f"{MIN_SEEDS} or more"
    ]


def _setting_runs(
    comparison: ComparisonConfig,
    values: Mapping[str, Any],
    family: FamilyConfig,
    base: VariantConfig,
    training_set: TrainingSetConfig,
    algorithm: VariantConfig,
    *,
    phase: Phase,
) -> list[PlannedRun]:
    """Plan the runs of one setting, seed by seed, so that early results are comparable."""
    setting = Setting(family=family.name, base=base.name, training_set=training_set.name, algorithm=algorithm.name)
    base_values = merged(values, base.set)
    shared = base_values
    for changes in (training_set.set, comparison.phases.get(phase, {}), algorithm.set):
        shared = merged(shared, changes)
    arms = {arm.name: arm for arm in comparison.arms if arm.runs_with(algorithm.name)}
    configs = {name: merged(shared, _of_arm(comparison, arm, algorithm.name)) for name, arm in arms.items()}
    _check_equal_means(setting, {name: _parsed(each, f"{setting}/{name}") for name, each in configs.items()})
    train_test = {"prompts": {"eval": merged(_taken(shared, training_set), training_set.test)}}
    runs = []
    for seed in comparison.seeds(phase):
        for name, each in configs.items():
            seeded = {**each, "seed": seed + arms[name].seed_offset}
            runs.append(
                PlannedRun(
                    phase=phase,
                    setting=setting,
                    arm=name,
                    seed=seed,
                    base=_parsed(base_values, f"{family.name}/{base.name}"),
                    config=_parsed(seeded, f"{setting}/{name}"),
                    train_test=_parsed(merged(seeded, train_test), f"{setting}/{name}, its test"),
                )
            )
    return runs


def _taken(values: Mapping[str, Any], training_set: TrainingSetConfig) -> dict[str, Any]:
    """The settings of prompts.train that the test takes over, if present; a source without levels, say, lacks them."""
    train = values["prompts"]["train"]
    return {name: train[name] for name in training_set.test_takes if name in train}


def _of_arm(comparison: ComparisonConfig, arm: ArmConfig, algorithm: str) -> dict[str, Any]:
    budget = {"token_budget": comparison.token_budget, "prefill_price": comparison.prefill_price}
    return merged(merged(budget, arm.set), arm.by_algorithm.get(algorithm, {}))


def _parsed(values: Mapping[str, Any], origin: str) -> RunConfig:
    config = parse_config(values, origin=origin)
    if config.prompts.eval is None:
        raise ConfigError(f"{origin}: the family's config has no [prompts.eval], so accuracy can't be measured; add it")
    return config


def _check_equal_means(setting: Setting, configs: Mapping[str, RunConfig]) -> None:
    """Check that the arms of one setting differ only in allocator, learning rate and the like, not in their means.

    Raises:
        ConfigError: they differ in their means.
    """
    means = {name: _means(config) for name, config in configs.items()}
    for what in next(iter(means.values())):
        if len({values[what] for values in means.values()}) > 1:
            found = "; ".join(f"{name}: {values[what]}" for name, values in means.items())
            raise ConfigError(
                f"{setting}: the arms differ in {what} ({found}), so they can't be compared; write the same for all"
            )


def _means(config: RunConfig) -> dict[str, str]:
    sections = config.model_dump(mode="json", include=set(_EQUAL))
    updates = {"algorithm.updates_per_batch": str(config.algorithm.updates_per_batch)}
    return updates | {name: json.dumps(sections[name]) for name in _EQUAL}
