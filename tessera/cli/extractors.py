"""``tessera extractors``: which extractors there are, and a new one of the operator's own in one file."""

from __future__ import annotations

import argparse
import os
import re
import runpy
import traceback
from pathlib import Path
from typing import Any

from tessera.cli.options import add_data, load
from tessera.cli.terminal import (
    EXIT_FAILED,
    EXIT_IN_PART,
    EXIT_OK,
    EXIT_USAGE,
    CommandError,
    note,
    print_table,
)


def add(commands: Any) -> None:
    """Add the command ``extractors``."""
    extractors = commands.add_parser(
        "extractors",
        help="list extractors, write one of your own, test it",
        description="Extractors turn sources into documents. One of your own is a file in DATA/extractors: a server "
        "that runs takes it into use with the next request that asks for it. Such a file is code that runs with the "
        "server's rights.",
    )
    add_data(extractors)
    extractors.set_defaults(run=_list)
    actions = extractors.add_subparsers(metavar="ACTION")

    listing = actions.add_parser(
        "list", help="list extractors; the same as no action. Exit code 5: a file is broken"
    )
    _add_data(listing)
    listing.set_defaults(run=_list)

    new = actions.add_parser(
        "new",
        help="write a working extractor and its test",
        description="Write DATA/extractors/NAME.py, an extractor that works as it is, and test_NAME.py beside it.",
    )
    new.add_argument("name", metavar="NAME", help="small letters, digits, underscores: reading_time")
    _add_data(new)
    new.set_defaults(run=_new)

    test = actions.add_parser(
        "test",
        help="run the test beside an extractor",
        description="Run every test_… function of DATA/extractors/test_NAME.py. pytest runs the same file too.",
    )
    test.add_argument("name", metavar="NAME")
    _add_data(test)
    test.set_defaults(run=_test)


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", metavar="DIR", default=argparse.SUPPRESS, help="data directory (tessera-data)"
    )


def _list(options: argparse.Namespace) -> int:
    from tessera.registry import Registry

    settings = load(options).settings
    registry = Registry.load(settings.models_path, offline=True, extractors_dir=settings.extractors_path)
    rows = [("NAME", "VERSIONS", "SOURCE", "TAKES", "DESCRIPTION")]
    for name in registry.extractor_names():
        entry = registry.describe(name, registry.versions(name)[0])
        rows.append(
            (
                name,
                ", ".join(registry.versions(name)),
                f"{name}.py" if registry.code_of(name) else entry["source"],
                ", ".join(entry["supported_input_types"]) or "anything",
                entry["description"],
            )
        )
    print_table(rows)
    broken = registry.broken_files()
    for name, file in sorted(broken.items()):
        note(f"{file.path}: cannot be used: {file.reason}")
        note(f"  {name} is left out; put the file right and run this again.")
    return EXIT_IN_PART if broken else EXIT_OK


def _new(options: argparse.Namespace) -> int:
    from tessera import data_directory
    from tessera.extractor_files import NAME
    from tessera.registry import Registry

    settings = load(options).settings
    name: str = options.name
    if not NAME.fullmatch(name):
        raise CommandError(
            f"{name!r} is no name for an extractor: 3 to 63 small letters, digits and underscores, a letter first.",
            EXIT_USAGE,
        )
    if name in Registry.load(settings.models_path, offline=True).extractor_names():
        raise CommandError(f"{name} is the name of an extractor that is built in or installed.", EXIT_USAGE)
    os.umask(0o077)
    data_directory.prepare(settings.data)
    folder = settings.extractors_path
    folder.mkdir(mode=0o700, exist_ok=True)
    texts = {folder / f"{name}.py": _EXTRACTOR, folder / f"test_{name}.py": _TEST}
    there = [path for path in texts if path.exists()]
    if there:
        raise CommandError(f"{there[0]} is there already; choose another name, or remove it.")
    words = re.sub(r"(?:^|_)([a-z0-9])", lambda match: match[1].upper(), name)
    for path, text in reversed(
        texts.items()
    ):  # the test first: the extractor is in use as soon as it is there
        data_directory.write_private(path, text.replace("@NAME@", name).replace("@CLASS@", words).encode())
    print(f"Wrote {folder / name}.py and its test.")
    note(f"Test it: tessera extractors test {name}")
    note(
        f'Use it: {{"feature_extractor_name": "{name}", "version": "v1"}} in POST /v1/namespaces. A server on'
    )
    note(f"{settings.data} needs no restart: the next request that names it finds it.")
    return EXIT_OK


def _test(options: argparse.Namespace) -> int:
    os.umask(0o077)
    folder = load(options).settings.extractors_path
    path = Path(folder, f"test_{options.name}.py")
    if not path.is_file():
        raise CommandError(
            f"there is no {path}; `tessera extractors new NAME` writes an extractor with its test."
        )
    try:
        found = runpy.run_path(str(path))
    except Exception as error:
        raise CommandError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    tests = {name: value for name, value in found.items() if name.startswith("test_") and callable(value)}
    if not tests:
        raise CommandError(f"{path} has no function test_….")
    failed = 0
    for name, test in tests.items():
        try:
            test()
        except Exception as error:  # noqa: BLE001  whatever a test raises, it has failed
            failed += 1
            print(f"failed  {name}: {str(error) or type(error).__name__}")
            note("".join(traceback.format_exception(error)))
        else:
            print(f"ok      {name}")
    return EXIT_FAILED if failed else EXIT_OK


_EXTRACTOR = '''\
"""@NAME@: texts found by meaning, with how long it takes to read them.

This file is in use by the server on this data directory. Change what it does, run `tessera extractors test @NAME@`,
and submit a batch again: sources whose extractor changed are extracted anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from tessera.errors import BadSample, InferenceServiceUnavailableError
from tessera.extractors.base import (
    Extractor,
    Feature,
    FieldOutput,
    Input,
    Locator,
    Outputs,
    Params,
    Sample,
    VectorOutput,
    words_of,
)
from tessera.models import IndexType, PayloadIndex

VECTOR = "@NAME@_v1_embedding"  # vectors are named <extractor>_v1_<output>


class @CLASS@Params(Params):
    """What a collection may set; every parameter has a default."""

    words_per_minute: int = Field(200, ge=50, le=1000, description="How fast people read.")


class @CLASS@(Extractor):
    """One document for each text."""

    name = "@NAME@"  # the name of the file
    versions = ("v1",)
    description = "Texts found by meaning, with how long it takes to read them."
    inputs = {"text": ("text", "string")}  # name of the input: types of a bucket's properties
    Params = @CLASS@Params

    def outputs(self, params: @CLASS@Params) -> Outputs:
        """Say what `extract` writes: a vector, two fields, an index on one of them. No model is loaded here."""
        model = self.models.choose("text")
        vector = VectorOutput(
            name=VECTOR,
            dimensions=model.dimensions,
            inference_name=model.model_id,
            model_id=model.model_id,
            description=f"Meaning of the text, by {model.model_id}.",
        )
        fields = {
            "text": FieldOutput("string", "The text."),
            "reading_minutes": FieldOutput("number", "Minutes to read it."),
        }
        index = PayloadIndex(
            field_name="reading_minutes", type=IndexType.FLOAT, field_schema={"type": "float"}
        )
        return Outputs((vector,), fields, indexes=(index,), sparse=(words_of("text"),))

    def extract(
        self, samples: Sequence[Sample], params: @CLASS@Params
    ) -> Iterator[Iterable[Feature] | BadSample]:
        """Yield for each sample, in order, its documents, or why there are none."""
        texts = [read(sample.inputs.get("text")) for sample in samples]
        good = [text for text in texts if isinstance(text, str)]
        try:
            # All texts at once: a model is faster with many.
            vectors = iter(self.models.text(self.models.choose("text").model_id).embed(good) if good else ())
        except InferenceServiceUnavailableError as error:
            missing = BadSample("model_missing", error.message)
            texts = [text if isinstance(text, BadSample) else missing for text in texts]
            vectors = iter(())
        for text in texts:
            if isinstance(text, BadSample):
                yield text
                continue
            minutes = len(text.split()) / params.words_per_minute
            yield [
                Feature(
                    fields={"text": text, "reading_minutes": round(minutes, 2)},
                    vectors={VECTOR: next(vectors)},
                    locator=Locator.in_text(0, len(text)),  # where in the source it lies
                )
            ]

    def embed_query(self, vector: VectorOutput, kind: str, value: str | Path) -> Any:
        """Return the vector of a query, so that the documents are found."""
        if kind != "text":
            return super().embed_query(vector, kind, value)  # says that it cannot
        return self.models.text(vector.model_id).embed_query(str(value))

    def pinned(self, params: @CLASS@Params, running: Mapping[str, str]) -> @CLASS@Params:
        """Return `params` as they are: this extractor has no choice of models."""
        return params


def read(source: Input | None) -> str | BadSample:
    """Return the text of an input, or why there is none."""
    if source is None or (source.text is None and source.path is None):
        return BadSample("unreadable", "The object has no text for the input `text`.")
    try:
        text = source.text if source.path is None else source.path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return BadSample("unreadable", "The file is not a text in UTF-8.")
    if text is None or not text.strip():
        return BadSample("unreadable", "The text is blank.")
    return text
'''

_TEST = '''\
"""The test of @NAME@. Run it: tessera extractors test @NAME@ (or pytest)."""

from __future__ import annotations

from pathlib import Path

from tessera.testing import check_extractor, load_extractor, text

EXTRACTOR = load_extractor(Path(__file__).with_name("@NAME@.py"))
SAMPLES = [text("A lighthouse at dusk, its lamp just lit."), text("Rain over the old harbour.")]


def test_it_keeps_what_every_extractor_keeps() -> None:
    """What is declared is written, twice the same, and bad input is a typed error."""
    check_extractor(EXTRACTOR, SAMPLES)


def test_it_says_how_long_a_text_takes_to_read() -> None:
    """Two hundred words take a minute, unless the collection says otherwise."""
    samples = [text("word " * 200)]
    (documents,) = EXTRACTOR.extract(samples, EXTRACTOR.Params())
    assert [document.fields["reading_minutes"] for document in documents] == [1.0]
    (documents,) = EXTRACTOR.extract(samples, EXTRACTOR.Params(words_per_minute=100))
    assert [document.fields["reading_minutes"] for document in documents] == [2.0]
'''
