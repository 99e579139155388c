"""``tessera ingest``: a folder of files, whatever they are, into a namespace.

Every file is one object of one bucket, under its path as the bucket's unique key: running the command again sends
only files whose content is another, and replaces their objects. Files of one kind are processed in one batch, by
the collection for that kind; the batch has the files that were sent before too, so that what an earlier run left
undone is done, and costs nothing where there is nothing to do.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tessera.cli import folder
from tessera.cli.connection import Api, Refused, connected
from tessera.cli.folder import File
from tessera.cli.options import add_data
from tessera.cli.terminal import (
    EXIT_FAILED,
    EXIT_IN_PART,
    EXIT_OK,
    EXIT_USAGE,
    Bar,
    CommandError,
    counted,
    note,
    plain,
)
from tessera.cli.watch import follow

#: Extractors that are asked for when a namespace is made, the first that takes a kind being the one for it.
PREFERRED = (
    "text_extractor",
    "image_extractor",
    "video_extractor",
    "multimodal_extractor",
    "audio_extractor",
    "document_graph_extractor",
)
_SENDERS = 4
_PIECE_BYTES = 2**20
#: Objects of one batch.
BATCH = 10_000


@dataclass(slots=True)
class Report:
    """What became of the files."""

    sent: int = 0
    unchanged: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)
    failed: list[tuple[str, str, str]] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Sent:
    """A file as the bucket has it."""

    object_id: str
    kind: str
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where files of a kind go: the collection that processes them, and how its extractor is called."""

    extractor: str
    version: str
    input: str


def add(commands: Any) -> None:
    """Add the command ``ingest``."""
    ingest = commands.add_parser(
        "ingest",
        help="put a folder of files into a namespace and make them findable",
        description="Put the files of a folder, recognised by their content, into a namespace: makes it, a bucket and "
        "a collection for each kind of file if they do not exist, uploads what is new or changed, processes it, and "
        "says what failed and why. Files that begin with a dot, and empty ones, are left out. Exit code 5: some files "
        "failed.",
    )
    ingest.add_argument("path", metavar="PATH", type=Path, help="a folder, or one file")
    ingest.add_argument(
        "-n", "--namespace", required=True, metavar="NS", help="id or name; made if there is none"
    )
    ingest.add_argument("--bucket", default="files", metavar="NAME", help="bucket for the files (files)")
    ingest.add_argument(
        "--extractor",
        action="append",
        default=[],
        metavar="NAME",
        help="extractor of a namespace that is made, instead of those for text, pictures, video, sound and PDF; "
        "repeatable",
    )
    ingest.add_argument("--json", action="store_true", help="print what became of the files as JSON")
    add_data(ingest)
    ingest.set_defaults(run=_ingest)


def _ingest(options: argparse.Namespace) -> int:
    if not options.path.exists():
        raise CommandError(f"there is no {options.path}.", EXIT_USAGE)
    report, unreadable = Report(), folder.Told()
    files = list(folder.files(options.path, report.left_out, unreadable))
    report.failed += [(shown, "unreadable", why) for shown, why in unreadable]
    if not files and not report.failed:
        note(_left_out(report))
        raise CommandError(f"{options.path} has no file that can be ingested.")
    with connected(options) as api:
        extractors = _namespace(api, options)
    with connected(options, options.namespace) as api:
        places = places_of(extractors)
        for file in files:
            if file.kind not in places:
                report.left_out.append((file.shown, f"no extractor of the namespace takes {file.kind}"))
        files = [file for file in files if file.kind in places]
        bucket = bucket_for(api, options.bucket)
        collections = {
            kind: collection_for(api, options.bucket, bucket, kind, places[kind])
            for kind in {f.kind for f in files}
        }
        objects = send(api, bucket, files, report)
        process(api, bucket, collections, objects, report)
    findable = len(files) + len(unreadable) - len(report.failed)
    _tell(options, report, findable)
    if not report.failed:
        return EXIT_OK
    return EXIT_IN_PART if findable else EXIT_FAILED


# --- namespace, bucket, collections --------------------------------------------------------------------


def _namespace(api: Api, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the catalogue entries of the namespace's extractors; make the namespace if there is none."""
    found, entries = registered(api, options.namespace, options.extractor)
    if found is None:
        make_namespace(api, options.namespace, entries)
        with_these = f", with {', '.join(options.extractor)}" if options.extractor else ""
        note(f"Namespace {options.namespace} was made{with_these}.")
    return entries


def registered(
    api: Api, namespace: str, extractors: Sequence[str]
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Return a namespace and the catalogue entries of its extractors.

    None, and the entries of `extractors` or of those for all kinds of files, where there is no such namespace.
    """
    catalogue = {
        (entry["feature_extractor_name"], entry["version"]): entry
        for entry in api.call("GET", "/collections/features/extractors")
    }
    try:
        found: dict[str, Any] | None = api.call("GET", f"/namespaces/{quote(namespace, safe='')}")
    except Refused as error:
        if error.status != 404:
            raise
        found = None
    if found is not None:
        of_it = [(e["feature_extractor_name"], e["version"]) for e in found["feature_extractors"]]
    else:
        names = list(extractors) or [name for name in PREFERRED if (name, "v1") in catalogue]
        if not extractors and "video_extractor" in names:
            # Two names of one implementation.
            names = [name for name in names if name != "multimodal_extractor"]
        of_it = [(name, "v1") for name in names]
        # One that does not exist is the server's to refuse.
        catalogue |= {
            each: {"feature_extractor_name": each[0], "version": each[1], "input_schema": {}}
            for each in of_it
            if each not in catalogue
        }
    return found, [catalogue[each] for each in of_it if each in catalogue]


def make_namespace(
    api: Api, name: str, entries: Sequence[Mapping[str, Any]], params: Mapping[str, Any] | None = None
) -> None:
    """Make a namespace with the extractors of catalogue entries; `params` are what it fixes, by their names."""
    wanted = [
        {
            "feature_extractor_name": entry["feature_extractor_name"],
            "version": entry["version"],
            "params": (params or {}).get(entry["feature_extractor_name"]),
        }
        for entry in entries
    ]
    api.call("POST", "/namespaces", {"namespace_name": name, "feature_extractors": wanted})


def places_of(extractors: Sequence[Mapping[str, Any]]) -> dict[str, Place]:
    """Return for each kind of file which extractor takes it, and as which input."""

    def rank(entry: Mapping[str, Any]) -> int:
        name = entry["feature_extractor_name"]
        return PREFERRED.index(name) if name in PREFERRED else len(PREFERRED)

    places: dict[str, Place] = {}
    for entry in sorted(extractors, key=rank):
        for name, declared in entry["input_schema"].get("properties", {}).items():
            for kind in folder.KINDS:
                if kind in declared.get("accepts", ()):
                    place = Place(entry["feature_extractor_name"], entry["version"], name)
                    places.setdefault(kind, place)
    return places


def bucket_for(api: Api, name: str) -> str:
    """Return the id of the bucket for files; make it if there is none."""
    try:
        found = api.call("GET", f"/buckets/{quote(name, safe='')}")
    except Refused as error:
        if error.status != 404:
            raise
        properties = {kind: {"type": kind} for kind in folder.KINDS}
        found = api.call(
            "POST",
            "/buckets",
            {
                "bucket_name": name,
                "description": "Files, by tessera ingest",
                "bucket_schema": {"properties": {**properties, "file_id": {"type": "string"}}},
                "unique_key": {"fields": ["file_id"], "default_policy": "upsert"},
            },
        )
    if (found["unique_key"] or {}).get("fields") != ["file_id"]:
        raise CommandError(f"bucket {name} was not made by this command; choose another with --bucket.")
    return str(found["bucket_id"])


def collection_for(api: Api, bucket_name: str, bucket: str, kind: str, place: Place) -> str:
    """Return the id of the collection for files of a kind; make it if there is none."""
    name = f"{bucket_name}-{kind}"
    try:
        found = api.call("GET", f"/collections/{quote(name, safe='')}")
    except Refused as error:
        if error.status != 404:
            raise
        passed = [{"source_path": f"metadata.{key}"} for key in ("path", "filename", "kind")]
        found = api.call(
            "POST",
            "/collections",
            {
                "collection_name": name,
                "source": {
                    "type": "bucket",
                    "bucket_ids": [bucket],
                    # For whoever triggers it: the bucket has files of other kinds too.
                    "source_filters": {"field": "metadata.kind", "operator": "eq", "value": kind},
                },
                "feature_extractor": {
                    "feature_extractor_name": place.extractor,
                    "version": place.version,
                    "input_mappings": {place.input: kind},
                    "field_passthrough": passed,
                },
            },
        )
    return str(found["collection_id"])


# --- sending -------------------------------------------------------------------------------------------


def send(api: Api, bucket: str, files: Sequence[File], report: Report) -> dict[str, tuple[str, File]]:
    """Upload what is new or changed and return the object of each file, by object id."""
    known = _known(api, bucket)
    # Two machines may have other files under the same path.
    machine = socket.gethostname() if api.is_remote else ""
    objects: dict[str, tuple[str, File]] = {}
    stop = threading.Event()
    bar = Bar()
    with ThreadPoolExecutor(_SENDERS) as senders:
        waiting = {
            senders.submit(_send_one, api, bucket, file, file.file_id(machine), known, stop): file
            for file in files
        }
        try:
            for number, done in enumerate(as_completed(waiting), start=1):
                file = waiting[done]
                try:
                    object_id, was_sent = done.result()
                except Refused as error:
                    report.failed.append((file.shown, "refused", error.message))
                except OSError as error:
                    report.failed.append((file.shown, "unreadable", error.strerror or str(error)))
                else:
                    objects[object_id] = (file.kind, file)
                    report.sent += was_sent
                    report.unchanged += not was_sent
                text = f"send  {number} of {len(files)}  {report.unchanged} unchanged"
                bar.show(100 * number / len(files), text)
        except BaseException as error:
            stop.set()
            senders.shutdown(wait=False, cancel_futures=True)
            bar.clear()
            if isinstance(error, KeyboardInterrupt):
                note(f"{counted(report.sent, 'file')} sent. Run the same command again to go on.")
            raise
    bar.clear()
    return objects


def _known(api: Api, bucket: str) -> dict[str, _Sent]:
    """Return what the bucket has of each file, by file id."""
    found: dict[str, _Sent] = {}
    cursor: str | None = None
    while True:
        page = api.call("POST", f"/buckets/{bucket}/objects/list", {"limit": 1000, "cursor": cursor})
        for item in page["results"]:
            file_id = (item.get("metadata") or {}).get("file_id")
            if file_id is not None and item["blobs"]:
                blob = item["blobs"][0]
                found[file_id] = _Sent(item["object_id"], blob["property"], blob["details"]["hash"])
        cursor = page["pagination"]["next_cursor"]
        if cursor is None:
            return found


def _send_one(
    api: Api,
    bucket: str,
    file: File,
    file_id: str,
    known: Mapping[str, _Sent],
    stop: threading.Event,
) -> tuple[str, bool]:
    """Upload a file unless the bucket has it; return its object's id and whether it was sent."""
    digest = hashlib.sha256()
    size = 0
    for piece in _pieces(file.path, stop):
        digest.update(piece)
        size += len(piece)
    before = known.get(file_id)
    if before is not None and before.kind != file.kind:
        # Its documents are in the collection for another kind, and go with it.
        api.call("DELETE", f"/buckets/{bucket}/objects/{before.object_id}")
    elif before is not None and before.sha256 == digest.hexdigest():
        return before.object_id, False
    upload = api.call(
        "POST",
        f"/buckets/{bucket}/uploads",
        {
            "filename": file.filename,
            "content_type": file.mime_type,
            "file_size_bytes": size,
            "file_hash": digest.hexdigest(),
            "blob_property": file.kind,
            "object_metadata": {
                "file_id": file_id,
                "path": file.shown,
                "filename": file.filename,
                "kind": file.kind,
            },
            # The same content under another path is another file.
            "skip_duplicates": False,
        },
    )
    headers = {"Content-Type": file.mime_type, "Content-Length": str(size)}
    api.put(upload["presigned_url"], _pieces(file.path, stop), headers)
    confirmed = api.call("POST", f"/buckets/{bucket}/uploads/{upload['upload_id']}/confirm", {})
    return str(confirmed["object_id"]), True


def _pieces(path: Path, stop: threading.Event) -> Iterator[bytes]:
    with path.open("rb") as file:
        while not stop.is_set() and (piece := file.read(_PIECE_BYTES)):
            yield piece


# --- processing ----------------------------------------------------------------------------------------


def process(
    api: Api,
    bucket: str,
    collections: Mapping[str, str],
    objects: Mapping[str, tuple[str, File]],
    report: Report,
) -> None:
    """Process all objects, those of a kind by its collection, and note the rows that failed."""
    batches = []
    for kind, collection in sorted(collections.items()):
        ids = [object_id for object_id, (of_kind, _) in objects.items() if of_kind == kind]
        for start in range(0, len(ids), BATCH):
            body = {"object_ids": ids[start : start + BATCH], "collection_ids": [collection]}
            batch = api.call("POST", f"/buckets/{bucket}/batches", body)["batch_id"]
            task = api.call("POST", f"/buckets/{bucket}/batches/{batch}/submit", {})
            report.tasks.append(task["task_id"])
            batches.append(batch)
    tasks = follow(api, report.tasks) if batches else []
    for batch in batches:
        for row in _failed(api, bucket, batch):
            _, file = objects[row["object_id"]]
            report.failed.append((file.shown, row["error_kind"], row["error"]))
    for task in tasks:
        told = task["additional_data"]["progress"]
        if told["done"] < told["total"]:
            why = task["error"] or "it was cancelled"
            raise CommandError(
                f"task {task['task_id']} is {task['status']}: {plain(why)}. Run the command again."
            )


def _failed(api: Api, bucket: str, batch: str) -> Iterator[Mapping[str, Any]]:
    offset = 0
    while True:
        path = f"/buckets/{bucket}/batches/{batch}/failed-documents?limit=1000&offset={offset}"
        page = api.call("GET", path)
        yield from page["results"]
        offset += len(page["results"])
        if not page["results"] or offset >= page["total"]:
            return


# --- saying --------------------------------------------------------------------------------------------


def _tell(options: argparse.Namespace, report: Report, findable: int) -> None:
    if options.json:
        print(json.dumps(_as_json(options, report), ensure_ascii=False, indent=2))
        return
    for shown, cause, message in sorted(report.failed):
        note(f"failed: {plain(shown)}: {cause}: {plain(message)}")
    if report.left_out:
        note(_left_out(report))
    failed = f", {len(report.failed)} failed" if report.failed else ""
    print(
        f"{counted(findable, 'file')} of {options.path} can be found in namespace {options.namespace}: "
        f"{report.sent} sent, {report.unchanged} unchanged{failed}."
    )


def _left_out(report: Report) -> str:
    """Return which files were left out, the first ones of each reason."""
    by_reason: dict[str, list[str]] = {}
    for shown, reason in report.left_out:
        by_reason.setdefault(reason, []).append(plain(shown))
    return "\n".join(
        f"left out: {counted(len(names), 'file')}: {reason} ({_first(names)})"
        for reason, names in by_reason.items()
    )


def _first(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _as_json(options: argparse.Namespace, report: Report) -> dict[str, Any]:
    return {
        "namespace": options.namespace,
        "bucket": options.bucket,
        "sent": report.sent,
        "unchanged": report.unchanged,
        "left_out": [{"path": shown, "reason": reason} for shown, reason in report.left_out],
        "failed": [
            {"path": shown, "cause": cause, "message": message}
            for shown, cause, message in sorted(report.failed)
        ],
        "tasks": report.tasks,
    }
