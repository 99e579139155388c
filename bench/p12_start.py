"""P12: from ``tessera up`` to the first 200, and opening a view of 100,000 documents again.

Floor: 4 s and 3 s. Record: 2 s and 1.5 s.
"""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np

from tessera import artifact
from tessera.adapters.qdrant.edge import EdgeVectors
from tessera.ports import DenseVector, Document, Entry, Page, View

ROUNDS = 5
DOCUMENTS = 100_000
DIMENSIONS = 384
PER_ARTIFACT = 2000


def main() -> None:
    """Print both times: median and spread of five rounds."""
    with tempfile.TemporaryDirectory() as folder:
        first = [_first_answer(Path(folder) / f"{number}") for number in range(ROUNDS)]
        again = [_first_answer(Path(folder) / "0") for _ in range(ROUNDS)]
    print(
        f"P12 tessera up to the first 200: {_shown(first)} on a fresh directory, {_shown(again)} on one that is there "
        "(floor 4 s, record 2 s)"
    )
    with tempfile.TemporaryDirectory() as folder:
        opened = _open_again(Path(folder))
    print(
        f"    a view of {DOCUMENTS:,} x {DIMENSIONS} opened again: {_shown(opened)} (floor 3 s, record 1.5 s)"
    )


def _shown(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


def _first_answer(data: Path) -> float:
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "tessera", "up", "--data", str(data), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = next(line.split()[-1] for line in process.stdout if line.startswith("Tessera is ready at "))
        httpx.get(f"{url}/v1/health").raise_for_status()
        return time.perf_counter() - began
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(15)


def _open_again(folder: Path) -> list[float]:
    """Fill one view, then time how long a fresh host takes to load it and answer."""
    rng = np.random.default_rng(7)
    view = View("ns_bench", "ns_bench-1", (DenseVector("v", DIMENSIONS),), str(folder / "view"))
    vectors = EdgeVectors(1, 4, folder / "run")
    vectors.open(view)
    for seq, start in enumerate(range(0, DOCUMENTS, PER_ARTIFACT), 1):
        block = rng.standard_normal((PER_ARTIFACT, DIMENSIONS)).astype(np.float32)
        documents = [
            Document(f"doc_{start + n:032x}", {"document_id": f"doc_{start + n:032x}"}, {"v": block[n]})
            for n in range(PER_ARTIFACT)
        ]
        path = folder / f"{seq}.arrow"
        artifact.write(path, documents, {"v": DIMENSIONS})
        vectors.apply(view, [Entry(seq, "artifact", artifact_path=str(path))])
        path.unlink()
    taken = []
    for _ in range(ROUNDS):
        vectors.close()
        vectors = EdgeVectors(1, 4, folder / "run")
        began = time.perf_counter()
        vectors.open(view)
        vectors.page(view, Page(1))
        taken.append(time.perf_counter() - began)
    vectors.close()
    return taken
