"""P10: a video decoded and cut into scenes, beside bare decoding and beside the scenedetect command.

Floors: at least 0.7 times the frames a second of a bare PyAV decode, at least 1.0 times those of the command at
equal F1. Records: 0.85 and 1.5 times. The video has 51 known cuts in 1280×720 H.264, with pans, flashes and fades.
"""

from __future__ import annotations

import csv
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tessera import sample_media

ROUNDS = 5
COMMAND = Path(__file__).resolve().parent.parent / ".bench-venv/bin/scenedetect"
#: Both sides as commands: their start counts, as it does for whoever calls them.
OURS = "import sys, pathlib, tessera.media.scenes as s; print(*s.cuts(pathlib.Path(sys.argv[1])), sep='\\n')"
BARE = """
import sys, av
with av.open(sys.argv[1]) as container:
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    print(sum(1 for _ in container.decode(stream)))
"""
NEAR_S, NEAR_FADE_S = 0.1, 0.5


def main() -> None:
    """Print both ratios and both F1."""
    made = sample_media.cuts_video(
        enlarged=4, codec="libx264", options={"preset": "veryfast", "crf": "23", "g": "120"}
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cuts.mp4"
        path.write_bytes(made.data)
        sides: dict[str, Callable[[], Sequence[float]]] = {
            "bare": lambda: [float(_python(BARE, path)[0])],
            "ours": lambda: [float(line) for line in _python(OURS, path)],
        }
        if COMMAND.exists():
            sides["scenedetect"] = lambda: _scenedetect(path, Path(folder))
        found = {name: side() for name, side in sides.items()}  # also warms the page cache
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(ROUNDS):
            for name, side in sides.items():
                began = time.perf_counter()
                side()
                times[name].append(time.perf_counter() - began)
    frames = found["bare"][0]
    print(
        f"P10 decode and cut {frames:.0f} frames of 1280x720 H.264: "
        f"{frames / statistics.median(times['ours']):.0f} frames/s, F1 {_f1(found['ours'], made):.3f} over "
        f"{len(made.cuts_s)} cuts; {_ratio(times['bare'], times['ours'])} a bare decode (floor 0.7, record 0.85)"
    )
    if "scenedetect" in sides:
        print(
            f"P10 {_ratio(times['scenedetect'], times['ours'])} the scenedetect command, whose F1 is "
            f"{_f1(found['scenedetect'], made):.3f} (floor 1.0, record 1.5)"
        )
    else:
        print("P10 the scenedetect command is not there; `make bench` installs it")


def _python(script: str, path: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], check=True, capture_output=True, text=True
    )
    return done.stdout.split()


def _scenedetect(path: Path, folder: Path) -> list[float]:
    """Run the command with its default detector and return when its scenes begin, the first one left out."""
    subprocess.run(
        [COMMAND, "-i", path, "-o", folder, "-q", "detect-adaptive", "list-scenes", "-q"], check=True
    )
    rows = list(csv.reader((folder / f"{path.stem}-Scenes.csv").open()))
    place = rows[1].index("Start Time (seconds)")
    return [float(row[place]) for row in rows[3:]]


def _f1(found: Sequence[float], made: sample_media.CutsVideo) -> float:
    """A cut counts within a tenth of a second, a fade within half a second of its darkest moment."""
    left = list(found)
    for cut in made.cuts_s:
        near = NEAR_FADE_S if cut in made.fades_s else NEAR_S
        best = min(left, key=lambda one: abs(one - cut), default=-9.0)
        if abs(best - cut) <= near:
            left.remove(best)
    return 2 * (len(found) - len(left)) / (len(found) + len(made.cuts_s))


def _ratio(theirs: Sequence[float], ours: Sequence[float]) -> str:
    ratios = [one / other for one, other in zip(theirs, ours, strict=True)]
    return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
