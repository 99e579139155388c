"""The files of a folder, and what each one is: told by its content, by its name only where the content says nothing."""

from __future__ import annotations

import hashlib
import mimetypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Kinds of files that objects can hold; also the names of the bucket's properties for them.
KINDS = ("text", "image", "video", "audio", "pdf", "excel")
_HEAD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class File:
    """A file to ingest; `shown` is its absolute path as text."""

    path: Path
    kind: str
    mime_type: str

    @property
    def shown(self) -> str:
        return os.fsencode(self.path).decode(errors="replace")

    def file_id(self, machine: str) -> str:
        """Return what stands for the path, whatever bytes it has, on a machine: ``""`` for the server's own."""
        return hashlib.sha256(machine.encode() + b"\0" + os.fsencode(self.path)).hexdigest()[:32]

    @property
    def filename(self) -> str:
        """The last part of the path, as a server takes it."""
        name = os.fsencode(self.path.name).decode(errors="replace")
        clean = "".join(
            letter if letter.isprintable() and letter not in "\\/" else "_" for letter in name
        ).strip()
        stem, dot, ending = clean.rpartition(".")
        return clean if len(clean) <= 255 else f"{stem[: 254 - len(ending)]}{dot}{ending}"[:255]


#: Paths, each with what is to be said of it.
Told = list[tuple[str, str]]


def files(path: Path, left_out: Told, unreadable: Told) -> Iterator[File]:
    """Yield the files below `path` (or itself) in order; the others go to `left_out` or `unreadable`, each with why.

    Hidden ones are passed over without a word, links to folders are not followed, so that no walk goes round.
    """
    path = path.resolve()
    for each in [path] if path.is_file() else _walk(path, unreadable):
        shown = os.fsencode(each).decode(errors="replace")
        try:
            if not each.is_file():
                left_out.append((shown, "no regular file"))
            elif not each.stat().st_size:
                left_out.append((shown, "empty"))
            elif (found := _recognised(each)) is None:
                left_out.append((shown, "not recognised"))
            else:
                yield File(each, *found)
        except OSError as error:
            unreadable.append((shown, error.strerror or str(error)))


def _walk(root: Path, unreadable: Told) -> Iterator[Path]:
    def refused(error: OSError) -> None:
        unreadable.append(
            (os.fsencode(error.filename).decode(errors="replace"), error.strerror or str(error))
        )

    for here, folders, names in os.walk(root, onerror=refused):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(here, name) for name in sorted(names) if not name.startswith("."))


def _recognised(path: Path) -> tuple[str, str] | None:
    """Return kind and media type of a file, or None."""
    from tessera import containers, content

    named = mimetypes.guess_type(path.name)[0]
    seen = content.sniff_file(path)
    if seen is None:
        with path.open("rb") as file:
            is_text = content.begins_as_text(file.read(_HEAD_BYTES))
        if is_text:
            words = named if named is not None and named.startswith("text/") else "text/plain"
            return "text", words
        # Damaged perhaps: the server says what is wrong with it.
        seen = named
    kind = content.family(seen) if seen is not None else "other"
    if kind == "video" and containers.holds_only_sound(path):
        # A voice memo, a podcast: it has the container of a video, and nothing to be seen.
        kind = "audio"
    return (kind, seen or "") if kind in KINDS else None
