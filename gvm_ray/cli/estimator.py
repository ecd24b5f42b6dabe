"""`gvm-ray estimator`."""

import argparse
from pathlib import Path

from gvm_ray.cli.options import Commands, add_measurement, measurement_overrides
from gvm_ray.config import EstimatorConfig, load_estimator

_SHORT = {
    "prompts": "num_prompts",
    "samples": "num_samples",
    "repeats": "num_repeats",
    "seed": "seed",
}


def add_to(commands: Commands) -> None:
    """Add the command."""
    estimator = commands.add_parser(
        "estimator",
        help="measure the gradient estimates of allocators at a fixed policy",
        description="Variance, squared bias and mean squared error of each arm's gradient estimate against the true "
        "gradient, x a baseline and beside an oracle. One process, no Ray.",
    )
    add_measurement(estimator, metavar="ESTIMATOR.toml", short=_SHORT)
    estimator.add_argument("--dry-run", action="store_true", help="check every arm's settings, list them, and stop")
    estimator.set_defaults(run=_estimator)


def _estimator(options: argparse.Namespace) -> int:
    estimator, folder = (
        load_estimator(options.config, measurement_overrides(options, short=_SHORT)),
        Path(options.config).parent,
    )
    from gvm_ray.lab.estimator.arms import planned_arms

    arms = planned_arms(estimator, folder=folder)
    if options.dry_run:
        print("\n".join([*(f"{arm.algorithm}/{arm.name}" for arm in arms), describe_estimator(estimator)]))
        return 0
    from gvm_ray.lab.estimator.measure import measure

    print(measure(estimator, folder=folder, output=None if options.output is None else Path(options.output)))
    return 0


def describe_estimator(estimator: EstimatorConfig) -> str:
    """The measurement that the settings ask for, in words."""
    num_warm_up = estimator.num_warm_up_prompts if estimator.warm_up_steps else 0
    return (
        f"{estimator.num_repeats} repeats of each, on {estimator.num_samples} samples of {estimator.num_prompts} "
        f"prompts and of {num_warm_up} to warm up on"
    )
