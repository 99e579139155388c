"""``tessera retriever``, through the running server: run one, see its plan, compare two on judged queries."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from tessera.cli.connection import Api, connected
from tessera.cli.options import add_data
from tessera.cli.search import print_hit
from tessera.cli.terminal import (
    EXIT_OK,
    EXIT_USAGE,
    CommandError,
    note,
    plain,
    print_table,
)
from tessera.cli.watch import follow

#: The metrics and depths that are compared unless --metric and --k name another.
_METRICS = ("precision", "recall", "f1", "f2", "map", "ndcg", "mrr")
_DEPTHS = (1, 5, 10, 20)
#: Query ids that are named where several could be.
_NAMED = 10
#: Types of inputs whose value is written as JSON; the others are taken letter by letter.
_READ_AS_JSON = ("number", "integer", "float", "boolean", "object", "array")


def add(commands: Any) -> None:
    """Add the command ``retriever`` with its actions."""
    parser = commands.add_parser(
        "retriever",
        help="run a stored retriever, explain it, compare two",
        description="Work with the stored retrievers of a namespace of a running server.",
    )
    parser.set_defaults(run=_run)
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    run = actions.add_parser("run", help="run a retriever and print its hits, the best first")
    run.add_argument("--limit", type=_number(1000), default=10, metavar="N", help="hits, 1 to 1000 (10)")
    run.set_defaults(action=_execute)
    explain = actions.add_parser("explain", help="show what a run would do, and the indexes it lacks")
    explain.set_defaults(action=_explain)
    for action in (run, explain):
        action.add_argument("retriever", metavar="RETRIEVER", help="id or name")
        action.add_argument(
            "--input", action="append", default=[], metavar="NAME=VALUE", help="an input; repeatable"
        )
    compare = actions.add_parser(
        "compare",
        help="say which of two retrievers is better on a dataset",
        description="Evaluate both retrievers on a dataset of judged queries, wait for the end, and compare them query "
        "by query. One figure decides; name it before you look.",
    )
    compare.add_argument("retriever", metavar="BASELINE", help="id or name")
    compare.add_argument("candidate", metavar="CANDIDATE", help="id or name")
    compare.add_argument("--dataset", required=True, metavar="DATASET", help="id or name")
    compare.add_argument("--metric", choices=_METRICS, default="ndcg", help="the metric that decides (ndcg)")
    compare.add_argument("--k", type=_number(1000), default=10, metavar="K", help="and its depth (10)")
    compare.add_argument(
        "--queries", type=_number(5000), default=10, metavar="N", help="queries to list (10)"
    )
    compare.set_defaults(action=_compare)
    for action in (run, explain, compare):
        action.add_argument("-n", "--namespace", required=True, metavar="NS", help="id or name")
        action.add_argument("--json", action="store_true", help="print the server's answer as it is")
        add_data(action)


def _number(most: int) -> Any:
    def read(text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {most}")
        return int(text)

    return read


def _run(options: argparse.Namespace) -> int:
    with connected(options, options.namespace) as api:
        code: int = options.action(options, api)
    return code


def _path(retriever: str) -> str:
    if retriever in ("", ".", ".."):
        raise CommandError(f"{retriever!r} is no id or name of a retriever.", EXIT_USAGE)
    return f"/retrievers/{quote(retriever, safe='')}"


def _inputs(options: argparse.Namespace, api: Api) -> dict[str, Any]:
    """Return the inputs: what the retriever takes as text stays as it is, what else is JSON is read as such."""
    if not options.input:
        return {}
    schema = api.call("GET", _path(options.retriever))["input_schema"]
    found: dict[str, Any] = {}
    for given in options.input:
        name, is_given, text = given.partition("=")
        if not name or not is_given:
            raise CommandError(f"--input {given!r} is no NAME=VALUE.", EXIT_USAGE)
        if name not in schema:
            takes = ", ".join(schema) or "none"
            raise CommandError(f"{options.retriever} has no input {name!r}; its inputs: {takes}.", EXIT_USAGE)
        found[name] = _value(text, str(schema[name]["type"]))
    return found


def _value(text: str, kind: str) -> Any:
    if kind in _READ_AS_JSON:
        try:
            value = json.loads(text)
            json.dumps(value, allow_nan=False)  # Python reads NaN too, which is no JSON
            return value
        except (ValueError, RecursionError):
            pass  # the server says what it takes
    return text


def _execute(options: argparse.Namespace, api: Api) -> int:
    body = {"inputs": _inputs(options, api), "limit": options.limit}
    answer = api.call("POST", f"{_path(options.retriever)}/execute", body)
    if options.json:
        return _print_json(answer)
    for hit in answer["documents"]:
        print_hit(hit)
    if not answer["documents"]:
        note("Nothing was found.")
    return EXIT_OK


# --- explain ---------------------------------------------------------------------------------------------


def _explain(options: argparse.Namespace, api: Api) -> int:
    answer = api.call("POST", f"{_path(options.retriever)}/explain", {"inputs": _inputs(options, api)})
    if options.json:
        return _print_json(answer)
    stages = answer["execution_plan"]
    rows = [
        (
            str(stage["stage_index"] + 1),
            stage["stage_name"],
            stage["stage_id"],
            str(stage["estimated_input"]),
            str(stage["estimated_output"]),
            f"{stage['estimated_duration_ms']:.1f}",
        )
        for stage in stages
    ]
    _print(("#", "NAME", "STAGE", "IN", "OUT", "MS"), rows)
    if answer["missing_inputs"]:
        note(
            f"Without these inputs the plan is less exact: {', '.join(map(plain, answer['missing_inputs']))}."
        )
    for suggestion in answer["optimization_suggestions"]:
        note(plain(_suggested(suggestion)))
    return EXIT_OK


def _suggested(suggestion: Mapping[str, Any]) -> str:
    body = json.dumps(suggestion["body"], ensure_ascii=False)
    return f"An index would help: {suggestion['method']} {suggestion['path']} {body}"


# --- compare ---------------------------------------------------------------------------------------------


def _compare(options: argparse.Namespace, api: Api) -> int:
    config = {
        "k_values": sorted({*_DEPTHS, options.k}),
        "metrics": list(dict.fromkeys(("precision", "recall", "f1", "map", "ndcg", "mrr", options.metric))),
    }
    body = {"dataset_name": options.dataset, "evaluation_config": config}
    # Both are there before one is started.
    for retriever in (options.retriever, options.candidate):
        api.call("GET", _path(retriever))
    started = [
        api.call("POST", f"{_path(retriever)}/evaluations", body)
        for retriever in (options.retriever, options.candidate)
    ]
    tasks = follow(api, [each["task_id"] for each in started])
    for retriever, task in zip((options.retriever, options.candidate), tasks, strict=True):
        if not task["status"].startswith("COMPLETED"):
            raise CommandError(
                f"{retriever} could not be evaluated: {plain(task['error'] or task['status'])}"
            )
    asked = {
        "baseline_evaluation_id": started[0]["evaluation_id"],
        "candidate_evaluation_id": started[1]["evaluation_id"],
        "metric": options.metric,
        "k": options.k,
        "query_limit": options.queries,
    }
    answer = api.call("POST", "/retrievers/evaluations/compare", asked)
    if options.json:
        return _print_json(answer)
    _print(
        ("FIGURE", "BASELINE", "CANDIDATE", "DIFFERENCE", "95 %", "P", "WINS", "LOSSES", "TIES"),
        _figures(answer),
    )
    print()
    by = answer["decided_by"]
    moved = [query for query in answer["queries"] if query["difference"]]
    if moved:
        rows = [
            (
                query["query_id"],
                f"{query['baseline']:.4f}",
                f"{query['candidate']:.4f}",
                f"{query['difference']:+.4f}",
            )
            for query in moved
        ]
        _print(("QUERY", "BASELINE", "CANDIDATE", f"{by['metric']}@{by['k']}"), rows)
        print()
    print(plain(answer["message"]))
    if answer["left_out_queries"]:
        left = answer["left_out_queries"]
        shown = ", ".join(map(plain, left[:_NAMED])) + (", …" if len(left) > _NAMED else "")
        note(f"Not evaluated by both, and left out: {len(left)} ({shown}).")
    return EXIT_OK


def _figures(answer: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return a row for each figure; the one that decides is marked."""
    decided = (answer["decided_by"]["metric"], answer["decided_by"]["k"])
    return [
        (
            f"{each['metric']}@{each['k']}{' *' if (each['metric'], each['k']) == decided else ''}",
            f"{each['baseline']:.4f}",
            f"{each['candidate']:.4f}",
            f"{each['difference']:+.4f}",
            "-" if each["interval_95"] is None else "{:+.4f} … {:+.4f}".format(*each["interval_95"]),
            f"{each['p_value']:.4f}",
            str(each["wins"]),
            str(each["losses"]),
            str(each["ties"]),
        )
        for each in answer["figures"]
    ]


def _print(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table with titles on a terminal, and lines of cells with tabs between where there is none."""
    if sys.stdout.isatty():
        print_table([titles, *rows])
        return
    for row in rows:
        print("\t".join(map(plain, row)))


def _print_json(answer: object) -> int:
    print(json.dumps(answer, ensure_ascii=False, indent=2))
    return EXIT_OK
