"""Make sample media, start a server, create the API page's namespace, ingest, search, show what was found.

Everything is kept below ``demo-data`` in the repository; running it again starts afresh.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx

from tessera import sample_media, sample_pages

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 300
#: Asked with, and so not put in: else it would find itself.
ASKED_WITH = "chessboard-cropped.png"
#: Six sentences in flite's voice slt; ``scripts/make-speech`` made it.
VOICE = ROOT / "tests" / "data" / "speech.flac"
#: The film's voice says the first three of them, the recording has the others.
VOICE_CUT_S = 12.4

#: The request of the API page "Create Namespace", letter by letter.
PAGE = """{
  "namespace_name": "spotify_playlists_dev",
  "description": "This namespace contains playlists from Spotify",
  "feature_extractors": [
    {
      "feature_extractor_id": "video_extractor_1.0.0",
      "feature_extractor_name": "video_extractor",
      "version": "1.0.0"
    }
  ],
  "payload_indexes": [
    {
      "field_name": "metadata.title",
      "field_schema": {
        "lowercase": true,
        "max_token_len": 15,
        "min_token_len": 2,
        "tokenizer": "word",
        "type": "text"
      },
      "type": "text"
    },
    {
      "field_name": "metadata.description",
      "field_schema": {
        "is_tenant": true,
        "type": "keyword"
      },
      "type": "keyword"
    }
  ]
}"""

LIBRARY = {
    "namespace_name": "demo_library",
    "description": "A film with a voice, a recording, pictures, a PDF and short texts",
    "feature_extractors": [
        {"feature_extractor_name": "multimodal_extractor", "version": "v1"},
        {"feature_extractor_name": "text_extractor", "version": "v1"},
        {"feature_extractor_name": "image_extractor", "version": "v1"},
        {"feature_extractor_name": "document_graph_extractor", "version": "v1"},
    ],
    "payload_indexes": [{"field_name": "metadata.topic", "type": "keyword"}],
}

WORDS_URI = "mixpeek://video_extractor@1.0.0/multilingual_e5_large_instruct_v1"
FILM_WORDS_URI = "mixpeek://multimodal_extractor@v1/multilingual_e5_large_instruct_v1"
FILM_URI = "mixpeek://multimodal_extractor@v1/vertex_multimodal_embedding"
TEXT_URI = "mixpeek://text_extractor@v1/multilingual_e5_large_instruct_v1"
IMAGE_URI = "mixpeek://image_extractor@v1/google_siglip_base_v1"
PAGE_URI = "mixpeek://document_graph_extractor@v1/multilingual_e5_large_instruct_v1"


class Screen:
    """Plain lines, with colour and a moving bar where there is a terminal."""

    def __init__(self) -> None:
        self.live = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def title(self, text: str) -> None:
        """Begin a step."""
        print(f"\n\033[1m{text}\033[0m" if self.live else f"\n{text}", flush=True)

    def line(self, text: str) -> None:
        """Say one thing."""
        print(f"  {text}", flush=True)

    def progress(self, done: int, total: int, seconds: float, *, ended: bool) -> None:
        """Show how far a batch has come: a bar that moves, or one line at the end."""
        if self.live:
            filled = 30 * done // max(total, 1)
            bar = "█" * filled + "░" * (30 - filled)
            end = "\n" if ended else ""
            print(f"\r  {bar} {done}/{total} {seconds:4.1f} s", end=end, flush=True)
        elif ended:
            self.line(f"{done} of {total} done in {seconds:.1f} s")


class Demo:
    """A running server and a client of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "warehouse"
        self.screen = Screen()
        self.client = httpx.Client(timeout=60)

    def run(self) -> None:
        """Run the whole demo."""
        if self.folder.exists():
            shutil.rmtree(self.folder)
        began = time.monotonic()
        media = self.make_media()
        pictures = {name: path for name, path in media.items() if path.parent.name == "pictures"}
        server = self.start_server()
        try:
            page = self.create_namespaces()
            self.ingest_video(page, media["video.mp4"])
            self.ingest_library(pictures)
            self.ingest_film(media["film.mp4"], media["recording.ogg"])
            self.ingest_pages(media["report.pdf"])
            self.search_video_and_text(page)
            self.search_film_and_sound()
            self.search_by_picture(pictures)
            self.search_pages()
        finally:
            server.terminate()
            server.wait(20)
            self.client.close()
        self.screen.title(f"Done in {time.monotonic() - began:.0f} s. To keep this warehouse running:")
        self.screen.line(f".venv/bin/tessera up --data {shlex.quote(str(_shown(self.data)))}")
        self.screen.line(f"then open http://127.0.0.1:8700/docs; the key is in {_shown(self.data)}/admin.key")

    # --- steps -------------------------------------------------------------------------------------

    def make_media(self) -> dict[str, Path]:
        """Make everything that is ingested; return name → path."""
        self.screen.title("1. Sample media, made by script")
        folder = self.folder / "media"
        media = sample_media.make_all(folder)
        made = {
            "film.mp4": sample_media.film(VOICE, sound_until_s=VOICE_CUT_S),
            "recording.ogg": sample_media.recording(VOICE, VOICE_CUT_S, 60),
            "report.pdf": sample_pages.report(),
        }
        for name, data in made.items():
            media[name] = folder / name
            media[name].write_bytes(data)
        seconds = [sum(shot.seconds for shot in s) for s in (sample_media.SHOTS, sample_media.FILM_SHOTS)]
        self.screen.line(f"a video of {seconds[0]:.0f} s with subtitles,")
        self.screen.line(f"a film of {seconds[1]:.0f} s with a voice and words in its picture, a recording,")
        pictures = sum(path.parent.name == "pictures" for path in media.values())
        self.screen.line("a PDF with tables and a scanned page,")
        self.screen.line(f"{pictures} pictures and {len(sample_media.TEXTS)} texts in {_shown(folder)}")
        return media

    def start_server(self) -> subprocess.Popen[str]:
        """Start ``tessera up`` on a free port and wait until it answers."""
        self.screen.title("2. A server on a fresh data directory")
        errors = (self.folder / "server.log").open("w")
        server = subprocess.Popen(
            [sys.executable, "-m", "tessera", "up", "--data", str(self.data), "--port", "0", "--offline"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
        )
        assert server.stdout is not None
        key = url = ""
        for line in server.stdout:
            key = line.split()[-1] if line.startswith("API key: ") else key
            if line.startswith("Tessera is ready at "):
                url = line.split()[-1]
                break
        if not url:
            raise SystemExit(f"The server did not start:\n{(self.folder / 'server.log').read_text()}")
        self.client.base_url = httpx.URL(url)
        self.client.headers["Authorization"] = f"Bearer {key}"
        self.screen.line(f"{url} answers {self.client.get('/v1/health').json()['status']}")
        return server

    def create_namespaces(self) -> str:
        """Send the API page's literal request, and create a second namespace; return the first one's id."""
        self.screen.title("3. POST /v1/namespaces, the API page's own request")
        answer = self.client.post(
            "/v1/namespaces", content=PAGE, headers={"Content-Type": "application/json"}
        )
        made = _ok(answer)
        self.screen.line(f"{answer.status_code} {made['namespace_id']} {made['namespace_name']}")
        self.screen.line(
            f"extractors: {', '.join(e['feature_extractor_id'] for e in made['feature_extractors'])}"
        )
        own = [index for index in made["payload_indexes"] if not index["is_protected"]][:2]
        self.screen.line("indexes:    " + ", ".join(f"{i['field_name']} ({i['type']})" for i in own))
        _ok(self.client.post("/v1/namespaces", json=LIBRARY))
        self.screen.line("and a second one for film, sound, pictures, pages and texts: demo_library")
        return str(made["namespace_id"])

    def ingest_video(self, namespace: str, video: Path) -> None:
        """Put the video into a bucket and extract it."""
        self.screen.title("4. Ingest: the video, cut every 10 s, with its subtitles")
        self.inside(namespace)
        schema = {"clip": {"type": "video", "required": True}}
        bucket, collection = self.place(
            "videos",
            schema,
            "video_extractor",
            "1.0.0",
            {"video": "clip"},
            ["metadata.title"],
            {"time_split_interval": 10},
        )
        blob = {"property": "clip", "type": "video", "data": _data_uri(video, "video/mp4")}
        metadata = {"title": "Seven places", "description": "sample"}
        self.ingest(bucket, [{"blobs": [blob], "metadata": metadata}])
        documents = _ok(self.client.post(f"/v1/collections/{collection}/documents/list", json={"limit": 20}))
        self.screen.line(f"{len(documents['results'])} segments, each with thumbnail, words and two vectors")

    def ingest_library(self, pictures: dict[str, Path]) -> None:
        """Put texts and pictures into two buckets and extract them, but for the picture that is asked with."""
        pictures = {name: path for name, path in pictures.items() if name != ASKED_WITH}
        self.screen.title(f"5. Ingest: {len(sample_media.TEXTS)} texts and {len(pictures)} pictures")
        self.inside("demo_library")
        body = {"body": {"type": "text", "required": True}}
        texts, _ = self.place("texts", body, "text_extractor", "v1", {"text": "body"}, ["metadata.topic"])
        self.ingest(
            texts,
            [
                {
                    "blobs": [{"property": "body", "type": "text", "data": text}],
                    "metadata": {"topic": topic},
                }
                for topic, text in sample_media.TEXTS
            ],
        )
        image = {"picture": {"type": "image", "required": True}}
        bucket, _ = self.place(
            "pictures", image, "image_extractor", "v1", {"image": "picture"}, ["metadata.file"]
        )
        self.ingest(
            bucket,
            [
                {
                    "blobs": [{"property": "picture", "type": "image", "data": _base64(path)}],
                    "metadata": {"file": name},
                }
                for name, path in pictures.items()
            ],
        )

    def ingest_film(self, film: Path, recording: Path) -> None:
        """Cut the film by its scenes, hear its voice and read its picture; cut the recording by its silences."""
        self.screen.title("6. Ingest: the film (scenes, speech, words in the picture) and the recording")
        self.inside("demo_library")
        for name, kind, path, parameters in (
            ("films", "video", film, {"split_method": "scene", "run_ocr": True}),
            ("recordings", "audio", recording, {"split_method": "silence"}),
        ):
            bucket, collection = self.place(
                name,
                {"media": {"type": kind, "required": True}},
                "multimodal_extractor",
                "v1",
                {kind: "media"},
                ["metadata.file"],
                parameters,
            )
            blob = {"property": "media", "type": kind, "data": _base64(path)}
            self.ingest(bucket, [{"blobs": [blob], "metadata": {"file": path.name}}])
            documents = _ok(
                self.client.post(f"/v1/collections/{collection}/documents/list", json={"limit": 100})
            )["results"]
            shown = sum("bbox" in one["locator"] for one in documents)
            heard = sum(len(one.get("words", ())) for one in documents)
            read = f", {shown} texts in the picture" if shown else ""
            self.screen.line(f"{path.name}: {len(documents) - shown} spans, {heard} words heard{read}")

    def ingest_pages(self, report: Path) -> None:
        """Take the PDF apart into headings, paragraphs and rows of tables; its last page is read by OCR."""
        self.screen.title("7. Ingest: a PDF with tables and a scanned page")
        self.inside("demo_library")
        schema = {"file": {"type": "pdf", "required": True}}
        bucket, collection = self.place(
            "reports", schema, "document_graph_extractor", "v1", {"pdf": "file"}, ["metadata.file"]
        )
        blob = {"property": "file", "type": "pdf", "data": _base64(report)}
        self.ingest(bucket, [{"blobs": [blob], "metadata": {"file": report.name}}])
        documents = _ok(
            self.client.post(f"/v1/collections/{collection}/documents/list", json={"limit": 100})
        )["results"]
        rows = sum(one["object_type"] == "table_row" for one in documents)
        self.screen.line(f"{len(documents)} blocks on 3 pages, {rows} of them rows of tables")

    def search_video_and_text(self, page: str) -> None:
        """Search by meaning in texts, and by what subtitles say in the video."""
        question = "sleeping outside in bad weather"
        self.screen.title(f"8. Texts, by meaning: {question!r}")
        for hit in self.search("demo_library", ["texts"], TEXT_URI, {"text": question}):
            self.screen.line(f"{hit['score']:.3f}  {hit['topic']:<12}{_characters(hit)}{hit['text']}")
        question = "looking at a planet with a telescope"
        self.screen.title(f"9. Inside the video, by its subtitles: {question!r}")
        for hit in self.search(page, ["videos"], WORDS_URI, {"text": question}):
            self.screen.line(f"{hit['score']:.3f}  video.mp4 {_span(hit)}  {hit['transcription']}")

    def search_film_and_sound(self) -> None:
        """Search film and recording at once: by what is said in either, and by what is written in the picture."""
        for number, question in ((10, "somebody is ill"), (11, "quiet port at dawn"), (12, "frozen compass")):
            self.screen.title(f"{number}. Film and recording at once: {question!r}")
            for hit in self.search(
                "demo_library", ["films", "recordings"], FILM_WORDS_URI, {"text": question}
            ):
                said = hit.get("transcription")
                words = f"spoken: {said}" if said else f"shown{_box(hit)}: {hit['ocr_text']}"
                self.screen.line(f"{hit['score']:.3f}  {hit['file']} {_span(hit)}  {words}")

    def search_by_picture(self, pictures: dict[str, Path]) -> None:
        """Find a picture's original, and the scene of the film that a picture was taken from."""
        original = sample_media.COPIES[ASKED_WITH]
        self.screen.title(f"13. By picture: {ASKED_WITH}, a part of {original} that was not put in")
        query = {"image": _base64(pictures[ASKED_WITH])}
        for hit in self.search("demo_library", ["pictures"], IMAGE_URI, query):
            self.screen.line(f"{hit['score']:.3f}  {hit['file']:<20}{_region(hit)}")
        mountain = self.folder / "media" / "mountain.png"
        sample_media.shot_picture(sample_media.SHOTS[5]).save(mountain)
        self.screen.title("14. By picture, in the film: a snowy mountain")
        for hit in self.search("demo_library", ["films"], FILM_URI, {"image": _base64(mountain)}):
            self.screen.line(f"{hit['score']:.3f}  {hit['file']} {_span(hit)}")

    def search_pages(self) -> None:
        """Find a cell and a scanned sentence by what they mean, and a number as it is written."""
        for number, question in ((15, "what does the prism cost?"), (16, "how far could one hear the horn?")):
            self.screen.title(f"{number}. In the PDF, by meaning: {question!r}")
            for hit in self.search("demo_library", ["reports"], PAGE_URI, {"text": question}):
                self.screen.line(f"{hit['score']:.3f}  {hit['file']} {_on_page(hit)}  {hit['text']}")
        question = "XK-4471-B"
        self.screen.title(f"17. In the PDF, by its words: {question!r}")
        words = PAGE_URI.rpartition("/")[0] + "/bm25"
        for hit in self.search("demo_library", ["reports"], words, {"text": question}):
            self.screen.line(f"{hit['score']:.3f}  {hit['file']} {_on_page(hit)}  {hit['text']}")

    # --- calls -------------------------------------------------------------------------------------

    def inside(self, namespace: str) -> None:
        """Make further calls inside `namespace`."""
        self.client.headers["X-Namespace"] = namespace

    def place(
        self,
        name: str,
        properties: dict[str, Any],
        extractor: str,
        version: str,
        mappings: dict[str, str],
        passthrough: Iterable[str],
        parameters: dict[str, Any] | None = None,
    ) -> tuple[str, str]:
        """Create a bucket and a collection that reads it; return their ids."""
        bucket = _ok(
            self.client.post(
                "/v1/buckets", json={"bucket_name": name, "bucket_schema": {"properties": properties}}
            )
        )["bucket_id"]
        collection = _ok(
            self.client.post(
                "/v1/collections",
                json={
                    "collection_name": name,
                    "source": {"type": "bucket", "bucket_ids": [bucket]},
                    "feature_extractor": {
                        "feature_extractor_name": extractor,
                        "version": version,
                        "input_mappings": mappings,
                        "field_passthrough": [{"source_path": path} for path in passthrough],
                        "parameters": parameters or {},
                    },
                },
            )
        )["collection_id"]
        return bucket, collection

    def ingest(self, bucket: str, objects: list[dict[str, Any]]) -> None:
        """Create objects, submit them as one batch, and watch its task."""
        ids = []
        for start in range(0, len(objects), 100):
            made = _ok(
                self.client.post(
                    f"/v1/buckets/{bucket}/objects/batch", json={"objects": objects[start : start + 100]}
                )
            )
            if made["failed"]:
                raise SystemExit(f"Objects were refused: {json.dumps(made['failed'][0])}")
            ids += [item["object_id"] for item in made["succeeded"]]
        batch = _ok(self.client.post(f"/v1/buckets/{bucket}/batches", json={"object_ids": ids}))["batch_id"]
        task = _ok(self.client.post(f"/v1/buckets/{bucket}/batches/{batch}/submit", json={}))["task_id"]
        began = time.monotonic()
        while True:
            state = _ok(self.client.get(f"/v1/tasks/{task}"))
            ended = state["status"] not in ("PENDING", "IN_PROGRESS", "PROCESSING")
            done = (state.get("additional_data") or {}).get("done", 0)
            waited = time.monotonic() - began
            self.screen.progress(done, len(ids), waited, ended=ended)
            if ended:
                break
            if waited > PATIENCE_S:
                raise SystemExit(f"Task {task} is still {state['status']} after {PATIENCE_S} s.")
            time.sleep(0.1)
        if state["status"] != "COMPLETED":
            raise SystemExit(f"Task {task} ended {state['status']}: {state.get('error')}")

    def search(
        self, namespace: str, collections: list[str], feature_uri: str, query: dict[str, str]
    ) -> list[dict[str, Any]]:
        """Create a retriever of one stage, execute it, and return its first three hits."""
        self.inside(namespace)
        (kind,) = query
        retriever = _ok(
            self.client.post(
                "/v1/retrievers",
                json={
                    "retriever_name": f"retriever {next(_numbers)}",
                    "collection_identifiers": collections,
                    "input_schema": {"query": {"type": kind, "required": True}},
                    "stages": [
                        {
                            "stage_name": "search",
                            "stage_type": "filter",
                            "config": {
                                "stage_id": "feature_search",
                                "parameters": {
                                    "feature_uri": feature_uri,
                                    "input": {kind: "{{INPUT.query}}"},
                                    "limit": 3,
                                },
                            },
                        }
                    ],
                },
            )
        )["retriever_id"]
        body = {"inputs": {"query": query[kind]}, "limit": 3}
        found: list[dict[str, Any]] = _ok(self.client.post(f"/v1/retrievers/{retriever}/execute", json=body))[
            "documents"
        ]
        return found


_numbers = itertools.count(1)


def _ok(answer: httpx.Response) -> Any:
    if answer.status_code >= 400:
        raise SystemExit(
            f"{answer.request.method} {answer.request.url.path} → {answer.status_code} {answer.text}"
        )
    return answer.json()


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _data_uri(path: Path, mime_type: str) -> str:
    return f"data:{mime_type};base64,{_base64(path)}"


def _span(hit: dict[str, Any]) -> str:
    """Say from when to when a hit lies in its source."""
    return f"{_clock(hit['start_time'])}–{_clock(hit['end_time'])}"


def _box(hit: dict[str, Any]) -> str:
    """Say where in the picture a hit lies, if it says so."""
    box = hit.get("locator", {}).get("bbox")
    return f" at {box[0]:.0f},{box[1]:.0f} to {box[2]:.0f},{box[3]:.0f}" if box else ""


def _region(hit: dict[str, Any]) -> str:
    """Say which part of a picture a hit is."""
    place = hit["locator"]
    if place["bbox"] == [0, 0, place["width"], place["height"]]:
        return f"all of its {place['width']:.0f}×{place['height']:.0f} pixels"
    return _box(hit).strip()


def _characters(hit: dict[str, Any]) -> str:
    """Say which characters of a text a hit is."""
    place = hit["locator"]
    return f"characters {place['start_char']}–{place['end_char']}  "


def _on_page(hit: dict[str, Any]) -> str:
    """Say on which page a hit stands, and where there."""
    return f"page {hit['locator']['page'] + 1}{_box(hit)}"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _shown(path: Path) -> Path:
    """Return `path` as one would type it here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--dir", type=Path, default=ROOT / "demo-data", help="where everything is kept")
    Demo(parser.parse_args().dir.resolve()).run()


if __name__ == "__main__":
    main()
