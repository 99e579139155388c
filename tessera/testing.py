"""For the tests of extractors: what every extractor keeps, as functions that say what one does not.

A test of an extractor of your own needs no server and no pytest::

    from pathlib import Path

    from tessera.testing import check_extractor, load_extractor, text

    EXTRACTOR = load_extractor(Path(__file__).with_name("my_extractor.py"))


    def test_it_keeps_what_every_extractor_keeps() -> None:
        check_extractor(EXTRACTOR, [text("A lighthouse at dusk."), text("Rain over the harbour.")])

Tessera's own extractors are tested with the same functions. Each raises `AssertionError` with what is wrong.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from tessera.config import Settings
from tessera.errors import BadSample
from tessera.extractor_files import FIELD_TYPES, instance
from tessera.extractors.base import Extractor, Feature, Input, Outputs, Sample
from tessera.inference import open_models
from tessera.locators import fragment, locator_of

__all__ = [
    "check_bad_input",
    "check_company",
    "check_declarations",
    "check_extractor",
    "check_pinned",
    "check_queries",
    "check_twice",
    "check_values",
    "file",
    "load_extractor",
    "text",
]

#: The kinds of a `BadSample`.
KINDS = frozenset({"unreadable", "unsupported", "too_large", "missing_input", "model_missing", "limit"})


def load_extractor(path: Path) -> Extractor:
    """Return the extractor of a file. Its models are looked for where a server on its data directory does.

    Raises `ValueError` that says why it cannot be used.
    """
    settings = Settings(data=path.resolve().parent.parent)
    return instance(path.resolve(), open_models(settings.models_path, True))


def text(value: str, name: str = "text") -> Sample:
    """Return a sample with one input, a text."""
    return Sample({name: Input(text=value)})


def file(path: Path, name: str, mime_type: str | None = None) -> Sample:
    """Return a sample with one input, a file, under the extractor's name of that input."""
    return Sample({name: Input(path=path, filename=path.name, mime_type=mime_type)})


def check_extractor(extractor: Extractor, samples: Sequence[Sample], params: Any = None) -> None:
    """Check everything with good `samples`, each of which gives at least one document.

    What is declared is what is written; the same twice, alone and among others; values that can be stored; bad input
    is a typed error and costs its own row only; each vector space embeds the queries that it names.
    """
    params = extractor.Params() if params is None else params
    _require(samples, "at least one sample is needed.")
    check_declarations(extractor, samples, params)
    check_values(extractor, samples, params)
    check_twice(extractor, samples, params)
    check_company(extractor, samples, params)
    with tempfile.TemporaryDirectory() as folder:
        check_bad_input(extractor, samples, Path(folder), params)
    check_pinned(extractor, params)
    check_queries(extractor, {"text": "boats in the harbour"}, params)


def check_declarations(extractor: Extractor, samples: Sequence[Sample], params: Any = None) -> None:
    """Check that `samples` together give every vector and field that `outputs` declares, and no other."""
    params = extractor.Params() if params is None else params
    outputs = extractor.outputs(params)
    unknown = sorted({field.type for field in outputs.fields.values()} - FIELD_TYPES)
    _require(not unknown, f"fields are declared with types that do not exist: {unknown}.")
    for words in outputs.sparse:
        _require(words.fields, f"the keyword index {words.name} has no fields.")
        _require(len(words.description) >= 10, f"the description of {words.name} is too short.")
    vectors: set[str] = set()
    fields: set[str] = set()
    for made in _features(extractor, samples, params):
        _require(made, "a good sample gave no document.")
        positions = [feature.position for feature in made]
        _require(len(set(positions)) == len(positions), f"two documents have one position: {positions}.")
        for feature in made:
            fields |= {*feature.fields, *feature.files}
            vectors |= {*feature.vectors}
            _check_feature(feature, outputs)
    declared = {vector.name for vector in outputs.vectors}
    _require(vectors == declared, f"vectors {sorted(declared)} are declared, {sorted(vectors)} written.")
    _require(
        fields == set(outputs.fields),
        f"fields {sorted(outputs.fields)} are declared, {sorted(fields)} written.",
    )


def _check_feature(feature: Feature, outputs: Outputs) -> None:
    if outputs.vectors:
        # What has a meaning has a place; its form says all that is needed to find it again.
        _require(feature.locator is not None, "a document with a vector needs a `locator`.")
        assert feature.locator is not None
        stored = locator_of({"locator": orjson.loads(orjson.dumps(feature.locator.to_json()))})
        _require(stored is not None, f"the locator {feature.locator} does not survive being stored.")
        _require(fragment(feature.locator), f"the locator {feature.locator} names no place in its source.")
    declared = {vector.name: vector for vector in outputs.vectors}
    for name, values in feature.vectors.items():
        _require(name in declared, f"vector {name} is written but not declared.")
        shape = (declared[name].dimensions,)
        _require(values.shape == shape, f"vector {name} is declared as {shape}, written as {values.shape}.")
        _require(values.dtype == np.float32, f"vector {name} is {values.dtype}, not float32.")
        _require(np.isfinite(values).all(), f"vector {name} holds what is no finite number.")
        if declared[name].distance == "cosine":
            length = float(np.linalg.norm(values))
            _require(
                abs(length - 1) < 1e-4, f"vector {name} has length {length:.4f}, not 1 (distance cosine)."
            )


def check_values(extractor: Extractor, samples: Sequence[Sample], params: Any = None) -> None:
    """Check that fields and positions are JSON, that files have content and type, that features can be sent on."""
    for made in _features(extractor, samples, params):
        for feature in made:
            fields = dict(feature.fields)
            _require(_as_json(fields) == fields, f"the fields are changed by JSON: {fields}.")
            _require(
                _as_json(feature.position) == list(feature.position),
                f"the position {feature.position} is not made of texts and integers.",
            )
            sent = pickle.loads(pickle.dumps(feature))  # noqa: S301  our own, made here
            _require(sent.fields == fields, "a feature is another one after pickling.")
            for name, (data, mime_type) in feature.files.items():
                _require(data, f"file {name} is empty.")
                _require("/" in mime_type, f"file {name} has the media type {mime_type!r}.")


def _as_json(value: Any) -> Any:
    try:
        return orjson.loads(orjson.dumps(value))
    except orjson.JSONEncodeError as error:
        raise AssertionError(f"{value!r} cannot be written as JSON: {error}.") from error


def check_twice(extractor: Extractor, samples: Sequence[Sample], params: Any = None) -> None:
    """Check that the same samples give the same, bit for bit."""

    def plain(all_made: list[list[Feature]]) -> list[Any]:
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

    once, again = (_features(extractor, samples, params) for _ in range(2))
    _require(plain(once) == plain(again), "the same samples gave something else the second time.")


def check_company(extractor: Extractor, samples: Sequence[Sample], params: Any = None) -> None:
    """Check that a sample gives the same alone as among others, but for the last bits of a vector."""
    for sample, made in zip(samples, _features(extractor, samples, params), strict=True):
        (alone,) = _features(extractor, [sample], params)
        _require(len(alone) == len(made), f"{len(alone)} documents alone, {len(made)} among others.")
        for one, other in zip(alone, made, strict=True):
            _require(
                (one.position, one.fields, one.files) == (other.position, other.fields, other.files),
                f"a document is another one among others: {one.fields} and {other.fields}.",
            )
            for name, values in one.vectors.items():
                np.testing.assert_allclose(values, other.vectors[name], atol=1e-5)


def check_bad_input(
    extractor: Extractor, samples: Sequence[Sample], folder: Path, params: Any = None
) -> None:
    """Check that what cannot be read is a `BadSample` in its own place, between good samples that come.

    Truncated and noisy files may be readable in part. `folder` is empty; bad files are written there.
    """
    params = extractor.Params() if params is None else params
    tried: list[Sample] = []
    for sample in samples:
        (name, source), *_ = sample.inputs.items()
        tried.append(Sample({}))
        if source.path is not None:
            here = folder / str(len(tried))
            here.mkdir()
            tried += [Sample({name: Input(path=path)}) for path in _bad_files(here, source.path)]
        else:
            (folder / "latin").write_bytes("Käse".encode("latin-1"))
            (folder / "binary").write_bytes(bytes(range(256)))
            tried += [Sample({name: Input(text=" \n")}), Sample({name: Input()})]
            tried += [Sample({name: Input(path=folder / bad)}) for bad in ("latin", "binary")]
        tried.append(sample)
    outcomes = list(extractor.extract(tried, params))
    _require(
        len(outcomes) == len(tried), f"{len(tried)} samples gave {len(outcomes)} outcomes; each gives one."
    )
    for sample, outcome in zip(tried, outcomes, strict=True):
        if isinstance(outcome, BadSample):
            _require(sample not in samples, f"a good sample was refused: {outcome.message}")
            _check_refusal(outcome, folder)
        else:
            _require(list(outcome), f"neither a document nor a reason came of {sample}.")
    if extractor.outputs(params).vectors:
        _require(isinstance(outcomes[0], BadSample), "a sample without any input was not refused.")


def _check_refusal(bad: BadSample, folder: Path) -> None:
    _require(bad.kind in KINDS, f"a BadSample has kind {bad.kind!r}; there are {sorted(KINDS)}.")
    _require(10 < len(bad.message) < 400, f"the message {bad.message!r} is too short or too long.")
    _require(
        str(folder) not in bad.message and "/tmp" not in bad.message,  # noqa: S108
        f"a message must not tell where the server keeps its files: {bad.message}",
    )
    copy = pickle.loads(pickle.dumps(bad))  # noqa: S301  our own, made here
    _require(
        (copy.kind, copy.message) == (bad.kind, bad.message), "a BadSample is another one after pickling."
    )


def _bad_files(folder: Path, good: Path) -> list[Path]:
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


def check_queries(extractor: Extractor, queries: dict[str, Any], params: Any = None) -> None:
    """Check that each vector space embeds the kinds of query that it names, and refuses the others of `queries`."""
    for vector in extractor.outputs(extractor.Params() if params is None else params).vectors:
        _require(vector.query_inputs, f"{vector.name} names no kind of query.")
        for kind, value in queries.items():
            if kind in vector.query_inputs:
                values = extractor.embed_query(vector, kind, value)
                shape = (vector.dimensions,)
                _require(values.shape == shape, f"a query for {vector.name} is {values.shape}, not {shape}.")
                _require(np.isfinite(values).all(), f"a query for {vector.name} holds no finite number.")
            else:
                with _refused(f"{vector.name} took a query of kind {kind}, which it does not name."):
                    extractor.embed_query(vector, kind, value)


@contextmanager
def _refused(message: str) -> Iterator[None]:
    try:
        yield
    except BadSample as error:
        _require(error.kind == "unsupported", f"a query was refused as {error.kind}, not as unsupported.")
    else:
        raise AssertionError(message)


def check_pinned(extractor: Extractor, params: Any = None) -> None:
    """Check that parameters held to the models that run write what they wrote before."""
    params = extractor.Params() if params is None else params
    outputs = extractor.outputs(params)
    running = {vector.name: vector.model_id for vector in outputs.vectors}
    _require(
        extractor.outputs(extractor.pinned(params, running)) == outputs,
        "`pinned` changes what is written although the same models run.",
    )


def _features(extractor: Extractor, samples: Sequence[Sample], params: Any = None) -> list[list[Feature]]:
    outcomes = list(extractor.extract(samples, extractor.Params() if params is None else params))
    _require(
        len(outcomes) == len(samples),
        f"{len(samples)} samples gave {len(outcomes)} outcomes; each gives one.",
    )
    made: list[list[Feature]] = []
    for outcome in outcomes:
        if isinstance(outcome, BadSample):
            raise AssertionError(f"a good sample was refused: {outcome.message}") from outcome
        made.append(list(outcome))
    return made


def _require(condition: object, message: str) -> None:
    if not condition:
        raise AssertionError(message)
