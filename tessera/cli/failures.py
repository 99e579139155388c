"""``tessera failures``, through the running server: what failed in a namespace's batches, and trying it again."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from tessera.causes import CAUSES
from tessera.cli.connection import Api, Refused, connected
from tessera.cli.options import add_data
from tessera.cli.terminal import EXIT_IN_PART, EXIT_OK, print_table
from tessera.cli.watch import follow

#: A message is cut at so many characters where a line stands for a failure.
_SHORT_CHARS = 72


def add(commands: Any) -> None:
    """Add the command ``failures`` with its actions."""
    parser = commands.add_parser(
        "failures",
        help="list what failed in batches, show why, try it again",
        description="Work on the rows that failed in the batches of a namespace of a running server.",
    )
    parser.set_defaults(run=_run)
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    list_ = actions.add_parser("list", help="list what failed, the latest first")
    _add_filters(list_)
    list_.add_argument(
        "--state",
        choices=["failed", "waiting", "resolved"],
        default="failed",
        help="what still fails (default), what is to be tried again, what is done with",
    )
    list_.add_argument("--limit", type=int, default=50, metavar="N", help="rows to show, at most 1000 (50)")
    list_.set_defaults(action=_list)

    show = actions.add_parser("show", help="show one failure with its history")
    show.add_argument("failure_id", metavar="ID", help="id of the failure (fail_…)")
    show.set_defaults(action=_show)

    retry = actions.add_parser(
        "retry",
        help="try rows that failed again",
        description="Try failures again: those named, else all that the filters let through and that a retry can help. "
        "Waits for the end.",
    )
    retry.add_argument("failure_id", metavar="ID", nargs="*", help="id of a failure (fail_…)")
    _add_filters(retry)
    retry.add_argument("--all", action="store_true", help="those too that failed for good, or are parked")
    retry.add_argument("--no-wait", action="store_true", help="only put them in line")
    retry.set_defaults(action=_retry)
    for action in (list_, show, retry):
        action.add_argument("-n", "--namespace", required=True, metavar="NAMESPACE", help="id or name")
        action.add_argument("--json", action="store_true", help="print the server's answer as it is")
        add_data(action)


def _add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cause", action="append", choices=CAUSES, help="only this cause; repeatable")
    parser.add_argument("--collection", metavar="ID", help="only of this collection")
    parser.add_argument("--batch", metavar="ID", help="only of this batch")
    parser.add_argument("--object", metavar="ID", help="only of this object")


def _run(options: argparse.Namespace) -> int:
    with connected(options, options.namespace) as api:
        try:
            code: int = options.action(options, api)
        except Refused as refused:
            message = refused.message.replace("Send retry_mode 'all'", "Say --all")
            raise Refused(message, refused.status) from None
    return code


def _list(options: argparse.Namespace, api: Api) -> int:
    body = {**_filters(options), "state": options.state, "limit": options.limit}
    answer = api.call("POST", "/failures/list", body)
    if options.json:
        return _print_json(answer)
    rows = answer["results"]
    if rows:
        print_table(
            [("FAILURE", "CAUSE", "STAGE", "TRIES", "RETRY", "OBJECT", "FILE", "MESSAGE")]
            + [
                (
                    row["failure_id"],
                    row["cause"],
                    row["stage"],
                    str(row["attempts"]),
                    _advice(row),
                    row["object_id"],
                    row["filename"] or "-",
                    _short(row["message"]),
                )
                for row in rows
            ]
        )
    causes = ", ".join(f"{count} {cause}" for cause, count in answer["by_cause"].items())
    shown = f", {len(rows)} shown" if len(rows) < answer["total_count"] else ""
    print(f"{answer['total_count']} {options.state}{shown}{f': {causes}' if causes else ''}.")
    return EXIT_OK


def _show(options: argparse.Namespace, api: Api) -> int:
    answer = api.call("GET", f"/failures/{quote(options.failure_id, safe='')}")
    if options.json:
        return _print_json(answer)
    history = answer.pop("history")
    print_table([(name, "-" if value is None else str(value)) for name, value in answer.items()])
    print()
    print_table(
        [("TRY", "AT", "STAGE", "KIND", "MESSAGE")]
        + [
            (str(item["attempt"]), item["at"], item["stage"], item["kind"], item["message"])
            for item in history
        ]
    )
    return EXIT_OK


def _retry(options: argparse.Namespace, api: Api) -> int:
    body: dict[str, Any] = {**_filters(options), "retry_mode": "all" if options.all else "transient_only"}
    if options.failure_id:
        body["failure_ids"] = options.failure_id
    answer = api.call("POST", "/failures/retry", body)
    if options.json:
        _print_json(answer)
    else:
        print(answer["message"])
        for item in answer["skipped"]:
            print(f"{item['failure_id']}: {item['reason']}")
    if options.no_wait:
        return EXIT_OK
    follow(api, [batch["task_id"] for batch in answer["batches"]])
    failed = 0
    for batch in answer["batches"]:
        still = {"batch_id": batch["batch_id"], "limit": 1}
        failed += int(api.call("POST", "/failures/list", still)["total_count"])
        if not options.json:
            print_table([("batch", batch["batch_id"]), ("task", batch["task_id"])])
    if not options.json:
        print(
            f"{failed} row(s) of these batches still fail." if failed else "Nothing of these batches fails."
        )
    return EXIT_IN_PART if failed else EXIT_OK


def _filters(options: argparse.Namespace) -> dict[str, Any]:
    given = {
        "cause": options.cause,
        "collection_id": options.collection,
        "batch_id": options.batch,
        "object_id": options.object,
    }
    return {name: value for name, value in given.items() if value is not None}


def _advice(row: Mapping[str, Any]) -> str:
    if row["is_parked"]:
        return "parked"
    return "can help" if row["can_retry"] else "no"


def _short(message: str) -> str:
    return message if len(message) <= _SHORT_CHARS else f"{message[: _SHORT_CHARS - 1]}…"


def _print_json(answer: Mapping[str, Any]) -> int:
    import orjson

    print(orjson.dumps(answer, option=orjson.OPT_INDENT_2).decode())
    return EXIT_OK
