"""``tessera backup`` and ``tessera restore``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from tessera.cli.options import add_data, load
from tessera.cli.terminal import EXIT_OK, EXIT_USAGE, counted, fail, note


def add(commands: Any) -> None:
    """Add the commands ``backup`` and ``restore``."""
    backup = commands.add_parser(
        "backup",
        help="copy a data directory, also while a server runs there",
        description="Copy a data directory to DEST: new, empty, or with an earlier backup, to which only what is new "
        "is added. A server may run meanwhile; what it had acknowledged before is in the copy.",
    )
    backup.add_argument("target", metavar="DEST", type=Path, help="directory of the backup")
    backup.add_argument(
        "--with-secrets",
        action="store_true",
        help="copy master.key, signing.key, admin.key and tessera.toml too: whoever reads the backup can then open "
        "stored credentials",
    )
    add_data(backup)
    backup.set_defaults(run=_backup)

    restore = commands.add_parser(
        "restore",
        help="make a data directory from a backup",
        description="Verify a backup and copy it to a new data directory. Indexes are built on first use.",
    )
    restore.add_argument("source", metavar="SRC", type=Path, help="directory of the backup")
    add_data(restore)
    restore.set_defaults(run=_restore)


def _backup(options: argparse.Namespace) -> int:
    from tessera import backup

    settings = load(options).settings
    os.umask(0o077)
    if settings.database_url is not None:
        return fail("database_url is set: back that database up with its own tools.", EXIT_USAGE)
    made = backup.create(settings.data, options.target, with_secrets=options.with_secrets)
    print(
        f"Backed up {counted(made.namespaces, 'namespace')}: {counted(made.files, 'file')}, {made.size_bytes} bytes, "
        f"{made.added} new."
    )
    if not made.has_master_key:
        note(
            "The master key is not in the backup: keep it elsewhere (DATA/master.key or the setting master_key). "
            "Without it stored credentials cannot be opened; --with-secrets puts it in."
        )
    return EXIT_OK


def _restore(options: argparse.Namespace) -> int:
    from tessera import backup

    settings = load(options).settings
    os.umask(0o077)
    made = backup.restore(options.source, settings.data)
    print(
        f"Restored {counted(made.namespaces, 'namespace')} to {settings.data}: {counted(made.files, 'file')}, "
        "all verified."
    )
    if not made.has_master_key:
        note(
            f"The backup has no master key: put yours into {settings.data / 'master.key'} (mode 0600) before the "
            "server starts, or credentials that were stored cannot be opened."
        )
    return EXIT_OK
