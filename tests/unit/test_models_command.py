"""``tessera models``: fetched from a hub over HTTP, verified, listed, measured; one instance in a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera import sample_media
from tessera.extractors.base import Input, Sample
from tessera.inference import MINILM, open_models
from tessera.registry import Registry
from tests.hub import Hub
from tests.sentiment import write_classifier

ROOT = Path(__file__).resolve().parents[2]
WHISPER = "Systran/faster-whisper-tiny"
FILES = {
    WHISPER: {
        "model.bin": bytes(range(256)) * 500,
        "config.json": b'{"alignment_heads": []}',
        "vocabulary.txt": b"one\ntwo\n",
        "README.md": b"words",
    }
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub(FILES)
    yield hub
    hub.close()


def models(data: Path, *arguments: str, hub: Hub | None = None) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    if hub is not None:
        environment["HF_ENDPOINT"] = hub.url
    return subprocess.run(
        [sys.executable, "-m", "tessera", "models", *arguments, "--data", str(data)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )


def row(listed: str, model_id: str) -> str:
    return next(line for line in listed.splitlines() if line.startswith(f"{model_id} "))


def test_a_model_is_fetched_verified_and_listed(tmp_path: Path, hub: Hub) -> None:
    pulled = models(tmp_path, "pull", "faster-whisper-tiny", hub=hub)
    assert pulled.returncode == 0, pulled.stderr
    home = tmp_path / "models" / "faster-whisper-tiny"
    assert {path.name: path.read_bytes() for path in home.iterdir()} == {
        name: data for name, data in FILES[WHISPER].items() if name != "README.md"
    }
    assert f"{WHISPER}/README.md" not in hub.fetched
    listed = models(tmp_path, "list").stdout
    assert "models directory" in row(listed, "faster-whisper-tiny")
    assert " mit " in row(listed, "faster-whisper-tiny")
    assert " 384 " in row(listed, MINILM)
    assert " no " in row(listed, "faster-whisper-small")
    # Done already is as good as done.
    fetched = len(hub.fetched)
    assert models(tmp_path, "pull", "faster-whisper-tiny", hub=hub).returncode == 0
    assert len(hub.fetched) == fetched


@pytest.mark.parametrize("name", ["model.bin", "config.json"])
def test_a_file_that_is_not_what_the_hub_states_is_refused(tmp_path: Path, name: str) -> None:
    """Large files by their SHA-256, small ones by the id that Git gives them."""
    hub = Hub(FILES, damaged=frozenset({name}))
    try:
        pulled = models(tmp_path, "pull", "faster-whisper-tiny", hub=hub)
    finally:
        hub.close()
    assert pulled.returncode == 1
    assert f"{name} is damaged" in pulled.stderr
    assert not (tmp_path / "models" / "faster-whisper-tiny").exists()


def test_bench_prints_the_rates_of_what_is_installed(tmp_path: Path) -> None:
    done = models(tmp_path, "bench", "tessera-classic-v1", "--json")
    assert done.returncode == 0, done.stderr
    (rate,) = json.loads(done.stdout)
    assert (rate["model_id"], rate["unit"]) == ("tessera-classic-v1", "pictures/s")
    assert rate["alone"] > 0
    assert rate["together"] > 0
    missing = models(tmp_path, "bench", "faster-whisper-tiny")
    assert (missing.returncode, "tessera models pull faster-whisper-tiny" in missing.stderr) == (1, True)


def test_bench_measures_a_classifier_by_what_it_labels(tmp_path: Path) -> None:
    """The rates of rerankers and classifiers were those of the reader of words in pictures."""
    write_classifier(tmp_path / "models" / "distilbert-sst-2")
    done = models(tmp_path, "bench", "distilbert-sst-2", "--json")
    assert done.returncode == 0, done.stderr
    (rate,) = json.loads(done.stdout)
    assert (rate["model_id"], rate["unit"]) == ("distilbert-sst-2", "texts/s")
    assert rate["together"] > 0


def test_a_worker_has_one_instance_and_gives_it_all_rows_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (Registry.load(tmp_path, offline=True) for _ in range(2))
    assert one.models is other.models
    assert one.models.text() is other.models.text()
    loaded_s = one.models.loading_s
    assert loaded_s > 0
    open_models(tmp_path, True).text()
    assert one.models.loading_s == loaded_s

    calls: list[int] = []

    class Counting:
        def embed(self, items: Sequence[Any]) -> Any:
            calls.append(len(items))
            return np.full((len(items), 384), 384**-0.5, dtype=np.float32)

    monkeypatch.setattr(one.models, "text", lambda model_id: Counting())
    monkeypatch.setattr(one.models, "picture", lambda model_id: Counting())
    texts = [Sample({"text": Input(text=f"Text {number}")}) for number in range(20)]
    extractor = one.extractor("text_extractor", "v1")
    assert len(list(extractor.extract(texts, extractor.Params()))) == 20
    (tmp_path / "red.png").write_bytes(sample_media.pictures()["red-circle.png"])
    pictures = [Sample({"image": Input(path=tmp_path / "red.png")}) for _ in range(10)]
    pictures.insert(3, Sample({}))
    extractor = one.extractor("image_extractor", "v1")
    assert len(list(extractor.extract(pictures, extractor.Params()))) == 11
    assert calls == [20, 7, 3]
