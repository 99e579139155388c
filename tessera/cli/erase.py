"""``tessera erase``, through the running server."""

from __future__ import annotations

import argparse
from typing import Any
from urllib.parse import quote

from tessera.cli.connection import connected
from tessera.cli.options import add_data
from tessera.cli.terminal import EXIT_FAILED, EXIT_OK, EXIT_USAGE, CommandError, counted, note, print_table
from tessera.cli.watch import follow


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
    if bool(options.document) == bool(options.object):
        raise CommandError("name either --document or --object, each as often as needed.", EXIT_USAGE)
    body = (
        {"document_ids": options.document, "include_objects": options.with_objects}
        if options.document
        else {"object_ids": options.object}
    )
    with connected(options) as api:
        task = api.call("POST", f"/namespaces/{quote(options.namespace, safe='')}/erase", body)
        (task,) = follow(api, [task["task_id"]])
    report = task["additional_data"]["report"]
    print_table([(name, str(value)) for name, value in report.items() if name != "keys"])
    unknown = report["documents_unknown" if options.document else "objects_unknown"]
    if unknown:
        note(
            f"Namespace {options.namespace} knows nothing of {counted(unknown, 'id')} of these, now or before. "
            f"`tessera search WORDS -n {options.namespace} --json` and the API's lists show ids."
        )
    if not report["documents"] and not report["objects"]:
        raise CommandError("nothing was erased.")
    return EXIT_OK if task["status"] == "COMPLETED" else EXIT_FAILED
