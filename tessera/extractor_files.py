"""Extractors that are files: what lies in ``extractors/`` of the data directory.

``NAME.py`` holds one extractor, whose `name` is NAME. A file that is new or changed is first imported in a process of
its own, so that one that hangs or ends its process takes nothing with it, and then here. Nothing that a file does
stops the server: one that cannot be used is told with its line and its reason, and the others stay.

The code runs with the server's rights. It is the operator's own: a file or a folder that others may write is refused.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import logging
import os
import re
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from tessera.config import child_environment
from tessera.errors import BadSample, TesseraError
from tessera.extractors.base import Extractor, Outputs, Params
from tessera.inference import Models
from tessera.models.buckets import BLOB_TYPES, FieldType
from tessera.ports import Distance

logger = logging.getLogger("tessera.extractors")

#: What a name may be: it becomes the name of a file, of vectors, and a part of addresses.
NAME = re.compile(r"[a-z][a-z0-9_]{2,62}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,31}")
#: A file is imported, and says what it writes, within this time.
TRIAL_S = 20.0
#: What an input may be, and a field of a document: the types of a bucket's schema, the second without files.
INPUT_TYPES = frozenset(kind.value for kind in FieldType)
FIELD_TYPES = (INPUT_TYPES - {kind.value for kind in BLOB_TYPES}) | {"text"}
_DISTANCES = frozenset(get_args(Distance))
_OTHERS_MAY_WRITE = 0o022


@dataclass(frozen=True, slots=True)
class Loaded:
    """A file whose extractor can be used; `digest` is the SHA-256 of its code."""

    path: Path
    digest: str
    made: type[Extractor]


@dataclass(frozen=True, slots=True)
class Broken:
    """A file that cannot be used, and why. `told` is for whoever asks the API: it quotes nothing of the code."""

    path: Path
    reason: str
    told: str


class _Refused(Exception):
    """The file is no extractor; the message quotes only names, so that anybody may read it."""


Stamp = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class _State:
    stamps: Mapping[Path, Stamp] = field(default_factory=dict)
    files: Mapping[Path, Loaded | Broken] = field(default_factory=dict)
    generation: int = 0


class Folder:
    """The extractors of a folder, looked at again whenever somebody asks. May be asked from several threads.

    `taken` are names that a file may not have. With `is_tried` a file is imported in a process of its own first; a
    worker leaves that out, because the server that gave it work has done so.
    """

    def __init__(
        self, path: Path | None, taken: frozenset[str] = frozenset(), *, is_tried: bool = True
    ) -> None:
        self.path = path
        self._taken = taken
        self._is_tried = is_tried
        self._lock = threading.Lock()
        self._state = _State()

    @property
    def generation(self) -> int:
        """A number that is another one whenever a file is."""
        return self._read().generation

    def loaded(self) -> Mapping[str, Loaded]:
        """Return the extractors that can be used, by name."""
        return {file.path.stem: file for file in self._read().files.values() if isinstance(file, Loaded)}

    def broken(self) -> Mapping[str, Broken]:
        """Return the files that cannot be used, by the name that their extractor would have."""
        return {file.path.stem: file for file in self._read().files.values() if isinstance(file, Broken)}

    def _read(self) -> _State:
        if self.path is None:
            return self._state
        if self._stamps() == self._state.stamps:
            return self._state
        with self._lock:
            stamps = self._stamps()
            before = self._state
            if stamps != before.stamps:
                files = {
                    path: before.files[path] if before.stamps.get(path) == stamp else self._taken_in(path)
                    for path, stamp in stamps.items()
                }
                self._state = _State(stamps, files, before.generation + 1)
            return self._state

    def _stamps(self) -> dict[Path, Stamp]:
        return {path: _stamp(status) for path, status in _listed(self.path)}

    def _taken_in(self, path: Path) -> Loaded | Broken:
        found = read(path, self._taken, is_tried=self._is_tried)
        if isinstance(found, Broken):
            logger.error("extractors/%s cannot be used: %s", path.name, found.reason)
        else:
            logger.info("extractors/%s is in use (%s)", path.name, found.digest[:12])
        return found


def _stamp(status: os.stat_result) -> Stamp:
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _listed(folder: Path | None) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield the files of a folder that are extractors by their names; tests and what begins with ``_`` are not."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name) if folder is not None else []
    except OSError:
        return
    for entry in entries:
        if entry.name.endswith(".py") and not entry.name.startswith((".", "_", "test_")):
            try:
                yield Path(entry.path), entry.stat()
            except OSError:  # gone meanwhile
                continue


# --- one file -----------------------------------------------------------------------------------------


def read(path: Path, taken: frozenset[str] = frozenset(), *, is_tried: bool = True) -> Loaded | Broken:
    """Return the extractor of a file, or why it cannot be used. Whatever the file does is told, never raised."""
    try:
        _check_name(path, taken)
        _check_owner(path)
        source = path.read_bytes()
        if is_tried:
            _try_apart(path)
        made = _import(path, source)
        _check_class(made(Models(path.parent, offline=True)), path.stem)
    except _Refused as error:
        return Broken(path, str(error), str(error))
    except _TriedInVain as error:
        return Broken(path, error.reason, error.told)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  a file of the operator's may raise anything, SystemExit too
        return Broken(path, *_told(error, path))
    return Loaded(path, hashlib.sha256(source).hexdigest(), made)


def _told(error: BaseException, path: Path) -> tuple[str, str]:
    """Return what is said of an error in a file: in full, and without what the error itself says."""
    if isinstance(error, SyntaxError):
        place = f"line {error.lineno}: " if error.lineno else ""
        return f"{place}SyntaxError: {error.msg}.", f"{place}SyntaxError."
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    place = f"line {lines[-1]}: " if lines else ""
    name = type(error).__name__
    said = str(error).strip().rstrip(".")[:500]
    return f"{place}{name}: {said}." if said else f"{place}{name}.", f"{place}{name}."


def _check_name(path: Path, taken: frozenset[str]) -> None:
    if not NAME.fullmatch(path.stem):
        raise _Refused(
            f"{path.stem} is no name for an extractor: 3 to 63 small letters, digits and underscores, a letter first. "
            "Rename the file."
        )
    if path.stem in taken:
        raise _Refused(
            f"{path.stem} is the name of an extractor that is built in or installed. Give the file, and the `name` in "
            "it, another."
        )


def _check_owner(path: Path) -> None:
    """Refuse code that somebody else may have written."""
    for place in (path.parent, path):
        status = place.stat()
        what = "the folder" if place == path.parent else "the file"
        if status.st_uid not in (os.geteuid(), 0):
            raise _Refused(f"{what} belongs to another user; only the operator's own code is run.")
        if status.st_mode & _OTHERS_MAY_WRITE:
            raise _Refused(
                f"others may write {what} (mode {status.st_mode & 0o777:o}); only the operator's own code is run. "
                f"Run: chmod go-w {place.name}"
            )


def _import(path: Path, source: bytes) -> type[Extractor]:
    """Run the code of a file and return the extractor class that it defines."""
    # Under a name in sys.modules, where pydantic and dataclasses look annotations up; no byte code is written.
    module = ModuleType(f"tessera_extractor_files_{path.stem}")
    module.__file__ = str(path)
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)  # noqa: S102  what this file is for
        found = [
            value
            for value in vars(module).values()
            if inspect.isclass(value)
            and issubclass(value, Extractor)
            and value.__module__ == module.__name__
            and not value.__name__.startswith("_")
        ]
        if len(found) != 1:
            names = ", ".join(value.__name__ for value in found) or "none"
            raise _Refused(f"a file defines one subclass of Extractor; this one defines {names}.")
        (made,) = found
        if inspect.isabstract(made):
            missing = ", ".join(sorted(made.__abstractmethods__))
            raise _Refused(f"{made.__name__} lacks {missing}.")
    except BaseException:
        if before is not None:
            sys.modules[module.__name__] = before
        raise
    for name in ("outputs", "pinned", "embed_query"):
        setattr(made, name, _answering(getattr(made, name), path))
    return made


def _answering(method: Callable[..., Any], path: Path) -> Callable[..., Any]:
    """Return `method` with its errors told: the server itself calls it, while it answers somebody."""

    @functools.wraps(method)
    def answer(*arguments: Any, **named: Any) -> Any:
        try:
            return method(*arguments, **named)
        except TesseraError:
            raise
        except Exception as error:
            reason, told = _told(error, path)
            logger.error("extractors/%s, %s: %s", path.name, method.__name__, reason)
            raise BadSample(
                "unsupported", f"extractors/{path.name} failed in {method.__name__}: {told}"
            ) from error

    return answer


def _check_class(extractor: Any, name: str) -> None:
    """Raise `_Refused` for an extractor that the catalogue could not describe, or that would clash with another."""
    for attribute in ("name", "description", "inputs"):
        if not hasattr(extractor, attribute):
            raise _Refused(f"{type(extractor).__name__} has no `{attribute}`.")
    if extractor.name != name:
        raise _Refused(f"`name` is {extractor.name!r}; in {name}.py it must be {name!r}.")
    if extractor.also_named:
        raise _Refused("`also_named` must be empty: a file has one name.")
    versions = extractor.versions
    if not isinstance(versions, tuple) or not versions or len(set(versions)) < len(versions):
        raise _Refused("`versions` must be a tuple of different texts, at least one.")
    for version in versions:
        if not isinstance(version, str) or not _VERSION.fullmatch(version):
            raise _Refused(f"version {version!r} must be letters, digits, dots, + and -, at most 32.")
    if not isinstance(extractor.description, str) or len(extractor.description) < 10:
        raise _Refused("`description` must be a text of at least 10 characters.")
    if not isinstance(extractor.inputs, Mapping) or not extractor.inputs:
        raise _Refused("`inputs` must map at least one input to the types that it takes.")
    for key, kinds in extractor.inputs.items():
        unknown = sorted(set(kinds) - INPUT_TYPES) if isinstance(kinds, tuple) else None
        if unknown is None or unknown:
            raise _Refused(
                f"`inputs[{key!r}]` must be a tuple of bucket types; {', '.join(sorted(INPUT_TYPES))} are known."
            )
    if not (inspect.isclass(extractor.Params) and issubclass(extractor.Params, Params)):
        raise _Refused("`Params` must be a subclass of tessera.extractors.base.Params.")
    params = extractor.Params()  # every parameter has a default
    json.dumps([params.model_dump(mode="json"), extractor.Params.model_json_schema()])
    _check_outputs(extractor.outputs(params), name)


def _check_outputs(outputs: Any, name: str) -> None:
    if not isinstance(outputs, Outputs):
        raise _Refused("`outputs` must return Outputs.")
    prefix = f"{name}_v1_"
    vectors: Any = outputs.vectors
    for vector in vectors:
        if not vector.name.startswith(prefix) or vector.name == prefix:
            raise _Refused(
                f"vector {vector.name!r} must be named {prefix}…, so that no other extractor has it."
            )
        if (
            isinstance(vector.dimensions, bool)
            or not isinstance(vector.dimensions, int)
            or vector.dimensions < 1
        ):
            raise _Refused(f"vector {vector.name!r} needs `dimensions`, at least 1.")
        if vector.distance not in _DISTANCES:
            raise _Refused(
                f"vector {vector.name!r}: `distance` must be one of {', '.join(sorted(_DISTANCES))}."
            )
        if len(vector.description) < 10:
            raise _Refused(f"vector {vector.name!r}: `description` must have at least 10 characters.")
        if not vector.query_inputs:
            raise _Refused(f"vector {vector.name!r}: `query_inputs` must name at least one kind of query.")
    for key, field_ in outputs.fields.items():
        if key.startswith("_") or "." in key or not key:
            raise _Refused(f"field {key!r} must not be empty, begin with an underscore or hold a dot.")
        if field_.type not in FIELD_TYPES:
            raise _Refused(
                f"field {key!r} has type {field_.type!r}; there are {', '.join(sorted(FIELD_TYPES))}."
            )


# --- in a process of its own ----------------------------------------------------------------------------


class _TriedInVain(Exception):
    def __init__(self, reason: str, told: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.told = reason, told or reason


def _try_apart(path: Path) -> None:
    """Import a file in a process of its own. Raises `_TriedInVain` with what was wrong."""
    environment = {
        name: value for name, value in child_environment().items() if not name.startswith("TESSERA_")
    }
    reader, writer = os.pipe()
    try:
        try:
            result = subprocess.run(
                [sys.executable, "-m", __name__, str(path), str(writer)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[writer],
                env=environment,
                # Where `-m` finds this very package, installed or not.
                cwd=Path(__file__).parents[1],
                timeout=TRIAL_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise _TriedInVain(f"importing it took longer than {TRIAL_S:g} s.") from None
        finally:
            os.close(writer)
        with os.fdopen(os.dup(reader), "rb") as file:
            os.set_blocking(file.fileno(), False)
            answer = file.read() or b""
    finally:
        os.close(reader)
    if not answer:
        raise _TriedInVain(f"importing it ended the process (status {result.returncode}).")
    verdict = json.loads(answer)
    if verdict is not None:
        raise _TriedInVain(*verdict)


def _trial(arguments: Sequence[str]) -> None:
    path, writer = Path(arguments[0]), int(arguments[1])
    found = read(path, is_tried=False)
    verdict: Any = None if isinstance(found, Loaded) else (found.reason[:2000], found.told[:2000])
    os.write(writer, json.dumps(verdict).encode())


def instance(path: Path, models: Models) -> Extractor:
    """Return the extractor of a file, for its tests. Raises `ValueError` that says why it cannot be used."""
    found = read(path, is_tried=False)
    if isinstance(found, Broken):
        raise ValueError(f"{path.name}: {found.reason}")
    return found.made(models)


if __name__ == "__main__":
    _trial(sys.argv[1:])
