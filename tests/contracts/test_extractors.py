"""What every extractor keeps, built in or a third party's: parametrised over the registry, so that a new one
is tested on arrival.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tessera import sample_media, sample_pages, testing
from tessera.extractors.base import Extractor, Input, Sample
from tessera.inference import SENTIMENT
from tessera.registry import Registry
from tests import office
from tests.faces import write_models
from tests.media import SPEECH, photograph, sound_as
from tests.sentiment import write_classifier
from tests.website import Site, fetcher_of_tests, serving

REGISTRY = Registry.load(Path("no-models-here"), offline=True)
SPELLINGS = [(name, version) for name in REGISTRY.extractor_names() for version in REGISTRY.versions(name)]
IMPLEMENTATIONS = sorted({REGISTRY.extractor(name, version).name for name, version in SPELLINGS})


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = write_models(tmp_path_factory.mktemp("models"))
    write_classifier(folder / SENTIMENT)
    made = Registry.load(folder, offline=True)
    made.extractor("web_scraper", "v1").fetcher = fetcher_of_tests()
    return made


@pytest.fixture(params=IMPLEMENTATIONS)
def extractor(request: pytest.FixtureRequest, registry: Registry) -> Extractor:
    return registry.extractor(request.param, registry.versions(request.param)[0])


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with serving() as found:
        found.serve("/robots.txt", b"", 404)
        found.serve("/", office.HTML.encode(), Content_Type="text/html")
        found.serve("/home", b"<p>Home of the keepers.</p>", Content_Type="text/html")
        found.serve("/keepers.html", b"", 404)  # a 500 would be tried again for seven seconds
        yield found


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, site: Site) -> dict[str, list[Input]]:
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
    for name, data in (("lamp.docx", office.docx_file()), ("lamp.pptx", office.pptx_file())):
        (folder / name).write_bytes(data)
    names = ("report.pdf", "note.pdf", "lamp.docx", "lamp.pptx")
    good["pdf"] = [Input(path=folder / name, filename=name) for name in names]
    (folder / "parts.xlsx").write_bytes(office.xlsx_file())
    (folder / "parts.csv").write_bytes(office.CSV)
    good["excel"] = [Input(path=folder / name, filename=name) for name in ("parts.xlsx", "parts.csv")]
    (folder / "lamp.html").write_text(office.HTML, encoding="utf-8")
    good["html"] = [Input(path=folder / "lamp.html", filename="lamp.html"), Input(text=office.HTML)]
    good["string"] = good["text"]
    good["url"] = [Input(text=site.url("/")), Input(text=site.url("/home"))]
    return good


def samples_of(extractor: Extractor, inputs: dict[str, list[Input]]) -> list[Sample]:
    """One sample for each input of the extractor and each good file of its name, or of the types that it takes."""
    found = [
        Sample({name: source})
        for name, types in extractor.inputs.items()
        for source in inputs.get(name) or inputs[types[0] if types else "text"]
        if name != "subtitles"  # stands beside a video, never alone
    ]
    assert found, "teach this test a file of the type that the new extractor takes"
    return found


def test_writes_what_it_declares(extractor: Extractor, inputs: dict[str, list[Input]]) -> None:
    testing.check_declarations(extractor, samples_of(extractor, inputs))


def test_fields_are_json_and_features_travel(extractor: Extractor, inputs: dict[str, list[Input]]) -> None:
    testing.check_values(extractor, samples_of(extractor, inputs))


def test_the_same_twice(extractor: Extractor, inputs: dict[str, list[Input]]) -> None:
    testing.check_twice(extractor, samples_of(extractor, inputs))


def test_a_sample_alone_and_among_others_is_the_same(
    extractor: Extractor, inputs: dict[str, list[Input]]
) -> None:
    """Batching changes the last bits of a vector at most."""
    testing.check_company(extractor, samples_of(extractor, inputs))


def test_bad_input_is_a_typed_error_and_costs_its_own_row_only(
    extractor: Extractor, inputs: dict[str, list[Input]], tmp_path: Path
) -> None:
    """Truncated and noisy files may be readable in part; what cannot be read says so, the neighbours come."""
    testing.check_bad_input(extractor, samples_of(extractor, inputs), tmp_path)


def test_every_space_embeds_the_queries_it_names_and_refuses_others(
    extractor: Extractor, inputs: dict[str, list[Input]]
) -> None:
    testing.check_queries(extractor, {"text": "boats in the harbour", "image": inputs["image"][0].path})


def test_pinned_params_keep_the_vectors(extractor: Extractor) -> None:
    testing.check_pinned(extractor)


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
        # The clients' classes know these; another one and they read no catalogue at all.
        assert item["index"]["purpose"] in {"text", "code", "image", "multimodal", "video", "audio", "sparse"}
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
