"""P9: objects through a batch with an extractor that costs nothing by itself, beside a plain loop that calls it.

Floor: 0.8 times the loop's rate where each item waits 10 ms, with the workers that a server has by default. Record:
1.8 times where each item takes 20 ms of a processor, with two workers on two processors.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from bench.cheap_extractor import NAME, Cheap
from bench.entry_points import install
from bench.pipeline import Pipeline
from bench.servers import tessera
from tessera.extractors.base import Input, Sample
from tessera.inference import open_models

ROUNDS = 5
#: What an item does, how many there are, the server's workers (None: as many as it takes by itself), the bound.
FORMS = (("wait 10", 600, None, "floor 0.8"), ("work 20", 300, 2, "record 1.8"))


def main() -> None:
    """Print the rate of a batch and of a loop, for both kinds of items."""
    with tempfile.TemporaryDirectory() as folder:
        environment = install(Path(folder) / "site", Cheap)
        extractor = Cheap(open_models(Path(folder) / "models", offline=True))
        for number, (item, count, workers, bound) in enumerate(FORMS):
            options = () if workers is None else ("--workers", str(workers))
            with tessera(Path(folder) / f"tessera-{number}", *options, env=environment) as client:
                pipeline = Pipeline(client, "p9", NAME)
                first = pipeline.run(pipeline.load([f"{item} first"]))
                rounds: list[tuple[float, float]] = []
                for turn in range(ROUNDS):
                    texts = [f"{item} {turn} {n}" for n in range(count)]
                    ids = pipeline.load(texts)
                    began = time.perf_counter()
                    samples = [Sample({"text": Input(text=text)}) for text in texts]
                    made = [list(features) for features in extractor.extract(samples, None)]
                    loop_s = time.perf_counter() - began
                    assert len(made) == count
                    rounds.append((pipeline.run(ids), loop_s))
                assert pipeline.count() == 1 + ROUNDS * count
            batch, loop = (
                statistics.median(count / one for one in side) for side in zip(*rounds, strict=True)
            )
            ratios = [theirs / ours for ours, theirs in rounds]
            print(
                f"P9 {count} items, {item} ms each, {workers or 'default'} workers: {batch:.0f} items/s, "
                f"a plain loop {loop:.0f}; {statistics.median(ratios):.2f}x "
                f"({min(ratios):.2f} to {max(ratios):.2f}; {bound}); the first batch, of one: {first:.1f} s"
            )


if __name__ == "__main__":
    main()
