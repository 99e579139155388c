"""An extractor whose rows say what happens: wait for a file, crash, raise, hang, or bring pieces.

It comes from outside the package, by entry point, as a third party's would: `install` makes what an
installed distribution consists of. The server under test gets the folder in ``PYTHONPATH``.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tessera.extractors.base import BadSample, Extractor, Feature, FieldOutput, Outputs, Sample, VectorOutput
from tests.http.processes import ROOT

NAME = "gated_extractor"
GATED = {"feature_extractor_name": NAME, "version": "v1"}


class Gated(Extractor):
    """Obeys the words of its text, from left to right, and then brings a document for each piece left.

    ``open:PATH`` writes the worker's process id to a file and ``wait:PATH`` waits for one; ``die`` kills
    the worker, ``die-once:PATH`` only while the file is not there, ``exit:STATUS`` ends it and ``segfault``
    lets it crash; ``raise`` (``raise-until:PATH`` only while the file is not there), ``bad`` and ``wrong-size``
    are the three ways to fail; ``sleep:SECONDS`` sleeps, and
    ``hog:MIB`` takes memory.
    """

    name = NAME
    description = "Does what its text says."
    inputs: ClassVar[Mapping[str, tuple[str, ...]]] = {"text": ("text", "string")}
    positions = ("piece",)

    def outputs(self, params: Any) -> Outputs:
        vector = VectorOutput(
            "gated_extractor_v1_embedding", 4, "letters_v1", "letters", "Counts of letters."
        )
        return Outputs((vector,), {"piece": FieldOutput("string", "One word.")})

    def extract(self, samples: Sequence[Sample], params: Any) -> Iterator[Iterable[Feature] | BadSample]:
        for sample in samples:
            try:
                yield [_feature(word) for word in _obeyed(sample.inputs["text"].text or "")]
            except BadSample as error:
                yield error

    def embed_query(self, vector: VectorOutput, kind: str, value: str | Path) -> Any:
        return _vector(str(value), 4)


def _obeyed(text: str) -> Iterator[str]:
    for word in text.split():
        order, _, what = word.partition(":")
        if order == "open":
            part = Path(f"{what}.part")
            part.write_text(str(os.getpid()))
            part.rename(what)
        elif order == "wait":
            while not Path(what).exists():
                time.sleep(0.01)
        elif order == "sleep":
            time.sleep(float(what))
        elif order == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif order == "die-once":
            if not Path(what).exists():
                Path(what).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        elif order == "exit":
            os._exit(int(what))
        elif order == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif order == "raise-until":
            if not Path(what).exists():
                raise RuntimeError("a defect that was mended later")
        elif order == "hog":
            bytearray(int(what) * 2**20)
        elif order == "raise":
            raise RuntimeError("a defect of the extractor")
        elif order == "bad":
            raise BadSample("unreadable", f"The text says {what}.")
        else:
            yield word


def _feature(word: str) -> Feature:
    size = 3 if word == "wrong-size" else 4
    return Feature((word,), {"piece": word}, {"gated_extractor_v1_embedding": _vector(word, size)})


def _vector(word: str, size: int) -> Any:
    counts = np.ones(size, dtype=np.float32)
    for letter in word.encode():
        counts[letter % size] += 1
    return counts / np.linalg.norm(counts)


def install(folder: Path) -> dict[str, str]:
    """Make a distribution in `folder` that registers the extractor; return the environment that finds it."""
    about = folder / "gated-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: gated\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[tessera.extractors]\n{NAME} = {__name__}:{Gated.__name__}\n")
    return {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}


class Gate:
    """A file that a row waits for, and one that tells that it is waiting."""

    def __init__(self, folder: Path, name: str = "gate") -> None:
        self.reached, self.opened = folder / f"{name}.reached", folder / f"{name}.opened"
        self.words = f"open:{self.reached} wait:{self.opened}"

    def wait(self) -> None:
        wait_for(self.reached)

    def open(self) -> None:
        self.opened.touch()


def wait_for(path: Path, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} never came"
        time.sleep(0.01)
