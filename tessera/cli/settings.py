"""``tessera config`` and ``tessera version``."""

from __future__ import annotations

import argparse
from typing import Any

from tessera import __version__
from tessera.cli.options import add_settings, load
from tessera.cli.terminal import EXIT_OK, print_table


def add(commands: Any) -> None:
    """Add the commands ``config`` and ``version``."""
    config = commands.add_parser(
        "config",
        help="show all settings",
        description="Show each setting, its value, and where it came from. Secrets are hidden.",
    )
    add_settings(config)
    config.set_defaults(run=_config)

    version = commands.add_parser("version", help="show the version")
    version.set_defaults(run=_version)


def _config(options: argparse.Namespace) -> int:
    print_table(load(options).rows())
    return EXIT_OK


def _version(_options: argparse.Namespace) -> int:
    print(f"tessera {__version__}")
    return EXIT_OK
