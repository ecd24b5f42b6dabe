"""`gvm-ray estimator` and `gvm-ray predictor`: measurements at fixed policies, in one process without Ray."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from gvm_ray.cli.options import Commands, add_overrides
from gvm_ray.config import EstimatorConfig, load_estimator, load_prediction

_PREDICTOR_OPTIONS = {"prompts": "num_prompts", "samples": "num_samples", "seed": "seed"}  # option -> its setting
_ESTIMATOR_OPTIONS = {"prompts": "num_prompts", "samples": "num_samples", "repeats": "num_repeats", "seed": "seed"}


def add_to(commands: Commands) -> None:
    """Add the commands."""
    estimator = commands.add_parser(
        "estimator",
        help="measure the gradient estimates of allocators at a fixed policy",
        description="Variance, squared bias and mean squared error of each arm's gradient estimate against the true "
        "gradient, x a baseline and beside an oracle. One process, no Ray.",
    )
    _add_arguments(estimator, metavar="ESTIMATOR.toml", short=_ESTIMATOR_OPTIONS)
    estimator.add_argument("--dry-run", action="store_true", help="check every arm's settings, list them, and stop")
    estimator.set_defaults(run=_estimator)

    predictor = commands.add_parser(
        "predictor",
        help="measure how well accept rates are predicted before sampling",
        description="Pearson's r, absolute error and Brier score of the accept rates that the allocators' predictor "
        "predicts, by what it predicts from, beside what the samples drawn allow. One process, no Ray.",
    )
    _add_arguments(predictor, metavar="PREDICTOR.toml", short=_PREDICTOR_OPTIONS)
    predictor.add_argument("--overwrite", action="store_true", help="draw the samples of an earlier measurement again")
    predictor.add_argument("--dry-run", action="store_true", help="check every policy's settings, list them, and stop")
    predictor.set_defaults(run=_predictor)


def _add_arguments(parser: argparse.ArgumentParser, *, metavar: str, short: Mapping[str, str]) -> None:
    parser.add_argument("config", metavar=metavar, help="the measurement's settings")
    for option, setting in short.items():
        parser.add_argument(f"--{option}", metavar="N", help=f"short for --set {setting}=N")
    add_overrides(parser)
    parser.add_argument("--output", default=None, metavar="FOLDER", help="of the results (default: the run's folder)")


def _overrides(options: argparse.Namespace, *, short: Mapping[str, str]) -> list[str]:
    """The overrides of `--set`, then those of the options that are `short` for settings."""
    values = {setting: getattr(options, option) for option, setting in short.items()}
    return [*options.overrides, *(f"{name}={value}" for name, value in values.items() if value is not None)]


def _output(options: argparse.Namespace) -> Path | None:
    return None if options.output is None else Path(options.output)


def _estimator(options: argparse.Namespace) -> int:
    settings = load_estimator(options.config, _overrides(options, short=_ESTIMATOR_OPTIONS))
    folder = Path(options.config).parent
    from gvm_ray.lab.estimator.arms import planned_arms

    arms = planned_arms(settings, folder=folder)
    if options.dry_run:
        print("\n".join([*(f"{arm.algorithm}/{arm.name}" for arm in arms), _in_words(settings)]))
        return 0
    from gvm_ray.lab.estimator.measure import measure

    print(measure(settings, folder=folder, output=_output(options)))
    return 0


def _in_words(estimator: EstimatorConfig) -> str:
    """The measurement that the settings ask for."""
    num_warm_up = estimator.num_warm_up_prompts if estimator.warm_up_steps else 0
    return (
        f"{estimator.num_repeats} repeats of each, on {estimator.num_samples} samples of {estimator.num_prompts} "
        f"prompts and of {num_warm_up} to warm up on"
    )


def _predictor(options: argparse.Namespace) -> int:
    settings = load_prediction(options.config, _overrides(options, short=_PREDICTOR_OPTIONS))
    folder = Path(options.config).parent
    from gvm_ray.lab.predictor.policies import policy_config

    runs = [policy_config(settings, policy, folder=folder) for policy in settings.policies]
    if options.dry_run:
        print(f"{settings.num_samples} samples of {settings.num_prompts} prompts by each of")
        for policy, run in zip(settings.policies, runs, strict=True):
            print(f"{policy.name}: {getattr(run.model, 'path', 'a scratch model')}")
        return 0
    from gvm_ray.lab.predictor.measure import measure

    print(measure(settings, folder=folder, output=_output(options), overwrite=options.overwrite))
    return 0
