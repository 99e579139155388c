"""``tessera search``: words or a picture, over everything in a namespace."""

from __future__ import annotations

import argparse
import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tessera.cli.connection import Api, connected
from tessera.cli.options import add_data
from tessera.cli.terminal import EXIT_OK, EXIT_USAGE, CommandError, duration, note, plain

_TEXT_CHARS = 200
#: What one stage takes.
_MOST_SEARCHES = 16
#: Fields in which extractors put what a hit says, the best first.
_TEXTS = ("text", "transcription", "ocr_text", "description", "caption")
_TITLES = ("path", "title", "filename", "name")


def add(commands: Any) -> None:
    """Add the command ``search``."""
    search = commands.add_parser(
        "search",
        help="search a namespace by words or by a picture",
        description="Search every collection of a namespace, or those that are named, and print the best hits: score, "
        "file and place in it, text.",
    )
    search.add_argument("words", metavar="WORDS", nargs="?", help="what to look for, in your own words")
    search.add_argument("-n", "--namespace", required=True, metavar="NS", help="id or name")
    search.add_argument("--image", metavar="FILE", type=Path, help="find what looks like this picture")
    search.add_argument(
        "-c", "--collection", action="append", default=[], metavar="NAME", help="only in this; repeatable"
    )
    search.add_argument("--limit", type=_limit, default=10, metavar="N", help="hits to show, 1 to 100 (10)")
    search.add_argument("--json", action="store_true", help="print the hits as JSON, with all their fields")
    add_data(search)
    search.set_defaults(run=_search)


def _limit(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 100")
    return int(text)


def _search(options: argparse.Namespace) -> int:
    if (options.words is None) == (options.image is None):
        raise CommandError('say what to look for: "some words", or --image FILE.', EXIT_USAGE)
    kind, value = ("text", options.words) if options.image is None else ("image", _picture(options.image))
    with connected(options, options.namespace) as api:
        searches = [
            {"feature_uri": uri, "query": {kind: "{{INPUT.query}}"}, "top_k": options.limit}
            for uri in _features(api, options, kind)
        ]
        parameters = {"searches": searches, "final_top_k": options.limit}
        body = {
            "collection_identifiers": options.collection,
            "stages": [
                {
                    "stage_name": "search",
                    "stage_type": "filter",
                    "config": {"stage_id": "feature_search", "parameters": parameters},
                }
            ],
            "inputs": {"query": value},
            "limit": options.limit,
        }
        hits = api.call("POST", "/retrievers/execute", body)["documents"]
    if options.json:
        print(json.dumps(hits, ensure_ascii=False, indent=2))
    elif not hits:
        note("Nothing was found.")
    else:
        for hit in hits:
            print_hit(hit)
    return EXIT_OK


def _picture(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _features(api: Api, options: argparse.Namespace, kind: str) -> list[str]:
    """Return the features to search, of collections that hold something: with one alone its own scores are shown."""
    wanted = set(options.collection)
    collections = [
        collection
        for collection in api.call("POST", "/collections/list", {"limit": 1000})["results"]
        if not wanted or wanted & {collection["collection_id"], collection["collection_name"]}
    ]
    filled = [collection for collection in collections if collection["document_count"]]
    uris = {
        index["feature_uri"]: None
        for collection in filled or collections
        for index in collection["vector_indexes"]
        if kind in index["index"]["supported_inputs"]
    }
    if not uris:
        where = ", ".join(options.collection) or f"namespace {options.namespace}"
        how = "words" if kind == "text" else "a picture"
        raise CommandError(
            f"nothing in {where} can be searched by {how}; `tessera models` shows what is installed."
        )
    return list(uris)[:_MOST_SEARCHES]


def print_hit(hit: Mapping[str, Any]) -> None:
    """Print a hit: score, file and place in it, text."""
    title, place = _title(hit), _place(hit)
    print(f"{hit['score'] or 0:.3f}  {plain(title)}{f'  {place}' if place else ''}")
    text = next((hit[name] for name in _TEXTS if isinstance(hit.get(name), str) and hit[name].strip()), "")
    line = plain(" ".join(text.split()))
    if line:
        print(f"       {line if len(line) <= _TEXT_CHARS else line[: _TEXT_CHARS - 1] + '…'}")


def _title(hit: Mapping[str, Any]) -> str:
    nested = hit.get("metadata")
    places = (hit, nested if isinstance(nested, Mapping) else {})
    found = [place[name] for name in _TITLES for place in places if isinstance(place.get(name), str)]
    return str(found[0] if found else hit["document_id"])


def _place(hit: Mapping[str, Any]) -> str:
    """Return where in its file a hit lies, in words."""
    from tessera.locators import locator_of

    locator = locator_of(hit)
    if locator is None:
        return ""
    if locator.kind == "time" and locator.start_ms is not None and locator.end_ms is not None:
        return f"{duration(locator.start_ms / 1000)}-{duration(locator.end_ms / 1000)}"
    if locator.kind == "page" and locator.page is not None:
        return f"page {locator.page + 1}"
    if locator.kind == "text":
        return f"characters {locator.start_char}-{locator.end_char}"
    if locator.kind == "region" and locator.bbox is not None:
        left, top, right, bottom = locator.bbox
        if (left, top) == (0, 0) and (right, bottom) == (locator.width, locator.height):
            return f"all of it, {right:.0f}×{bottom:.0f}"
        return f"at {left:.0f},{top:.0f} to {right:.0f},{bottom:.0f}"
    return ""
