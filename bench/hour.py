"""An hour of 720p with a voice: cut into scenes, heard and seen; five minutes of it are read as well.

Time, the largest resident memory of a worker process, and what it takes on the disk. The film is less than a minute
made by ``sample_media``, its packets repeated; ``--small`` takes five minutes of it, ``TESSERA_BENCH_MINUTES`` any
number. Each line is printed as soon as it is known. No floor but that it ends within the default time limit of a row.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from bench.servers import ROOT, tessera
from tessera import sample_media

SPEECH = ROOT / "tests" / "data" / "speech.flac"


def main(small: bool = False) -> None:
    """Print one line for each way to extract the film."""
    seconds = 60 * float(os.environ.get("TESSERA_BENCH_MINUTES") or (5 if small else 60))
    for name, length_s, parameters in (
        ("scenes, speech, pictures", seconds, {"split_method": "scene"}),
        # Reading takes about as long as the film; an hour of it would need a longer `extract_timeout_s`.
        ("the same and words in the picture", min(seconds, 300), {"split_method": "scene", "run_ocr": True}),
    ):
        with tempfile.TemporaryDirectory() as folder:
            _measure(Path(folder), name, length_s, parameters)


def _measure(folder: Path, name: str, seconds: float, parameters: dict[str, Any]) -> None:
    film = folder / "film.mp4"
    _film(film, folder / "part.mp4", seconds)
    with tessera(folder / "tessera") as client:
        place = _Place(client, film)
        before = bytes_of(folder / "tessera")
        with _largest_worker() as largest:
            took_s, documents, said = place.extract(parameters)
        grown = bytes_of(folder / "tessera") - before
        print(
            f"{seconds / 60:.0f} min of 1280x720, {film.stat().st_size / 2**20:.0f} MiB: {name}: "
            f"{took_s:.0f} s ({seconds / took_s:.1f}x real time), {documents} documents, worker "
            f"{max(largest):.0f} MiB, {grown / 2**20:.0f} MiB on disk beside the film{said}; load "
            f"{os.getloadavg()[0]:.1f}",
            flush=True,
        )


class _Place:
    """A namespace with the film in its bucket."""

    def __init__(self, client: httpx.Client, film: Path) -> None:
        self._client = client
        extractor = {"feature_extractor_name": "video_extractor", "version": "1.0.0"}
        made = self._post("/namespaces", {"namespace_name": "hour", "feature_extractors": [extractor]})
        client.headers["X-Namespace"] = made["namespace_id"]
        self._bucket = self._post(
            "/buckets", {"bucket_name": "films", "bucket_schema": {"properties": {"film": {"type": "video"}}}}
        )["bucket_id"]
        upload = self._post(
            f"/buckets/{self._bucket}/uploads",
            {
                "filename": "film.mp4",
                "content_type": "video/mp4",
                "blob_property": "film",
                "blob_type": "video",
            },
        )
        with film.open("rb") as file:
            httpx.put(
                upload["presigned_url"], content=file, headers={"Content-Type": "video/mp4"}, timeout=600
            ).raise_for_status()
        self._object = self._post(f"/buckets/{self._bucket}/uploads/{upload['upload_id']}/confirm", {})[
            "object_id"
        ]
        self._extractor = extractor

    def extract(self, parameters: dict[str, Any]) -> tuple[float, int, str]:
        """Run the film through a new collection; return how long it took, how many documents, and any failure."""
        collection = self._post(
            "/collections",
            {
                "collection_name": f"films-{len(parameters)}",
                "source": {"type": "bucket", "bucket_ids": [self._bucket]},
                "feature_extractor": {**self._extractor, "parameters": parameters},
            },
        )["collection_id"]
        began = time.perf_counter()
        batches = f"/buckets/{self._bucket}/batches"
        batch = self._post(batches, {"object_ids": [self._object]})["batch_id"]
        task = self._post(f"{batches}/{batch}/submit", {})["task_id"]
        while (state := self._client.get(f"/v1/tasks/{task}").json())["status"] in (
            "PENDING",
            "IN_PROGRESS",
            "PROCESSING",
        ):
            time.sleep(0.5)
        took_s = time.perf_counter() - began
        said = "" if state["status"] == "COMPLETED" else f"; {state['status']}: {state.get('error')}"
        listed = self._post(f"/collections/{collection}/documents/list?include_total=true", {"limit": 1})
        self._client.delete(f"/v1/collections/{collection}")
        return took_s, listed["pagination"]["total"], said

    def _post(self, path: str, body: Any) -> Any:
        return self._client.post(f"/v1{path}", json=body).raise_for_status().json()


@contextlib.contextmanager
def _largest_worker() -> Iterator[list[float]]:
    """Yield a list of the largest resident memory (MiB) that a process below this one had, besides the server."""
    found = [0.0]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.25):
            found.append(max(_resident_mib(pid) for pid in _below(os.getpid())))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()


def _below(pid: int) -> list[int]:
    """Return the ids of all processes that `pid` started, and that those did (Linux)."""
    found = [0]
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            if parent == pid:
                child = int(status.parent.name)
                found += [child, *_below(child)]
    return found


def _resident_mib(pid: int) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return 0.0


def bytes_of(folder: Path) -> int:
    """Return how much disk the files below a folder take."""
    sizes = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            # Blocks, not length: the engine's files are longer than what is in them.
            sizes += 512 * path.stat().st_blocks if path.is_file() else 0
    return sizes


def _film(path: Path, part: Path, seconds: float) -> None:
    """Write a film of `seconds`: less than a minute of scenes with speech, its packets again and again."""
    import av

    made = sample_media.cuts_video(
        scenes=24, enlarged=4, codec="libx264", options={"preset": "veryfast", "crf": "28", "g": "96"}
    )
    part.write_bytes(made.data)
    sound = part.with_suffix(".m4a")
    with av.open(str(part)) as pictures, av.open(str(path), "w") as target:
        length = float(pictures.streams.video[0].duration * pictures.streams.video[0].time_base)
        _voice(sound, length)
        with av.open(str(sound)) as sounds:
            tracks = [
                (source, source.streams[0], target.add_stream_from_template(source.streams[0]))
                for source in (pictures, sounds)
            ]
            offset = 0.0
            while offset < seconds:
                packets = []
                for source, stream, track in tracks:
                    source.seek(0)
                    for packet in source.demux(stream):
                        if packet.dts is None or float(packet.dts * stream.time_base) >= length:
                            continue
                        shift = round(offset / stream.time_base)
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, track
                        packets.append((float(packet.dts * stream.time_base), packet))
                for _, packet in sorted(packets, key=lambda item: item[0]):
                    target.mux(packet)
                offset += length


def _voice(path: Path, seconds: float) -> None:
    """Write the sentences of the sample again and again."""
    import av

    with av.open(str(path), "w", format="ipod") as target:
        track = target.add_stream("aac", rate=48_000, layout="mono")
        resampler = av.AudioResampler("fltp", "mono", 48_000, frame_size=1024)
        said_s = 0.0
        while said_s < seconds:
            with av.open(str(SPEECH)) as source:
                for frame in source.decode(audio=0):
                    said_s += frame.samples / frame.sample_rate
                    frame.pts = None
                    for made in resampler.resample(frame):
                        target.mux(track.encode(made))
        target.mux(track.encode())
