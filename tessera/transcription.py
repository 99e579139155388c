"""What is said in a video or a recording, with times: from subtitles where there are any, else by recognition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tessera import media
from tessera.inference import Models
from tessera.media import sound

SUBTITLES = "subtitles"


@dataclass(frozen=True, slots=True)
class Transcript:
    """What is said, in pieces as fine as the source tells them: words that were heard, or whole subtitles.

    `source` is ``subtitles`` or the id of the model that listened; None when nobody did.
    """

    pieces: tuple[media.Cue, ...] = ()
    source: str | None = None


def recognise(
    path: Path, models: Models, model_id: str, language: str | None, sounding: Sequence[tuple[float, float]]
) -> Transcript:
    """Return the words that are heard during `sounding` (seconds, as `sound.sounding` finds it).

    Raises `BadSample`, and `InferenceServiceUnavailableError` where the model's files are not.
    """
    recogniser = models.recogniser(model_id)
    pieces = []
    for start_s, samples in sound.stretches(path, sounding, recogniser.longest_s):
        for word in recogniser.words(samples, language):
            begin_s, end_s = (round(start_s + time_s, 3) for time_s in (word.start_s, word.end_s))
            pieces.append(media.Cue(begin_s, end_s, word.text))
    return Transcript(tuple(pieces), model_id)
