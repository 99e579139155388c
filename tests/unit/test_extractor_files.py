"""Files of extractors: what a process of its own keeps away, what a worker says that lacks one, what tests are told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tessera import extractor_files, testing
from tessera.cli.extractors import _EXTRACTOR
from tessera.errors import BadSample
from tessera.extraction import ChunkJob, ChunkRow, InputRef, run_chunk
from tessera.extractor_files import Broken, Folder, Loaded, read
from tessera.registry import Registry

CODE = _EXTRACTOR.replace("@NAME@", "reading_time").replace("@CLASS@", "ReadingTime")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    folder = tmp_path / "extractors"
    folder.mkdir(mode=0o700)

    def written(code: str) -> Path:
        path = folder / "reading_time.py"
        path.write_text(code)
        path.chmod(0o600)
        return path

    return written


def reason(path: Path) -> str:
    found = read(path, is_tried=False)
    assert isinstance(found, Broken)
    return found.reason


def test_one_that_never_ends_is_given_up(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extractor_files, "TRIAL_S", 0.5)
    found = read(write("while True:\n    pass\n"))
    assert isinstance(found, Broken)
    assert found.reason == "importing it took longer than 0.5 s."


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('name = "reading_time"', 'name = "other"', "`name` is 'other'; in reading_time.py it must be"),
        ('versions = ("v1",)', 'versions = ("v1", "v1")', "`versions` must be a tuple of different texts"),
        ('versions = ("v1",)', 'versions = ("v 1",)', "version 'v 1' must be letters"),
        ('("text", "string")}', '("tekst",)}', "`inputs['text']` must be a tuple of bucket types"),
        ('VECTOR = "@NAME@_v1', 'VECTOR = "text_extractor_v1', "must be named reading_time_v1_…"),
        ("dimensions=model.dimensions", "dimensions=0", "needs `dimensions`, at least 1"),
        ('FieldOutput("string"', 'FieldOutput("tekst"', "field 'text' has type 'tekst'"),
        ("    def extract(", "    def extrakt(", "ReadingTime lacks extract."),
        ("class ReadingTime(Extractor)", "class _ReadingTime(Extractor)", "defines none."),
    ],
)
def test_what_is_wrong_with_an_extractor_is_said(
    write: Callable[[str], Path], before: str, after: str, said: str
) -> None:
    before = before.replace("@NAME@", "reading_time")
    assert before in CODE
    assert said in reason(write(CODE.replace(before, after)))


def test_an_error_while_somebody_is_answered_is_a_refusal_with_its_line(write: Callable[[str], Path]) -> None:
    code = CODE.replace("        if kind != ", "        1 / 0\n        if kind != ")
    extractor = testing.load_extractor(write(code))
    (vector,) = extractor.outputs(extractor.Params()).vectors
    line = code.splitlines().index("        1 / 0") + 1
    with pytest.raises(
        BadSample, match=rf"extractors/reading_time.py failed in embed_query: line {line}: Zero"
    ):
        extractor.embed_query(vector, "text", "a tower")


def test_a_folder_is_looked_at_again_when_a_file_is_another(
    write: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Folder(tmp_path / "extractors", is_tried=False)
    assert (folder.loaded(), folder.generation) == ({}, 0)
    path = write(CODE)
    first = folder.loaded()["reading_time"]
    assert folder.loaded()["reading_time"] is first
    write(CODE + "\n# changed\n")
    second = folder.loaded()["reading_time"]
    assert (second.digest != first.digest, folder.generation) == (True, 2)
    path.chmod(0o620)
    assert "others may write the file (mode 620)" in folder.broken()["reading_time"].reason
    path.unlink()
    assert (folder.loaded(), folder.broken()) == ({}, {})


def test_a_worker_says_which_file_it_does_not_see(write: Callable[[str], Path], tmp_path: Path) -> None:
    """One of a Ray cluster to which the data directory is not shared, say."""
    row = ChunkRow("obj_1", 1, {"text": InputRef(text="A lighthouse.")}, {}, {})
    job = ChunkJob(
        "ns_1", "col_1", "reading_time", "v1", {}, (), (row,), "ns_1/artifacts/a", str(tmp_path), str(tmp_path),
        offline=True, extractors_dir=str(tmp_path / "not-shared"),
    )  # fmt: skip
    (result,) = run_chunk(job).rows
    assert result.error_kind == "model_missing"
    assert "This worker has no reading_time v1. Its server has: a file reading_time.py" in str(
        result.error_message
    )
    write("import nothing_of_that_name\n")
    (result,) = run_chunk(replace(job, extractors_dir=str(tmp_path / "extractors"))).rows
    assert "extractors/reading_time.py cannot be used: line 1: ModuleNotFoundError." in str(
        result.error_message
    )


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            '            "reading_minutes": FieldOutput("number", "Minutes to read it."),\n',
            "",
            "are declared",
        ),
        ("for text in texts:\n            if", "for text in texts[:1]:\n            if", "gave 1 outcomes"),
        (
            "vectors={VECTOR: next(vectors)}",
            "vectors={VECTOR: 2 * next(vectors)}",
            "has length 2.0000, not 1",
        ),
        ("locator=Locator", "locator=None and Locator", "needs a `locator`"),
        ("round(minutes, 2)", "id(object())", "something else the second time"),
        ('"The file is not a text in UTF-8."', "str(source.path)", "where the server keeps its files"),
    ],
)
def test_what_an_extractor_does_not_keep_is_said(
    write: Callable[[str], Path], before: str, after: str, said: str
) -> None:
    assert before in CODE
    extractor = testing.load_extractor(write(CODE.replace(before, after)))
    samples = [testing.text("A lighthouse at dusk."), testing.text("Rain over the harbour.")]
    with pytest.raises(AssertionError) as caught:
        testing.check_extractor(extractor, samples)
    assert said in str(caught.value)


def test_reading_a_folder_needs_no_more_than_the_registry(
    write: Callable[[str], Path], tmp_path: Path
) -> None:
    found = read(write(CODE))
    assert isinstance(found, Loaded)
    registry = Registry.load(tmp_path, offline=True, extractors_dir=tmp_path / "extractors")
    assert registry.describe("reading_time", "v1")["source"] == "custom"
    assert registry.code_of("reading_time") == found.digest
    assert registry.code_of("text_extractor") is None
