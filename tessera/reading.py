"""Words in pictures: OCR by rapidocr, whose models are in its wheel, and what stays on the screen over time."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image

#: ``(left, top, right, bottom)`` in pixels of the picture that was read.
Box = tuple[float, float, float, float]

#: The shorter side that text is looked for in. At rapidocr's own 736 it takes twice as long and finds the same.
_SIDE = 512
#: Pictures whose longer side is less are enlarged twofold: the blanks between small letters would be lost.
_SMALL = 640
#: Text that is read with less certainty (0…1) than this is left out.
_SURE = 0.6
#: Texts that are at least so alike (0…1) are the same text, read twice.
_ALIKE = 0.8


@dataclass(frozen=True, slots=True)
class Text:
    """Words that stand together in a picture, where, and how sure the reader is (0…1)."""

    text: str
    box: Box
    confidence: float


@dataclass(frozen=True, slots=True)
class Shown:
    """Words that were on the screen from `start_s` to `end_s`, and where they stood when they were read best."""

    text: str
    start_s: float
    end_s: float
    box: Box


class Reader:
    """Reads pictures. One instance a process; not for several threads at once."""

    def __init__(self, threads: int = 1) -> None:
        from rapidocr import RapidOCR

        self._ocr: Any = RapidOCR(
            params={
                "Global.log_level": "critical",
                "Global.text_score": _SURE,
                "Global.use_cls": False,
                "Det.limit_side_len": _SIDE,
                "EngineConfig.onnxruntime.intra_op_num_threads": threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )

    def read(self, picture: Image) -> list[Text]:
        """Return the lines of a picture as they were found, from top to bottom, parts of a line joined."""
        return self.read_array(np.asarray(picture.convert("RGB")))

    def read_array(self, picture: npt.NDArray[np.uint8]) -> list[Text]:
        """Return the lines of ``uint8[height, width, 3]``, red, green, blue, as `read` does."""
        from PIL import Image

        scale = 1.0
        if max(picture.shape[:2]) < _SMALL:
            scale, small = 2.0, Image.fromarray(picture)
            picture = np.asarray(
                small.resize((small.width * 2, small.height * 2), Image.Resampling.BICUBIC), np.uint8
            )
        found = self._ocr(np.ascontiguousarray(picture[:, :, ::-1]))
        if found.boxes is None or found.txts is None:
            return []
        parts = [
            Text(text.strip(), _around(corners, scale), float(score))
            for corners, text, score in zip(found.boxes, found.txts, found.scores, strict=True)
        ]
        # One letter alone is nearly always a thing that looks like one: a star, a cross, a window.
        return [line for line in lines(parts) if sum(map(str.isalnum, line.text)) > 1]


def _around(corners: Any, scale: float) -> Box:
    across, down = np.asarray(corners, dtype=float).reshape(-1, 2).T / scale
    return float(across.min()), float(down.min()), float(across.max()), float(down.max())


def lines(parts: Sequence[Text]) -> list[Text]:
    """Join the parts that stand beside each other on one line, at most a letter's height and a half apart."""
    made: list[Text] = []
    for part in sorted(parts, key=lambda one: one.box[0]):
        for number, line in enumerate(made):
            if _continues(line.box, part.box):
                made[number] = _joined(line, part)
                break
        else:
            made.append(part)
    return sorted(made, key=lambda one: (one.box[1], one.box[0]))


def blocks(texts: Sequence[Text]) -> list[Text]:
    """Join the lines that stand below each other, less than a line's height apart and overlapping in width."""
    made: list[Text] = []
    for line in texts:
        for number, block in enumerate(made):
            height = line.box[3] - line.box[1]
            close = -0.5 * height <= line.box[1] - block.box[3] <= 0.8 * height
            if close and _overlap(line.box[0::2], block.box[0::2]) > 0.3:
                made[number] = _joined(block, line)
                break
        else:
            made.append(line)
    return made


def _continues(line: Box, part: Box) -> bool:
    height = min(line[3] - line[1], part[3] - part[1])
    return _overlap(line[1::2], part[1::2]) > 0.5 and part[0] - line[2] <= 1.5 * height


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Return how much of the shorter of two ranges lies in the other."""
    shared = min(one[1], other[1]) - max(one[0], other[0])
    return max(0.0, shared) / max(1e-9, min(one[1] - one[0], other[1] - other[0]))


def _joined(one: Text, other: Text) -> Text:
    box = (
        min(one.box[0], other.box[0]),
        min(one.box[1], other.box[1]),
        max(one.box[2], other.box[2]),
        max(one.box[3], other.box[3]),
    )
    return Text(f"{one.text} {other.text}", box, min(one.confidence, other.confidence))


# --- over time ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Standing:
    """A text that is on the screen, with every reading of it."""

    start_s: float
    seen_s: float
    readings: list[Text] = field(default_factory=list)

    def same(self, text: Text) -> bool:
        return alike(self.readings[-1].text, text.text)

    def shown(self, end_s: float) -> Shown:
        counts = Counter(reading.text for reading in self.readings)
        best = max(self.readings, key=lambda reading: (counts[reading.text], reading.confidence))
        return Shown(best.text, self.start_s, max(end_s, self.start_s), best.box)


def over_time(readings: Iterable[tuple[float, Sequence[Text] | None]], end_s: float) -> Iterator[Shown]:
    """Yield the texts of successive frames as spans of time, in the order of their end.

    `readings` are (time of a frame, its texts, or None where the frame is as the one before). A text lasts until
    the first frame that is without it; what the last frame shows lasts until `end_s`. Slips of the reader from
    frame to frame make no new span, and the reading that came most often is taken.
    """
    standing: list[_Standing] = []
    for time_s, texts in readings:
        if texts is None:
            continue
        kept: list[_Standing] = []
        for text in texts:
            known = next((one for one in standing if one not in kept and one.same(text)), None)
            if known is None:
                known = _Standing(time_s, time_s)
            known.readings.append(text)
            kept.append(known)
        for gone in standing:
            if gone not in kept:
                yield gone.shown(time_s)
        standing = kept
    for one in standing:
        yield one.shown(end_s)


def alike(one: str, other: str) -> bool:
    """Tell whether two readings are of the same words: equal but for case, blanks and single letters."""
    first, second = (
        "".join(letter for letter in text.casefold() if letter.isalnum()) for text in (one, other)
    )
    return first == second or difflib.SequenceMatcher(None, first, second, autojunk=False).ratio() >= _ALIKE
