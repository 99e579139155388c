"""How much there is in a source: seconds, pixels, pages, characters, read from headers; and what extracting it used.

Time grows with these and not with bytes: an hour of a still picture is a small file. Formats are opened with the same
libraries as for extraction, so whoever measures files of strangers does so in a process with bounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tessera import content, media
from tessera.errors import BadSample
from tessera.media import pages, sound

#: What the time for a source of each kind grows with. Each file counts, whatever is in it.
AMOUNTS: Mapping[str, tuple[str, ...]] = {
    "video": ("files", "seconds", "gigapixels"),
    "audio": ("files", "seconds"),
    "image": ("files", "megapixels"),
    "pdf": ("files", "pages"),
    "text": ("files", "kilocharacters"),
    "other": ("files", "megabytes"),
}
#: Of several inputs of a source the first of these decides; the others go beside it.
_RANK = ("video", "audio", "pdf", "image", "other", "text")
#: Where a container does not tell.
_FRAMES_PER_S = 25.0


@dataclass(frozen=True, slots=True)
class Measure:
    """A source as planning sees it; of the numbers those that apply to its `kind` (a key of `AMOUNTS`)."""

    kind: str
    size_bytes: int = 0
    duration_s: float = 0.0
    width: int = 0
    height: int = 0
    frames_per_s: float = 0.0
    pages: int = 0
    characters: int = 0

    def amounts(self) -> tuple[float, ...]:
        """Return the amounts of `AMOUNTS`, in that order."""
        pixels = self.width * self.height
        known = {
            "files": 1.0,
            "seconds": self.duration_s,
            "gigapixels": pixels * (self.frames_per_s or _FRAMES_PER_S) * self.duration_s / 1e9,
            "megapixels": pixels / 1e6,
            "pages": float(self.pages),
            "kilocharacters": self.characters / 1e3,
            "megabytes": self.size_bytes / 1e6,
        }
        return tuple(known[name] for name in AMOUNTS[self.kind])


@dataclass(frozen=True, slots=True)
class Used:
    """What the sources of one kind in a chunk used: seconds together, and what came of each.

    Each of `rows` has the amounts of a source, and how many documents and bytes came of it.
    """

    kind: str
    seconds: float
    rows: tuple[tuple[tuple[float, ...], int, int], ...]

    def amounts(self) -> tuple[float, ...]:
        """Return the amounts of all sources together."""
        return tuple(sum(column) for column in zip(*(row[0] for row in self.rows), strict=True))


@dataclass(frozen=True, slots=True)
class Cost:
    """What a chunk took: `seconds` from start to end, of which `load_s` went into loading models."""

    seconds: float
    load_s: float
    used: tuple[Used, ...] = ()


def kind_of(text: str | None, path: Path | None, mime_type: str | None) -> str:
    """Return the kind of an input, a key of `AMOUNTS`."""
    if text is not None or path is None:
        return "text"
    found = content.family(content.sniff_file(path) or mime_type or "text/plain")
    return found if found in AMOUNTS else "other"


def measure(path: Path, kind: str) -> Measure:
    """Measure a file of a `kind`. Raises `BadSample` for one that cannot be read as that."""
    size = path.stat().st_size
    if kind == "video":
        try:
            video = media.probe(path)
        except BadSample:
            # A container of films may hold sound alone.
            return Measure("audio", size, sound.probe(path).duration_s)
        return Measure("video", size, video.duration_s, video.width, video.height, video.frames_per_s or 0.0)
    if kind == "audio":
        return Measure("audio", size, sound.probe(path).duration_s)
    if kind == "image":
        width, height = media.picture_size(path)
        return Measure("image", size, width=width, height=height)
    if kind == "pdf" and content.sniff_file(path) in (content.DOCX, content.PPTX):
        return Measure("other", size)
    if kind == "pdf":
        return Measure("pdf", size, pages=pages.count(path))
    return Measure(kind, size, characters=size if kind == "text" else 0)


def measure_inputs(inputs: Iterable[tuple[str | None, Path | None, str | None]]) -> Measure | None:
    """Measure a source by the input (text, file, media type) that decides; None when it cannot be measured."""
    found: list[tuple[int, str, str | None, Path | None]] = []
    for text, path, mime_type in inputs:
        kind = kind_of(text, path, mime_type)
        found.append((_RANK.index(kind), kind, text, path))
    if not found:
        return Measure("other")
    _, kind, text, path = min(found, key=lambda item: item[0])
    try:
        if path is None or text is not None:
            return Measure("text", len(text or ""), characters=len(text or ""))
        return measure(path, kind)
    except (BadSample, OSError):
        return None


def measure_files(files: Sequence[tuple[str, str]]) -> list[Measure | None]:
    """Measure files (path, kind), for a process with bounds; None stands for what cannot be read."""
    found: list[Measure | None] = []
    for path, kind in files:
        try:
            found.append(measure(Path(path), kind if kind in AMOUNTS else "other"))
        except (BadSample, OSError):
            found.append(None)
    return found


def measure_sources(
    sources: Sequence[Sequence[tuple[str | None, str | None, str | None]]],
) -> list[Measure | None]:
    """Measure sources by their inputs (text, path, media type), for a process with bounds."""
    return [
        measure_inputs((text, Path(path) if path else None, mime) for text, path, mime in inputs)
        for inputs in sources
    ]


def summed(rows: Iterable[tuple[Measure, float, int, int]]) -> tuple[Used, ...]:
    """Return what rows (measure, seconds, documents, bytes) used, by kind."""
    seconds: dict[str, float] = {}
    found: dict[str, list[tuple[tuple[float, ...], int, int]]] = {}
    for row, row_s, documents, size_bytes in rows:
        seconds[row.kind] = seconds.get(row.kind, 0.0) + row_s
        found.setdefault(row.kind, []).append((row.amounts(), documents, size_bytes))
    return tuple(Used(kind, seconds[kind], tuple(of_kind)) for kind, of_kind in found.items())
