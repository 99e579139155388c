"""``tessera key``: API keys in a data directory, whether a server runs there or not."""

from __future__ import annotations

import argparse
from typing import Any

from tessera.cli.options import add_data, load, open_database
from tessera.cli.terminal import EXIT_OK, note, print_table


def add(commands: Any) -> None:
    """Add the command ``key``."""
    key = commands.add_parser(
        "key",
        help="make, list and revoke API keys",
        description="Work on the keys in a data directory. Whether a server runs there does not matter.",
    )
    _add_key_commands(key)


def _add_key_commands(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    create = actions.add_parser("create", help="make a key and print its secret, once")
    add_data(create)
    create.add_argument("--name", help="name of the key (made up when absent)")
    create.add_argument(
        "--permission",
        choices=["read", "write", "delete", "admin"],
        default="write",
        help="what it may do; each includes those before it (write)",
    )
    create.add_argument(
        "--admin", action="store_const", const="admin", dest="permission", help="short for --permission admin"
    )
    create.add_argument("--email", help="whose key it is (the user that the first start made)")
    create.set_defaults(run=_key_create)

    listing = actions.add_parser("list", help="list keys, without secrets")
    add_data(listing)
    listing.set_defaults(run=_key_list)

    revoke = actions.add_parser("revoke", help="end a key for good")
    revoke.add_argument("name", metavar="NAME", help="name, id or prefix of the key")
    add_data(revoke)
    revoke.set_defaults(run=_key_revoke)


def _key_create(options: argparse.Namespace) -> int:
    from tessera import data_directory, organizations

    settings = load(options).settings
    db = open_database(settings)
    try:
        email = options.email or organizations.FIRST_USER_EMAIL
        key, row = organizations.create_key_offline(db, email, options.name, [options.permission])
        kept = data_directory.read_admin_key(settings.data)
        keep = options.permission == "admin" and (kept is None or not organizations.is_active(db, kept))
    finally:
        db.close()
    if keep:
        data_directory.write_admin_key(settings.data, key)
    print(f"API key: {key}", flush=True)
    kept_in = f"It is kept in {settings.data / 'admin.key'}." if keep else "It is not shown again."
    note(f"Key {row['name']} ({row['key_id']}) has the permission {options.permission}. {kept_in}")
    return EXIT_OK


def _key_list(options: argparse.Namespace) -> int:
    from tessera import organizations

    db = open_database(load(options).settings)
    try:
        rows = organizations.list_keys_offline(db)
    finally:
        db.close()
    lines = [("NAME", "ID", "PREFIX", "PERMISSIONS", "STATUS", "LAST USED", "USER")]
    lines += [
        (
            row["name"],
            row["key_id"],
            row["key_prefix"],
            ",".join(row["permissions"]),
            row["status"],
            row["last_used_at"] or "never",
            row["email"],
        )
        for row in rows
    ]
    print_table(lines)
    return EXIT_OK


def _key_revoke(options: argparse.Namespace) -> int:
    from tessera import organizations

    db = open_database(load(options).settings)
    try:
        row = organizations.revoke_key_offline(db, options.name)
    finally:
        db.close()
    print(f"Key {row['name']} ({row['key_id']}) is revoked.")
    return EXIT_OK
