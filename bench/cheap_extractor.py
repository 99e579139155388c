"""An extractor that takes exactly as long as its text says, and costs nothing else: ``wait 10`` or ``work 20`` (ms).

It comes by entry point, as a third party's would (`bench.entry_points`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from tessera.extractors.base import BadSample, Extractor, Feature, FieldOutput, Outputs, Sample, VectorOutput

NAME = "cheap_extractor"
_VECTOR = np.full(8, 8**-0.5, dtype=np.float32)


class Cheap(Extractor):
    """Waits or works for so many milliseconds, then brings one document with a small vector."""

    name = NAME
    description = "Takes as long as its text says."
    inputs: ClassVar[Mapping[str, tuple[str, ...]]] = {"text": ("text", "string")}

    def outputs(self, params: Any) -> Outputs:
        vector = VectorOutput(
            "cheap_extractor_v1_embedding", 8, "cheap_v1", "cheap", "The same for all texts."
        )
        return Outputs((vector,), {"took": FieldOutput("string", "What was done.")})

    def extract(self, samples: Sequence[Sample], params: Any) -> Iterator[Iterable[Feature] | BadSample]:
        for sample in samples:
            text = sample.inputs["text"].text or ""
            what, milliseconds, *_ = text.split()
            _pass(what, float(milliseconds) / 1000)
            yield [Feature((), {"took": text}, {"cheap_extractor_v1_embedding": _VECTOR})]


def _pass(what: str, seconds: float) -> None:
    if what == "wait":
        time.sleep(seconds)
        return
    # Of its own processor time, however much of that the machine gives it.
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(1000))
