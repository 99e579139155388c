"""Speech to words with times: faster-whisper where its model's files are, else pocketsphinx.

Both get stretches of sound of bounded length, cut in silences, and know nothing of what came before: the same
stretch gives the same words in whatever file it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tessera import languages

#: ``int16[n]``, mono, 16,000 a second.
Samples = npt.NDArray[np.int16]
RATE = 16_000


@dataclass(frozen=True, slots=True)
class Word:
    """One word as it was heard, in seconds from the start of what was listened to."""

    start_s: float
    end_s: float
    text: str


class Recogniser(Protocol):
    """Turns stretches of sound of at most `longest_s` into words."""

    longest_s: float

    def words(self, samples: Samples, language: str | None) -> list[Word]:
        """Return the words of a stretch in the order of time. `language` is a code such as ``en``, or None."""


class Pocketsphinx:
    """CMU's recogniser with the English model of its wheel: no download, a tenth of real time, plain words."""

    longest_s = 20.0

    def __init__(self) -> None:
        from pocketsphinx import Decoder

        # The mean of a whole stretch instead of a running one: what was heard before changes nothing.
        self._decoder = Decoder(samprate=float(RATE), loglevel="FATAL", cmn="batch")
        self._frames_per_s = float(self._decoder.config["frate"])

    def words(self, samples: Samples, language: str | None) -> list[Word]:
        """Return the words of a stretch; `language` is English, whatever it is called."""
        # The front end keeps what it heard last; without this the first words would shift by a frame.
        self._decoder.reinit_feat()
        self._decoder.start_utt()
        self._decoder.process_raw(samples.tobytes(), full_utt=True)
        self._decoder.end_utt()
        return [
            Word(part.start_frame / self._frames_per_s, (part.end_frame + 1) / self._frames_per_s, text)
            for part in self._decoder.seg() or ()
            if (text := _plain(part.word))
        ]


#: ``the(2)`` is the second way to say "the"; ``<sil>``, ``[NOISE]`` and ``++UH++`` are no words.
_VARIANT = re.compile(r"\(\d+\)$")


def _plain(word: str) -> str:
    return "" if word[:1] in "<[+" else _VARIANT.sub("", word)


class Whisper:
    """A Whisper model in CTranslate2's format, run by faster-whisper on 8-bit integers."""

    longest_s = 30.0

    def __init__(self, folder: Path, threads: int) -> None:
        from faster_whisper import WhisperModel

        self._model: Any = WhisperModel(
            str(folder), device="auto", compute_type="int8", cpu_threads=threads, local_files_only=True
        )

    def words(self, samples: Samples, language: str | None) -> list[Word]:
        """Return the words of a stretch; of a `language` that is not given the model makes a guess."""
        found, _ = self._model.transcribe(
            samples.astype(np.float32) / 32768,
            language=languages.code_of(language or "") or language,
            word_timestamps=True,
            condition_on_previous_text=False,
            temperature=0.0,
        )
        return list(_heard(found))


def _heard(segments: Any) -> Iterator[Word]:
    for segment in segments:
        for word in segment.words or ():
            if word.word.strip():
                yield Word(float(word.start), float(word.end), word.word.strip())


def error_rate(said: str, heard: str) -> float:
    """Return the word error rate: substitutions, deletions and insertions by words said (NIST's measure)."""
    wanted, found = _words(said), _words(heard)
    # Levenshtein's distance, a row at a time.
    row = list(range(len(found) + 1))
    for number, word in enumerate(wanted, 1):
        above, row = row, [number]
        for place, other in enumerate(found, 1):
            row.append(min(above[place] + 1, row[-1] + 1, above[place - 1] + (word != other)))
    return row[-1] / max(1, len(wanted))


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.casefold())
