"""``tessera plan``: what ingesting a folder would take, before anything is sent."""

from __future__ import annotations

import argparse
import json
import secrets
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tessera.cli import folder, ingest
from tessera.cli.connection import connected
from tessera.cli.folder import File
from tessera.cli.ingest import Place, Report
from tessera.cli.options import add_data, load
from tessera.cli.terminal import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_USAGE,
    Bar,
    CommandError,
    counted,
    duration,
    note,
    print_table,
)

if TYPE_CHECKING:
    from tessera.measures import Measure

#: Files that are opened at once, and how long that may take.
_AT_ONCE = 16
_CALL_S = 60.0
#: Of each kind so many files are tried out, none longer or with more pages than this.
_SAMPLE = 4
_LONGEST_S = 120.0
_MOST_PAGES = 60


def add(commands: Any) -> None:
    """Add the command ``plan``."""
    plan = commands.add_parser(
        "plan",
        help="say what ingesting a folder would take",
        description="Measure the files of a folder here (duration, pixels, pages, characters; nothing is sent) and "
        "predict how long `tessera ingest` of them would take the server, how many documents come of it, and how much "
        "disk it needs. Rates come from batches that ran on that server.",
    )
    plan.add_argument("path", metavar="PATH", type=Path, help="a folder, or one file")
    plan.add_argument("-n", "--namespace", required=True, metavar="NS", help="id or name; need not exist")
    plan.add_argument(
        "--extractor", action="append", default=[], metavar="NAME", help="as for `tessera ingest`"
    )
    plan.add_argument(
        "--calibrate",
        action="store_true",
        help="first ingest a few small files of each kind into a namespace that is removed again, for rates",
    )
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")
    add_data(plan)
    plan.set_defaults(run=_plan)


def _plan(options: argparse.Namespace) -> int:
    if not options.path.exists():
        raise CommandError(f"there is no {options.path}.", EXIT_USAGE)
    left_out, unreadable = folder.Told(), folder.Told()
    files = list(folder.files(options.path, left_out, unreadable))
    with connected(options) as api:
        namespace, extractors = ingest.registered(api, options.namespace, options.extractor)
    places = ingest.places_of(extractors)
    left_out += [
        (file.shown, f"no extractor of the namespace takes {file.kind}")
        for file in files
        if file.kind not in places
    ]
    files = [file for file in files if file.kind in places]
    if not files:
        raise CommandError(f"{options.path} has no file that can be ingested.")
    measures = _measured(options, files)
    if options.calibrate:
        _calibrate(options, files, measures, places, extractors, namespace)
    with connected(options, options.namespace if namespace is not None else None) as api:
        answer = api.call("POST", "/batches/plan", {"groups": groups_of(files, measures, places)})
    answer["left_out"] = [{"path": path, "why": why} for path, why in (*left_out, *unreadable)]
    if options.json:
        print(json.dumps(answer, indent=2))
    else:
        _tell(answer, files)
    return EXIT_OK if answer["is_complete"] else EXIT_FAILED


# --- measuring -------------------------------------------------------------------------------------------


def _measured(options: argparse.Namespace, files: Sequence[File]) -> list[Measure | None]:
    """Measure every file, in a process of its own with bounds: they may be anybody's."""
    from tessera.measures import measure_files
    from tessera.ports import Failed
    from tessera.wiring import open_decoder

    found: list[Measure | None] = []
    bar, decoder = Bar(), open_decoder(load(options).settings)
    try:
        parts = [files[start : start + _AT_ONCE] for start in range(0, len(files), _AT_ONCE)]
        for part in parts:
            asked = [(str(file.path), file.kind) for file in part]
            ((_, outcome),) = decoder.map(measure_files, [asked], timeout_s=_CALL_S)
            found += [None] * len(part) if isinstance(outcome, Failed) else outcome
            bar.show(100 * len(found) / len(files), f"measure  {len(found)} of {len(files)}")
    finally:
        decoder.close()
        bar.clear()
    return found


def groups_of(
    files: Sequence[File], measures: Sequence[Measure | None], places: Mapping[str, Place]
) -> list[dict[str, Any]]:
    """Return the groups of a plan: the files of each kind, cut as `tessera ingest` makes batches of them."""
    from tessera.measures import AMOUNTS

    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for file, found in zip(files, measures, strict=True):
        source: dict[str, Any] = {
            "kind": file.kind if file.kind in AMOUNTS else "other",
            "size_bytes": file.path.stat().st_size,
        }
        if found is None:
            source["is_measured"] = False
        else:
            names = ("kind", "duration_s", "width", "height", "frames_per_s", "pages", "characters")
            source |= {name: getattr(found, name) for name in names if getattr(found, name)}
        groups[file.kind].append(source)
    return [
        {
            "feature_extractor_name": places[kind].extractor,
            "version": places[kind].version,
            "sources": sources[start : start + ingest.BATCH],
        }
        for kind, sources in sorted(groups.items())
        for start in range(0, len(sources), ingest.BATCH)
    ]


# --- calibrating -----------------------------------------------------------------------------------------


def _calibrate(
    options: argparse.Namespace,
    files: Sequence[File],
    measures: Sequence[Measure | None],
    places: Mapping[str, Place],
    extractors: Sequence[Mapping[str, Any]],
    namespace: Mapping[str, Any] | None,
) -> None:
    """Ingest a few files of each kind into a namespace made for it, so that the server learns its rates."""
    chosen = _sample(files, measures)
    if not chosen:
        raise CommandError(
            f"none of the files is short enough to calibrate with: at most {_LONGEST_S:g} s and {_MOST_PAGES} pages. "
            "Calibrate with a folder of shorter ones; the rates hold for all."
        )
    fixed = {
        e["feature_extractor_name"]: e.get("params") for e in (namespace or {}).get("feature_extractors", ())
    }
    name = f"calibration-{secrets.token_hex(4)}"
    note(f"Calibrating with {counted(len(chosen), 'file')} in namespace {name}, which is removed again.")
    with connected(options) as api:
        ingest.make_namespace(api, name, extractors, fixed)
        try:
            with connected(options, name) as inside:
                report = Report()
                bucket = ingest.bucket_for(inside, "files")
                collections = {
                    kind: ingest.collection_for(inside, "files", bucket, kind, places[kind])
                    for kind in {file.kind for file in chosen}
                }
                objects = ingest.send(inside, bucket, chosen, report)
                # One after the other: what one takes beside its chunks is seen only when it has all workers.
                for kind, collection in sorted(collections.items()):
                    of_kind = {key: value for key, value in objects.items() if value[0] == kind}
                    ingest.process(inside, bucket, {kind: collection}, of_kind, report)
        finally:
            api.call("DELETE", f"/namespaces/{quote(name, safe='')}")
    for shown, _, why in report.failed:
        note(f"{shown}: {why}")


def _sample(files: Sequence[File], measures: Sequence[Measure | None]) -> list[File]:
    """Return a few files of each kind, from the smallest to the largest of those that are short."""
    short: dict[str, list[tuple[float, File]]] = defaultdict(list)
    for file, found in zip(files, measures, strict=True):
        if found is not None and found.duration_s <= _LONGEST_S and found.pages <= _MOST_PAGES:
            short[file.kind].append((max(found.amounts()[1:]), file))
    chosen: list[File] = []
    for of_kind in short.values():
        of_kind.sort(key=lambda item: item[0])
        last, count = len(of_kind) - 1, min(_SAMPLE, len(of_kind))
        numbers = {round(last * number / max(1, count - 1)) for number in range(count)}
        chosen += [of_kind[number][1] for number in sorted(numbers)]
    return chosen


# --- telling ---------------------------------------------------------------------------------------------


def _tell(answer: Mapping[str, Any], files: Sequence[File]) -> None:
    rows = [("EXTRACTOR", "SOURCES", "AMOUNTS", "WORKER TIME", "DOCUMENTS", "DISK", "RATE")]
    for item in answer["extractors"]:
        has_rate = item["basis"] != "none"
        rows.append(
            (
                item["feature_extractor_name"],
                str(item["sources"]),
                _amounts(item["amounts"]),
                duration(item["worker_seconds"]) if has_rate else "?",
                str(item["documents"]) if has_rate else "?",
                _bytes(item["disk_bytes"]) if has_rate else "?",
                {"measured": "measured", "other_parameters": "of other parameters"}.get(
                    item["basis"], "none yet"
                ),
            )
        )
    print_table(rows)
    size = sum(file.path.stat().st_size for file in files)
    if answer["seconds"] is not None:
        print(
            f"{counted(len(files), 'file')}: about {duration(answer['seconds'])} with {answer['workers']} worker(s), "
            f"{counted(answer['documents'], 'document')}, {_bytes(answer['disk_bytes'])} of disk and "
            f"{_bytes(size)} for the files."
        )
    for item in answer["left_out"]:
        note(f"{item['path']}: left out, {item['why']}")
    if answer["advice"]:
        note(answer["advice"])


def _amounts(amounts: Mapping[str, Mapping[str, float]]) -> str:
    """Return the main amount of each kind: ``video 62 seconds``."""
    told = []
    for kind, values in amounts.items():
        name, value = next((item for item in values.items() if item[0] != "files"), ("files", 0.0))
        told.append(f"{kind} {value:.0f} {name}" if value >= 10 else f"{kind} {value:.2g} {name}")
    return ", ".join(told)


def _bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
