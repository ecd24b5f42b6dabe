"""`gvm-ray settings`."""

import argparse

from gvm_ray.cli.options import Commands


def add_to(commands: Commands) -> None:
    """Add the command."""
    settings = commands.add_parser(
        "settings",
        help="explain the settings of a run",
        description="Every setting of a TOML file with its values, default and meaning, as Markdown.",
    )
    settings.add_argument("table", nargs="?", default=None, metavar="TABLE", help="only this one, e.g. allocator")
    settings.set_defaults(run=_settings)


def _settings(options: argparse.Namespace) -> int:
    from gvm_ray.config.reference import reference

    print(reference(options.table), end="")
    return 0
