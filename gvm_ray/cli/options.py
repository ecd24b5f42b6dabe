"""Options that several commands take."""

import argparse
from collections.abc import Mapping
from typing import Protocol


class Commands(Protocol):
    """The result of `ArgumentParser.add_subparsers`."""

    def add_parser(self, name: str, *, help: str, description: str) -> argparse.ArgumentParser: ...


def add_configs(parser: argparse.ArgumentParser, *, what: str) -> None:
    """One CONFIG.toml or more, and --set."""
    parser.add_argument("config", nargs="+", metavar="CONFIG.toml", help=what)
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """--set A.B=C, which may be repeated."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="A.B=C",
        help="override one setting, e.g. --set allocator.alpha=0.01; may be repeated",
    )


def add_measurement(parser: argparse.ArgumentParser, *, metavar: str, short: Mapping[str, str]) -> None:
    """Add the arguments of a measurement at fixed policies: its settings, and options `short` for some of them."""
    parser.add_argument("config", metavar=metavar, help="the measurement's settings")
    for option, setting in short.items():
        parser.add_argument(f"--{option}", metavar="N", help=f"short for --set {setting}=N")
    add_overrides(parser)
    parser.add_argument("--output", default=None, metavar="FOLDER", help="of the results (default: the run's folder)")


def measurement_overrides(options: argparse.Namespace, *, short: Mapping[str, str]) -> list[str]:
    """The overrides of `--set`, then those of the options that are `short` for settings."""
    values = {setting: getattr(options, option) for option, setting in short.items()}
    return [*options.overrides, *(f"{name}={value}" for name, value in values.items() if value is not None)]
