"""Options that several commands take."""

import argparse
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
