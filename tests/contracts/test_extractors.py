"""What every extractor keeps, built in or a third party's: parametrised over the registry, so that a new one
is tested on arrival.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from tessera import sample_media, sample_pages
from tessera.extractors.base import BadSample, Extractor, Feature, Input, Sample
from tessera.locators import fragment, locator_of
from tessera.registry import Registry
from tests.faces import write_models
from tests.media import SPEECH, photograph, sound_as

KINDS = {"unreadable", "unsupported", "too_large", "model_missing", "limit"}
#: What a bucket's schema calls a type, of those that a field of a document may have.
FIELD_TYPES = {
    "string",
    "text",
    "number",
    "integer",
    "float",
    "boolean",
    "object",
    "array",
    "date",
    "datetime",
}

REGISTRY = Registry.load(Path("no-models-here"), offline=True)
SPELLINGS = [(name, version) for name in REGISTRY.extractor_names() for version in REGISTRY.versions(name)]
IMPLEMENTATIONS = sorted({REGISTRY.extractor(name, version).name for name, version in SPELLINGS})


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry.load(write_models(tmp_path_factory.mktemp("models")), offline=True)


@pytest.fixture(params=IMPLEMENTATIONS)
def extractor(request: pytest.FixtureRequest, registry: Registry) -> Extractor:
    return registry.extractor(request.param, registry.versions(request.param)[0])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Input]]:
    """Two good inputs for each bucket type."""
    folder = tmp_path_factory.mktemp("inputs")
    texts = [text for _, text in sample_media.TEXTS[:2]]
    files = {
        "a.mp4": sample_media.video(shots=sample_media.SHOTS[:2], lines=sample_media.LINES[:4]),
        "b.mkv": sample_media.video(
            shots=sample_media.SHOTS[2:3], lines=sample_media.LINES[:2], container="matroska"
        ),
        "red-circle.png": sample_media.pictures()["red-circle.png"],
        "sunset-large.webp": photograph(sample_media.pictures()["sunset-large.webp"]),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    sound_as(SPEECH, folder / "speech.flac", "flac", rate=16_000, until_s=3.2)
    sound_as(SPEECH, folder / "speech.m4a", "aac", until_s=3.2)
    good: dict[str, list[Input]] = {
        "video": [Input(path=folder / name, filename=name) for name in ("a.mp4", "b.mkv")],
        "image": [
            Input(path=folder / name, filename=name) for name in ("red-circle.png", "sunset-large.webp")
        ],
        "audio": [Input(path=folder / name, filename=name) for name in ("speech.flac", "speech.m4a")],
        "text": [Input(text=text) for text in texts],
    }
    note = sample_pages.Sheet(300, 200)
    note.text(30, 40, "A note that says where the key to the oil store hangs.")
    (folder / "report.pdf").write_bytes(sample_pages.report())
    (folder / "note.pdf").write_bytes(sample_pages.pdf([note]))
    good["pdf"] = [Input(path=folder / name, filename=name) for name in ("report.pdf", "note.pdf")]
    good["string"] = good["text"]
    return good


def samples_of(extractor: Extractor, inputs: dict[str, list[Input]]) -> list[Sample]:
    """One sample for each input of the extractor and each good file of the types that it takes."""
    found = [
        Sample({name: source})
        for name, types in extractor.inputs.items()
        for source in inputs[types[0] if types else "text"]
        if name != "subtitles"  # stands beside a video, never alone
    ]
    assert found, "teach this test a file of the type that the new extractor takes"
    return found


def features(extractor: Extractor, samples: list[Sample], params: Any = None) -> list[list[Feature]]:
    outcomes = list(extractor.extract(samples, params or extractor.Params()))
    assert len(outcomes) == len(samples)
    for outcome in outcomes:
        assert not isinstance(outcome, BadSample), outcome
    return [list(outcome) for outcome in outcomes if not isinstance(outcome, BadSample)]


def test_writes_what_it_declares(extractor: Extractor, inputs: dict[str, list[Input]]) -> None:
    outputs = extractor.outputs(extractor.Params())
    declared = {vector.name: vector for vector in outputs.vectors}
    assert {field.type for field in outputs.fields.values()} <= FIELD_TYPES
    for words in outputs.sparse:
        assert words.fields
        assert len(words.description) >= 10
    written_vectors: set[str] = set()
    written_fields: set[str] = set()
    for made in features(extractor, samples_of(extractor, inputs)):
        assert made
        positions = [feature.position for feature in made]
        assert len(set(positions)) == len(positions)
        for feature in made:
            # What has a meaning has a place; its form says all that is needed to find it again.
            if outputs.vectors:
                assert feature.locator is not None, feature
                assert locator_of({"locator": orjson.loads(orjson.dumps(feature.locator.to_json()))})
                assert fragment(feature.locator)
            written_fields |= set(feature.fields) | set(feature.files)
            for name, values in feature.vectors.items():
                written_vectors.add(name)
                assert values.shape == (declared[name].dimensions,)
                assert values.dtype == np.float32
                assert np.isfinite(values).all()
                if declared[name].distance == "cosine":
                    assert np.linalg.norm(values) == pytest.approx(1, abs=1e-4)
    assert written_vectors == set(declared)
    assert written_fields == set(outputs.fields)


def test_fields_are_json_and_features_travel(extractor: Extractor, inputs: dict[str, list[Input]]) -> None:
    for made in features(extractor, samples_of(extractor, inputs)):
        for feature in made:
            fields = dict(feature.fields)
            assert orjson.loads(orjson.dumps(fields)) == fields
            assert orjson.loads(orjson.dumps(feature.position)) == list(feature.position)
            assert pickle.loads(pickle.dumps(feature)).fields == fields
            for data, mime_type in feature.files.values():
                assert data
                assert "/" in mime_type


def test_the_same_twice(extractor: Extractor, inputs: dict[str, list[Input]]) -> None:
    def plain(all_made: Iterable[list[Feature]]) -> list[Any]:
        return [
            (
                feature.position,
                feature.fields,
                feature.files,
                {name: values.tobytes() for name, values in feature.vectors.items()},
            )
            for made in all_made
            for feature in made
        ]

    samples = samples_of(extractor, inputs)
    assert plain(features(extractor, samples)) == plain(features(extractor, samples))


def test_a_sample_alone_and_among_others_is_the_same(
    extractor: Extractor, inputs: dict[str, list[Input]]
) -> None:
    """Batching changes the last bits of a vector at most."""
    samples = samples_of(extractor, inputs)
    together = features(extractor, samples)
    for sample, made in zip(samples, together, strict=True):
        (alone,) = features(extractor, [sample])
        for one, other in zip(alone, made, strict=True):
            assert (one.position, one.fields, one.files) == (other.position, other.fields, other.files)
            for name, values in one.vectors.items():
                np.testing.assert_allclose(values, other.vectors[name], atol=1e-5)


def bad_files(folder: Path, good: Path) -> list[Path]:
    data = good.read_bytes()
    random = np.random.default_rng(3)
    noisy = bytearray(data)
    for place in random.integers(len(data) // 4, len(data), 200):
        noisy[place] = 255 - noisy[place]
    contents = {
        "empty": b"",
        "noise": random.bytes(4096),
        "playlist.m3u8": b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n",
        "page.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "head": data[:40],
        "half": data[: len(data) // 2],
        "noisy": bytes(noisy),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


def test_bad_input_is_a_typed_error_and_costs_its_own_row_only(
    extractor: Extractor, inputs: dict[str, list[Input]], tmp_path: Path
) -> None:
    """Truncated and noisy files may be readable in part; what cannot be read says so, the neighbours come."""
    samples: list[Sample] = []
    good = samples_of(extractor, inputs)
    for sample in good:
        (name, source), *_ = sample.inputs.items()
        samples.append(Sample({}))
        if source.path is not None:
            folder = tmp_path / f"{len(samples)}"
            folder.mkdir()
            samples += [Sample({name: Input(path=path)}) for path in bad_files(folder, source.path)]
        else:
            (tmp_path / "latin").write_bytes("Käse".encode("latin-1"))
            (tmp_path / "binary").write_bytes(bytes(range(256)))
            samples += [Sample({name: Input(text=" \n")}), Sample({name: Input()})]
            samples += [Sample({name: Input(path=tmp_path / file)}) for file in ("latin", "binary")]
        samples.append(sample)
    outcomes = list(extractor.extract(samples, extractor.Params()))
    assert len(outcomes) == len(samples)
    for sample, outcome in zip(samples, outcomes, strict=True):
        if isinstance(outcome, BadSample):
            assert sample not in good
            assert outcome.kind in KINDS
            assert 10 < len(outcome.message) < 400
            assert "/tmp" not in outcome.message, "an answer must not tell where the server keeps its files"
            copy = pickle.loads(pickle.dumps(outcome))
            assert (copy.kind, copy.message) == (outcome.kind, outcome.message)
        else:
            assert list(outcome)
    if extractor.outputs(extractor.Params()).vectors:
        assert isinstance(outcomes[0], BadSample)


def test_every_space_embeds_the_queries_it_names_and_refuses_others(
    extractor: Extractor, inputs: dict[str, list[Input]]
) -> None:
    query: dict[str, Any] = {"text": "boats in the harbour", "image": inputs["image"][0].path}
    for vector in extractor.outputs(extractor.Params()).vectors:
        assert vector.query_inputs
        for kind, value in query.items():
            if kind in vector.query_inputs:
                values = extractor.embed_query(vector, kind, value)
                assert values.shape == (vector.dimensions,)
                assert np.isfinite(values).all()
            else:
                with pytest.raises(BadSample) as caught:
                    extractor.embed_query(vector, kind, value)
                assert caught.value.kind == "unsupported"


def test_pinned_params_keep_the_vectors(extractor: Extractor) -> None:
    outputs = extractor.outputs(extractor.Params())
    running = {vector.name: vector.model_id for vector in outputs.vectors}
    assert extractor.outputs(extractor.pinned(extractor.Params(), running)) == outputs


def test_unknown_parameters_and_vendor_models_are_accepted(extractor: Extractor) -> None:
    params = extractor.Params.model_validate({"model": "multilingual-e5-large-instruct", "never_heard_of": 1})
    assert extractor.outputs(params) == extractor.outputs(extractor.Params())


@pytest.mark.parametrize(("name", "version"), SPELLINGS)
def test_catalogue_entry_is_complete(name: str, version: str, registry: Registry) -> None:
    entry = registry.describe(name, version)
    assert registry.by_id(f"{name}_{version}") == entry
    assert orjson.loads(orjson.dumps(entry)) == entry
    assert entry["feature_extractor_id"] == f"{name}_{version}"
    required = {
        "feature_extractor_name": str,
        "version": str,
        "description": str,
        "icon": str,
        "input_schema": dict,
        "output_schema": dict,
        "parameter_schema": dict,
        "supported_input_types": list,
        "max_inputs": dict,
        "default_parameters": dict,
        "required_vector_indexes": list,
        "required_payload_indexes": list,
        "position_fields": list,
    }
    for key, kind in required.items():
        assert isinstance(entry[key], kind), key
    for item in entry["required_vector_indexes"]:
        assert len(item["description"]) >= 10
        assert len(item["index"]["description"]) >= 10
        assert item["index"]["type"] == "sparse" or item["index"]["dimensions"] >= 1
        found = registry.resolve_feature(item["feature_uri"])
        for output in (item["name"], item["index"]["name"], item["index"]["inference_name"]):
            assert registry.resolve_feature(f"mixpeek://{name}@{version}/{output}") == found
        assert found.name == item["index"]["name"]
    for item in entry["required_payload_indexes"]:
        assert item["is_protected"] is True
        assert item["field_schema"]["type"] == item["type"]


def test_both_spellings_and_both_names_are_one_implementation(registry: Registry) -> None:
    for name in registry.extractor_names():
        assert set(registry.versions(name)) >= {"v1", "1.0.0"}
        assert registry.extractor(name, "v1") is registry.extractor(name, "1.0.0")
    video = registry.extractor("video_extractor", "1.0.0")
    assert registry.extractor("multimodal_extractor", "v1") is video
