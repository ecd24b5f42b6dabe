"""The command line. Parses and validates first, so that --help and config errors answer before anything heavy loads."""

import argparse
import sys
from collections.abc import Sequence

from gvm_ray import __version__
from gvm_ray.cli import bench, compare, data, doctor, evaluate, measurements, metrics, report, settings, train
from gvm_ray.exceptions import RunStopped, SystemFailure, UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, 1 (the run failed), 2 (the request was wrong) or 128 + a signal's number."""
    options = create_parser().parse_args(arguments)
    try:
        return options.run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SystemFailure as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except RunStopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def create_parser() -> argparse.ArgumentParser:
    """Of every command and its options; what it parses has `run`, a function of itself."""
    parser = argparse.ArgumentParser(
        prog="gvm-ray",
        description="Reinforcement learning for reasoning models with a dynamic sampling budget, on Ray.",
    )
    parser.add_argument("--version", action="version", version=f"gvm-ray {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (train, evaluate, report, data, compare, measurements, bench, doctor, settings, metrics):
        command.add_to(commands)
    return parser
