"""P14: texts through a batch with the text model (MiniLM), findable at the end, beside a bare fastembed loop.

Same weights, same texts (docstrings of Python's library), each kept whole; both read at most 256 word pieces of
one. fastembed has all processors, the server its default of workers. Floor: 0.7 times the loop's rate, record 0.9.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

from bench.models import docstrings, fastembed_loop
from bench.pipeline import Pipeline
from bench.servers import tessera

ROUNDS = 5
TEXTS = 400


def main() -> None:
    """Print texts a second of both, for whole docstrings and for their first sentences' length."""
    whole = docstrings(TEXTS)
    with tempfile.TemporaryDirectory() as folder:
        theirs = fastembed_loop(Path(folder), os.cpu_count() or 1)
        with tessera(Path(folder) / "tessera") as client:
            for name, texts in (("docstrings", whole), ("sentences", [text[:100] for text in whole])):
                pipeline = Pipeline(client, f"p14-{name}", "text_extractor")
                pipeline.run(pipeline.load(texts[:1]))  # the worker is up and has its model
                theirs(texts[:1])
                rounds: list[tuple[float, float]] = []
                for turn in range(ROUNDS):
                    # Another text every time: what did not change is not extracted again.
                    renewed = [f"{text} {turn}" if name == "sentences" else text for text in texts]
                    ids = pipeline.load(renewed)
                    began = time.perf_counter()
                    vectors = theirs(renewed)
                    loop_s = time.perf_counter() - began
                    assert len(vectors) == len(texts)
                    rounds.append((pipeline.run(ids), loop_s))
                assert pipeline.count() == 1 + ROUNDS * len(texts)
                batch, loop = (
                    statistics.median(len(texts) / one for one in side) for side in zip(*rounds, strict=True)
                )
                ratios = [loop_s / ours_s for ours_s, loop_s in rounds]
                print(
                    f"P14 {len(texts)} {name}: {batch:.0f} texts/s findable, fastembed {loop:.0f}; "
                    f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f}; "
                    "floor 0.7, record 0.9)"
                )


if __name__ == "__main__":
    main()
