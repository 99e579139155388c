"""``tessera dataset import``: a file of judged queries becomes a dataset, through the running server."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tessera.cli.connection import connected
from tessera.cli.options import add_data
from tessera.cli.terminal import EXIT_OK, EXIT_USAGE, CommandError, counted, plain

#: Lines that are named where more could be.
_NAMED = 10
_COLUMNS = ("query_id", "query", "relevant_documents", "relevance_scores")


class _Wrong(Exception):
    """What is wrong with a line."""


def add(commands: Any) -> None:
    """Add the command ``dataset`` with its action."""
    parser = commands.add_parser(
        "dataset",
        help="make a dataset of judged queries from a file",
        description="Datasets of judged queries, for `tessera retriever compare` and evaluations.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    load = actions.add_parser(
        "import",
        help="make a dataset from a .jsonl or .csv file",
        description="Make a dataset from a file with a query on each line. JSON lines: objects with query (a text) or "
        "query_input (inputs by name), relevant_documents (a list of document ids), and query_id and relevance_scores "
        "(a grade for each id) if wanted. CSV: columns query and relevant_documents (ids with blanks between), and "
        "query_id and relevance_scores (as many integers, with blanks between) if wanted. A query without an id is "
        "named by its line. If any line is wrong, nothing is sent.",
    )
    load.add_argument("file", metavar="FILE", type=Path, help="ending with .jsonl, .ndjson or .csv")
    load.add_argument("--name", required=True, metavar="NAME", help="of the dataset; not taken yet")
    load.add_argument(
        "--input", default="query_text", metavar="NAME", help="the input that query is for (query_text)"
    )
    load.add_argument("-n", "--namespace", required=True, metavar="NS", help="id or name")
    load.add_argument("--json", action="store_true", help="print the server's answer as it is")
    add_data(load)
    load.set_defaults(run=_import)


def _import(options: argparse.Namespace) -> int:
    queries = _read(options.file, options.input)
    with connected(options, options.namespace) as api:
        body = {"dataset_name": options.name, "queries": queries}
        made = api.call("POST", "/retrievers/evaluations/datasets", body)
    if options.json:
        print(json.dumps(made, ensure_ascii=False, indent=2))
    else:
        count = made["query_count"]
        noun = "1 query" if count == 1 else f"{count} queries"
        print(f"Dataset {plain(made['dataset_name'])} ({made['dataset_id']}) has {noun}.")
    return EXIT_OK


def _read(path: Path, name: str) -> list[dict[str, Any]]:
    """Return the queries of a file. Raises `CommandError` that names each line that is wrong."""
    from tessera.models.evaluations import MAX_QUERIES

    readers: dict[str, Callable[[str], Iterator[tuple[int, Any]]]] = {
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
        ".csv": _csv_lines,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise CommandError(f"{path} must end with .jsonl, .ndjson or .csv.", EXIT_USAGE)
    if not path.is_file():
        raise CommandError(f"there is no file {path}.", EXIT_USAGE)
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CommandError(
            f"{path}, line {line}: these bytes are no UTF-8; save the file as UTF-8."
        ) from None
    queries: list[dict[str, Any]] = []
    lines: dict[str, int] = {}
    wrong: list[str] = []
    try:
        for line, given in reader(text):
            try:
                query = _query(given, line, name)
                first = lines.setdefault(query["query_id"], line)
                if first != line:
                    raise _Wrong(f"query_id {query['query_id']!r} is that of line {first} too.")
                queries.append(query)
            except _Wrong as error:
                wrong.append(f"line {line}: {error}")
    except _Wrong as error:
        wrong.append(str(error))
    if wrong:
        shown = [f"{path}, {each}" for each in wrong[:_NAMED]]
        more = [f"and {counted(len(wrong) - _NAMED, 'line')} more."] if len(wrong) > _NAMED else []
        raise CommandError("\n".join(map(plain, [*shown, *more, "Nothing was sent."])))
    if not 1 <= len(queries) <= MAX_QUERIES:
        raise CommandError(
            f"{path} has {len(queries)} queries; a dataset has 1 to {MAX_QUERIES}. Nothing was sent."
        )
    return queries


def _query(given: Any, line: int, name: str) -> dict[str, Any]:
    """Return a query as the API takes it, from an object of the file."""
    import pydantic

    from tessera.models.evaluations import GroundTruthQuery
    from tessera.validation import schema_problems

    if isinstance(given, _Wrong):
        raise given
    if not isinstance(given, dict):
        raise _Wrong("no JSON object.")
    query = dict(given)
    if ("query" in query) == ("query_input" in query):
        raise _Wrong("needs either query, a text, or query_input, an object of inputs by name.")
    if "query" in query:
        asked = query.pop("query")
        if not isinstance(asked, str) or not asked.strip():
            raise _Wrong("query must be a text that is not blank.")
        query["query_input"] = {name: asked}
    query.setdefault("query_id", f"line-{line}")
    try:
        return GroundTruthQuery.model_validate(query).model_dump(exclude_none=True)
    except pydantic.ValidationError as error:
        found = schema_problems(error, ())
        raise _Wrong(
            " ".join(f"{'.'.join(map(str, each.location))}: {each.message}" for each in found)
        ) from None


def _json_lines(text: str) -> Iterator[tuple[int, Any]]:
    for line, written in enumerate(text.split("\n"), start=1):
        if not written.strip():
            continue
        try:
            yield line, json.loads(written, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            yield line, _Wrong(f"no JSON ({error}).")


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _csv_lines(text: str) -> Iterator[tuple[int, Any]]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    titles: list[str] | None = None
    try:
        for row in rows:
            if titles is None:
                titles = _titles(row)
            elif row:
                yield line, _cells(titles, row)
            line = rows.line_num + 1
    except csv.Error as error:
        raise _Wrong(f"line {line}: no CSV ({error}).") from None


def _titles(row: list[str]) -> list[str]:
    titles = [title.strip() for title in row]
    lacking = [title for title in ("query", "relevant_documents") if title not in titles]
    if lacking:
        raise _Wrong(
            f"line 1: the column {lacking[0]!r} is missing; the columns are {', '.join(_COLUMNS)}, the second and the "
            "third needed."
        )
    twice = [title for title in _COLUMNS if titles.count(title) > 1]
    if twice:
        raise _Wrong(f"line 1: there are two columns {twice[0]!r}.")
    return titles


def _cells(titles: list[str], row: list[str]) -> Any:
    if len(row) != len(titles):
        return _Wrong(
            f"{counted(len(row), 'cell')}, where line 1 has {len(titles)}; a text with a comma in it needs quotes."
        )
    cells = dict(zip(titles, row, strict=True))
    documents = cells["relevant_documents"].split()
    query: dict[str, Any] = {"query": cells["query"], "relevant_documents": documents}
    if cells.get("query_id", "").strip():
        query["query_id"] = cells["query_id"].strip()
    grades = cells.get("relevance_scores", "").split()
    if grades:
        if len(grades) != len(documents) or not all(grade.isdecimal() for grade in grades):
            return _Wrong(
                f"relevance_scores must be as many integers from 0 as there are relevant_documents ({len(documents)})."
            )
        query["relevance_scores"] = dict(zip(documents, map(int, grades), strict=True))
    return query
