"""``tessera plan``: how far its prediction is from what the demo's files then take, after one calibration.

A fresh server, the demo's own media, a few of them ingested to calibrate; then the plan, then the real run, from
submitting to COMPLETED. The goal is a factor of 1.5. A second line has a folder of the same kinds three times as large.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from bench.hour import bytes_of
from bench.servers import ROOT, tessera
from tessera import sample_media, sample_pages

VOICE = ROOT / "tests" / "data" / "speech.flac"


def main() -> None:
    """Print predicted and real time, and the factor between them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _media(folder / "media", ("a",))
        _media(folder / "three", ("a", "b", "c"))
        with tessera(folder / "warehouse", "--offline") as client:
            data = folder / "warehouse"
            before = _plan(data, folder / "media")
            assert before["seconds"] is None, before
            began = time.perf_counter()
            _plan(data, folder / "media", "--calibrate")
            print(f"calibrated in {time.perf_counter() - began:.0f} s", flush=True)
            for number, media in enumerate(("media", "three")):
                said = _plan(data, folder / media, number=number)
                before_bytes = bytes_of(data)
                real_s, documents = _ingest(client, data, folder / media, number)
                # Of equal files the server keeps one.
                grown = bytes_of(data) - before_bytes - bytes_of(folder / "media" / "a")
                factor = max(said["seconds"] / real_s, real_s / said["seconds"])
                files = sum(item["sources"] for item in said["extractors"])
                print(
                    f"{files} files: {said['seconds']:.1f} s predicted, {real_s:.1f} s real, factor {factor:.2f} "
                    f"(goal 1.5); {said['documents']} documents predicted, {documents} real; "
                    f"{said['disk_bytes'] / 1e6:.1f} MB predicted, {grown / 1e6:.1f} real; load "
                    f"{os.getloadavg()[0]:.1f}",
                    flush=True,
                )


def _media(folder: Path, copies: Sequence[str]) -> None:
    """Write the demo's media, `copies` of it side by side: each file is an object of its own."""
    made = sample_media.make_all(folder)
    files = {path.relative_to(folder): path.read_bytes() for path in made.values()}
    files[Path("film.mp4")] = sample_media.film(VOICE, sound_until_s=12.4)
    files[Path("recording.ogg")] = sample_media.recording(VOICE, 12.4, 60)
    files[Path("report.pdf")] = sample_pages.report()
    for copy in copies:
        for path, data in files.items():
            target = folder / copy / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    shutil.rmtree(folder / "pictures")
    shutil.rmtree(folder / "texts")
    (folder / "video.mp4").unlink()


def _tessera(data: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tessera", *arguments, "--data", str(data)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr)
    return done.stdout


def _plan(data: Path, media: Path, *flags: str, number: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        _tessera(data, "plan", str(media), "-n", f"planned-{number}", "--json", *flags)
    )
    return found


def _ingest(client: httpx.Client, data: Path, media: Path, number: int) -> tuple[float, int]:
    """Ingest a folder; return the time from the first submission to the last end, and how many documents there are."""
    name = f"planned-{number}"
    told = json.loads(_tessera(data, "ingest", str(media), "-n", name, "--json"))
    client.headers["X-Namespace"] = name
    tasks = [client.get(f"/v1/tasks/{task}").raise_for_status().json() for task in told["tasks"]]
    begun = min(datetime.fromisoformat(task["created_at"]) for task in tasks)
    ended = max(datetime.fromisoformat(task["updated_at"]) for task in tasks)
    namespace = client.get(f"/v1/namespaces/{name}").raise_for_status().json()
    return (ended - begun).total_seconds(), namespace["document_count"]
