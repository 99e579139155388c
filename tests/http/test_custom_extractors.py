"""Extractors that are files: written, used at once, changed, broken and removed under a running server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.http.loop import TEXT, Loop
from tests.http.processes import Server

ROOT = Path(__file__).resolve().parents[2]
NAME = "reading_time"
OWN = {"feature_extractor_name": NAME, "version": "v1"}
NOTES = ["A lighthouse at dusk, its lamp just lit.", "Fresh bread from the oven, still warm."]


def tessera(data: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tessera", "extractors", *arguments, "--data", str(data)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )


@pytest.fixture
def own(server: Server) -> Iterator[Path]:
    """The file of an extractor that `tessera extractors new` just wrote, under a running server."""
    made = tessera(server.data, "new", NAME)
    assert made.returncode == 0, made.stderr
    path = server.data / "extractors" / f"{NAME}.py"
    yield path
    for file in path.parent.glob(f"*{NAME}.py"):
        file.unlink()


def written(path: Path, text: str) -> None:
    """Replace a file as an editor does."""
    part = path.with_suffix(".part")
    part.write_text(text)
    part.chmod(0o600)
    part.rename(path)


def test_a_new_extractor_is_usable_at_once_and_again_when_it_is_changed(
    client: httpx.Client, namespace: Callable[..., dict[str, Any]], server: Server, own: Path
) -> None:
    """The server was started before the file was there, and its workers too."""
    assert tessera(server.data, "test", NAME).stdout.count("ok ") == 2
    loop = Loop(client, namespace(feature_extractors=[OWN, TEXT]))
    entry = loop.get(f"/collections/features/extractors/{NAME}_v1")
    assert (entry["source"], entry["feature_extractor_name"]) == ("custom", NAME)
    assert entry in loop.get("/collections/features/extractors")
    listed = loop.get(f"/namespaces/{loop.namespace_id}/extractors?source=custom")
    assert (listed["custom_count"], listed["extractors"]) == (1, [entry])

    bucket = loop.bucket()
    collection = loop.collection(bucket, {**OWN, "input_mappings": {"text": "note"}})
    ids = [loop.note(bucket, text) for text in NOTES]
    assert loop.run(bucket, ids)["status"] == "COMPLETED"
    minutes = {d["text"]: d["reading_minutes"] for d in loop.documents(collection)}
    assert minutes == {NOTES[0]: 0.04, NOTES[1]: 0.04}
    stages = [
        {
            "stage_name": "search",
            "stage_type": "filter",
            "config": {
                "stage_id": "feature_search",
                "parameters": {
                    "searches": [
                        {"feature_uri": f"mixpeek://{NAME}@v1/embedding", "query": "a tower by the sea"}
                    ]
                },
            },
        }
    ]
    retriever = {"retriever_name": "all", "collection_identifiers": [collection], "stages": stages}
    retriever_id = loop.post("/retrievers", retriever)["retriever"]["retriever_id"]
    hits = loop.post(f"/retrievers/{retriever_id}/execute", {"inputs": {}})["documents"]
    assert [hit["text"] for hit in hits] == NOTES

    # Another rate of reading: the sources are the same, the code is not.
    written(own, own.read_text().replace("Field(200,", "Field(100,"))
    assert loop.run(bucket, ids)["status"] == "COMPLETED"
    minutes = {d["text"]: d["reading_minutes"] for d in loop.documents(collection)}
    assert minutes == {NOTES[0]: 0.08, NOTES[1]: 0.07}

    # Broken under a namespace that uses it: what it wrote is found, what is new says why it is not.
    written(own, own.read_text().replace("import Field", "import Feild"))
    batch = loop.run(bucket, [loop.note(bucket, "A third one.")])
    assert batch["status"] == "FAILED"
    assert f"extractors/{NAME}.py cannot be used: line 13: ImportError." in batch["error"]
    assert len(loop.documents(collection)) == 2
    assert loop.get(f"/namespaces/{loop.namespace_id}/extractors")["custom_count"] == 0
    loop.collection(bucket, {**TEXT, "input_mappings": {"text": "note"}})
    said = loop.refused(422, "POST", "/namespaces", {"namespace_name": "n", "feature_extractors": [OWN]})
    assert f"extractors/{NAME}.py cannot be used: line 13: ImportError." in said
    said = loop.refused(400, "POST", "/retrievers", {**retriever, "retriever_name": "another"})
    assert f"extractors/{NAME}.py cannot be used: line 13: ImportError." in said
    assert "no extractor is named" not in said
    shown = tessera(server.data, "list")
    assert shown.returncode == 5
    assert "line 13: ImportError: cannot import name 'Feild'" in shown.stderr


BROKEN = {
    "a_typo": ("def broken(:\n", "line 1: SyntaxError"),
    "an_end": ("import sys\nsys.exit(3)\n", "line 2: SystemExit: 3"),
    "a_hard_end": ("import os\nos._exit(3)\n", "importing it ended the process (status 3)"),
    "nothing_in_it": ("x = 1\n", "defines none"),
    "text_extractor": ("", "is the name of an extractor that is built in"),
    "Shouting": ("", "is no name for an extractor"),
    "its_error": ("secret = 'k'\nraise ValueError(secret)\n", "line 2: ValueError: k"),
}


def test_files_that_break_are_told_and_stop_nothing(client: httpx.Client, server: Server) -> None:
    said_of = {name: said for name, (_, said) in BROKEN.items()} | {
        "open": "others may write the file (mode 666)"
    }
    folder = server.data / "extractors"
    folder.mkdir(mode=0o700, exist_ok=True)
    try:
        for name, (code, _) in BROKEN.items():
            written(folder / f"{name}.py", code)
        written(folder / "open.py", "")
        (folder / "open.py").chmod(0o666)
        names = [
            e["feature_extractor_name"] for e in client.get("/v1/collections/features/extractors").json()
        ]
        assert "text_extractor" in names
        assert not (said_of.keys() - {"text_extractor"}) & set(names)
        body = {
            "namespace_name": "none",
            "feature_extractors": [{"feature_extractor_name": "its_error", "version": "v1"}],
        }
        answer = client.post("/v1/namespaces", json=body)
        assert answer.status_code == 422
        # The line and the kind, not what the error quotes: whoever has a key may read this.
        assert "extractors/its_error.py cannot be used: line 2: ValueError. " in answer.text
        for name, said in said_of.items():
            assert f"extractors/{name}.py cannot be used: " in server.log
            assert said in server.log
        shown = tessera(server.data, "list")
        assert shown.returncode == 5
        for name, said in said_of.items():
            assert any(f"{name}.py: " in line and said in line for line in shown.stderr.splitlines()), name
    finally:
        for name in said_of:
            (folder / f"{name}.py").unlink()
    assert client.get("/v1/health").status_code == 200


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("Reading", 2, "is no name for an extractor"),
        ("text_extractor", 2, "is built in or installed"),
    ],
)
def test_names_that_a_new_extractor_may_not_have(tmp_path: Path, name: str, code: int, said: str) -> None:
    made = tessera(tmp_path, "new", name)
    assert (made.returncode, said in made.stderr) == (code, True), made.stderr
