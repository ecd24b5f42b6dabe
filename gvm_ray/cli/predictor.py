"""`gvm-ray predictor`."""

import argparse
from pathlib import Path

from gvm_ray.cli.options import Commands, add_measurement, measurement_overrides
from gvm_ray.config import load_prediction

_SHORT = {"prompts": "num_prompts", "samples": "num_samples", "seed": "seed"}


def add_to(commands: Commands) -> None:
    """Add the command."""
    predictor = commands.add_parser(
        "predictor",
        help="measure how well accept rates are predicted before sampling",
        description="Pearson's r, absolute error and Brier score of the accept rates that the allocators' predictor "
        "predicts, by what it predicts from, beside what the samples drawn allow. One process, no Ray.",
    )
    add_measurement(predictor, metavar="PREDICTOR.toml", short=_SHORT)
    predictor.add_argument("--overwrite", action="store_true", help="draw the samples of an earlier measurement again")
    predictor.add_argument("--dry-run", action="store_true", help="check every policy's settings, list them, and stop")
    predictor.set_defaults(run=_predictor)


def _predictor(options: argparse.Namespace) -> int:
    settings, folder = (
        load_prediction(options.config, measurement_overrides(options, short=_SHORT)),
        Path(options.config).parent,
    )
    from gvm_ray.lab.predictor.policies import policy_config

    runs = [policy_config(settings, policy, folder=folder) for policy in settings.policies]
    if options.dry_run:
        print(f"{settings.num_samples} samples of {settings.num_prompts} prompts by each of")
        for policy, run in zip(settings.policies, runs, strict=True):
            print(f"{policy.name}: {getattr(run.model, 'path', 'a scratch model')}")
        return 0
    from gvm_ray.lab.predictor.measure import measure

    output = None if options.output is None else Path(options.output)
    print(measure(settings, folder=folder, output=output, overwrite=options.overwrite))
    return 0
