"""`gvm-ray eval`."""

import argparse

from gvm_ray.cli.options import Commands, add_config
from gvm_ray.config import load_config
from gvm_ray.exceptions import UserError


def add_to(commands: Commands) -> None:
    """Add the command."""
    evaluate = commands.add_parser(
        "eval",
        help="measure a model on prompts",
        description="avg@k, pass@k and maj@k of a model on a config's evaluation prompts, with bootstrap intervals.",
    )
    evaluate.add_argument("model", metavar="MODEL", help="a Hugging Face folder or hub id, e.g. runs/quickstart/model")
    add_config(evaluate, what="prompts, rewards and engine", optional=True)
    evaluate.add_argument("--num-samples", type=int, default=8, help="completions for each prompt (default 8)")
    evaluate.add_argument("--temperature", type=float, default=None, help="default: evaluation.temperature")
    evaluate.add_argument("--output", default=None, metavar="FILE", help="also write the numbers as JSON")
    evaluate.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    if options.num_samples < 1:
        raise UserError(f"--num-samples {options.num_samples} is not a positive number; write e.g. --num-samples 8")
    config = load_config(options.config, options.overrides)
    from gvm_ray.run import evaluate

    result = evaluate(
        options.model, config, num_samples=options.num_samples, temperature=options.temperature, output=options.output
    )
    print(result.table())
    return 0
