"""``tessera erase``, through the running server."""

from __future__ import annotations

import argparse
from typing import Any

from tessera.cli.options import add_data, load
from tessera.cli.terminal import (
    EXIT_FAILED,
    EXIT_NO_SERVER,
    EXIT_OK,
    EXIT_REFUSED,
    EXIT_USAGE,
    fail,
    print_table,
)


def add(commands: Any) -> None:
    """Add the command ``erase``."""
    erase = commands.add_parser(
        "erase",
        help="erase documents from everything that a running server keeps",
        description="Erase documents, or objects with all their documents, and wait until nothing is left of them.",
    )
    erase.add_argument("namespace", metavar="NAMESPACE", help="id or name")
    erase.add_argument("--document", action="append", default=[], metavar="ID", help="a document; repeatable")
    erase.add_argument(
        "--object", action="append", default=[], metavar="ID", help="an object with its documents; repeatable"
    )
    erase.add_argument(
        "--with-objects", action="store_true", help="erase the objects that the documents came from too"
    )
    add_data(erase)
    erase.set_defaults(run=_erase)


def _erase(options: argparse.Namespace) -> int:
    import time
    from urllib.parse import quote

    import httpx

    from tessera import data_directory

    if bool(options.document) == bool(options.object):
        return fail("name either --document or --object, each as often as needed.", EXIT_USAGE)
    data = load(options).settings.data
    owner, key = data_directory.holder_of(data), data_directory.read_admin_key(data)
    if owner is None:
        return fail(f"no server runs on {data}; start it first: tessera up.", EXIT_NO_SERVER)
    if key is None:
        return fail(f"there is no {data / 'admin.key'}; make one: tessera key create --admin.", EXIT_FAILED)
    body = (
        {"document_ids": options.document, "include_objects": options.with_objects}
        if options.document
        else {"object_ids": options.object}
    )
    headers = {"Authorization": f"Bearer {key}"}
    try:
        # Not through the environment's proxies: the server is on this machine, and the key is for nobody else.
        with httpx.Client(base_url=owner.url, headers=headers, timeout=60, trust_env=False) as client:
            answer = client.post(f"/v1/namespaces/{quote(options.namespace, safe='')}/erase", json=body)
            while answer.is_success and answer.json()["status"] in ("PENDING", "IN_PROGRESS"):
                time.sleep(0.2)
                answer = client.get(f"/v1/tasks/{answer.json()['task_id']}")
    except httpx.TransportError:
        return fail(f"the server at {owner.url} does not answer.", EXIT_NO_SERVER)
    if not answer.is_success:
        return fail(str(answer.json()["error"]["message"]), EXIT_REFUSED)
    report = answer.json()["additional_data"]["report"]
    print_table([(name, str(value)) for name, value in report.items() if name != "keys"])
    return EXIT_OK if answer.json()["status"] == "COMPLETED" else EXIT_FAILED
