"""``tessera secrets``: the master key that seals stored credentials."""

from __future__ import annotations

import argparse
from typing import Any

from tessera.cli.options import add_data, load, open_database
from tessera.cli.terminal import EXIT_OK, note


def add(commands: Any) -> None:
    """Add the command ``secrets``."""
    secrets = commands.add_parser(
        "secrets",
        help="replace or give up the key that seals stored credentials",
        description="Work on the master key of a data directory that no server uses.",
    )
    actions = secrets.add_subparsers(metavar="ACTION", required=True)
    rotate = actions.add_parser(
        "rotate",
        help="seal every stored credential with a new master key",
        description="Seal every stored credential anew: with a new key in DATA/master.key, or with TESSERA_MASTER_KEY "
        "(then TESSERA_MASTER_KEY_PREVIOUS names the one before it). Killed at any moment, it can be run again.",
    )
    add_data(rotate)
    rotate.set_defaults(run=_secrets_rotate)
    discard = actions.add_parser(
        "discard",
        help="remove stored credentials whose master key is lost",
        description="Remove every stored credential that the present master key cannot open, so that the server starts "
        "again. Secrets of organizations go; keys of Qdrant and tokens of Ray become empty, to be set again.",
    )
    add_data(discard)
    discard.set_defaults(run=_secrets_discard)


def _secrets_rotate(options: argparse.Namespace) -> int:
    from tessera import data_directory
    from tessera.wiring import rotate_master_key

    settings = load(options).settings
    # Its schema is checked, and that it is a data directory at all.
    open_database(settings).close()
    with data_directory.held(settings.data):
        count, key_id = rotate_master_key(settings)
    print(f"{count} stored credentials are sealed with the new master key {key_id}.")
    if settings.master_key is not None:
        note("TESSERA_MASTER_KEY_PREVIOUS is needed no more.")
    return EXIT_OK


def _secrets_discard(options: argparse.Namespace) -> int:
    from tessera import data_directory
    from tessera.wiring import discard_lost_secrets

    settings = load(options).settings
    open_database(settings).close()
    with data_directory.held(settings.data):
        count = discard_lost_secrets(settings)
    print(f"{count} stored credentials are discarded. Set them again.")
    return EXIT_OK
