"""Names, versions, addresses, and what third parties add."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from tessera import registry as registry_module
from tessera.errors import NotFoundError
from tessera.extractors.base import Extractor, Outputs, Sample
from tessera.registry import FeatureUri, Registry, parse_feature_uri


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.load(tmp_path, offline=True)


@pytest.mark.parametrize(
    ("uri", "vector"),
    [
        ("mixpeek://text_extractor@v1/multilingual_e5_large_instruct_v1", "text_extractor_v1_embedding"),
        ("mixpeek://text_extractor@v1/text_embedding", "text_extractor_v1_embedding"),
        ("mixpeek://text_extractor@1.0.0/embedding", "text_extractor_v1_embedding"),
        ("mixpeek://text_extractor@v1/text_extractor_v1_embedding", "text_extractor_v1_embedding"),
        ("mixpeek://image_extractor@v1/google_siglip_base_v1", "image_extractor_v1_embedding"),
        (
            "mixpeek://video_extractor@1.0.0/vertex_multimodal_embedding",
            "video_extractor_v1_multimodal_embedding",
        ),
        ("mixpeek://video_extractor@v1/embedding", "video_extractor_v1_multimodal_embedding"),
        (
            "mixpeek://video_extractor@v1/multilingual_e5_large_instruct_v1",
            "video_extractor_v1_transcription_embedding",
        ),
        (
            "mixpeek://multimodal_extractor@v1/transcription_embedding",
            "video_extractor_v1_transcription_embedding",
        ),
        (
            "mixpeek://multimodal_extractor@v1/multimodal_extractor_v1_multimodal_embedding",
            "video_extractor_v1_multimodal_embedding",
        ),
    ],
)
def test_addresses(registry: Registry, uri: str, vector: str) -> None:
    assert registry.resolve_feature(uri).name == vector
    assert str(parse_feature_uri(uri)) == uri


@pytest.mark.parametrize(
    ("uri", "error", "said"),
    [
        ("text_extractor", ValueError, "mixpeek://<extractor>@<version>/<output>"),
        ("mixpeek://text_extractor/embedding", ValueError, "form"),
        ("mixpeek://text_extractor@v1/a/b", ValueError, "form"),
        ("mixpeek://tekst@v1/embedding", LookupError, "text_extractor"),
        ("mixpeek://text_extractor@v9/embedding", LookupError, "v1, 1.0.0"),
        ("mixpeek://text_extractor@v1/sparse", LookupError, "multilingual_e5_large_instruct_v1"),
        ("mixpeek://passthrough_extractor@v1/embedding", LookupError, "none"),
    ],
)
def test_addresses_that_lead_nowhere(registry: Registry, uri: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        registry.resolve_feature(uri)


def test_feature_uri_is_written_as_it_is_read() -> None:
    assert str(FeatureUri("a", "v1", "b")) == "mixpeek://a@v1/b"


def test_names_and_versions(registry: Registry) -> None:
    assert set(registry.extractor_names()) >= {
        "image_extractor",
        "multimodal_extractor",
        "passthrough_extractor",
        "text_extractor",
        "video_extractor",
    }
    assert registry.versions("video_extractor") == ("v1", "1.0.0")
    assert registry.versions("nobody") == ()
    assert registry.extractor("multimodal_extractor", "v1").name == "video_extractor"
    for name, version in (("nobody", "v1"), ("text_extractor", "v2")):
        with pytest.raises(NotFoundError):
            registry.extractor(name, version)
    assert registry.by_id("video_extractor_1.0.0")["version"] == "1.0.0"
    with pytest.raises(NotFoundError):
        registry.by_id("video_extractor_2")
    assert len(registry.catalogue()) == sum(
        len(registry.versions(name)) for name in registry.extractor_names()
    )


def test_stages_are_found(registry: Registry) -> None:
    assert {"attribute_filter", "feature_search", "limit"} <= set(registry.stages)
    assert registry.stage("limit") is registry.stages["limit"]
    assert registry.stage("nothing") is None


class Foreign(Extractor):
    """A third party's."""

    name = "foreign_extractor"
    description = "Somebody else's."
    inputs = {"text": ("text",)}  # noqa: RUF012

    def outputs(self, params: Any) -> Outputs:
        return Outputs()

    def extract(self, samples: Sequence[Sample], params: Any) -> Iterator[Any]:
        for _ in samples:
            yield ()


class Usurper(Foreign):
    """Wants a built-in's name."""

    name = "text_extractor"


def test_third_parties_come_by_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A good one is registered; one that takes a name, one that is no extractor and one that breaks are not."""

    def points(group: str) -> list[EntryPoint]:
        found = {"a": "Foreign", "b": "Usurper", "c": "no_extractor", "d": "breaks"}
        return [EntryPoint(name, f"made.up:{value}", group) for name, value in found.items()]

    def load(entry: EntryPoint) -> Any:
        loaded = {"Foreign": Foreign, "Usurper": Usurper, "no_extractor": dict}.get(entry.attr)
        if loaded is None:
            raise ImportError("it needs a library that is not there")
        return loaded

    monkeypatch.setattr(registry_module, "entry_points", points)
    monkeypatch.setattr(EntryPoint, "load", load)
    registry_module._extractor_classes.cache_clear()
    try:
        registry = Registry.load(tmp_path, offline=True)
        assert registry.describe("foreign_extractor", "v1")["source"] == "custom"
        assert not isinstance(registry.extractor("text_extractor", "v1"), Foreign)
    finally:
        registry_module._extractor_classes.cache_clear()
    assert "the name is taken" in caplog.text
    assert "is no Extractor" in caplog.text
    assert "cannot be loaded" in caplog.text


def test_the_registry_loads_no_heavy_library() -> None:
    code = (
        "import sys, pathlib; from tessera.registry import Registry; "
        "registry = Registry.load(pathlib.Path('nowhere'), offline=True); registry.catalogue(); "
        "heavy = {'onnx', 'onnxruntime', 'fastembed', 'av', 'PIL', 'tokenizers'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
