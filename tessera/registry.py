"""Finds extractors and stages, describes them for the catalogue, and reads feature addresses.

Built-ins are found by scanning their packages; third parties register a class under the entry point group
``tessera.extractors`` or ``tessera.stages``, and an operator puts files into ``extractors/`` of the data directory
(``extractor_files.py``), which are in use as soon as they lie there. A built-in's name cannot be taken over.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import pkgutil
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from tessera import extractors as extractors_package
from tessera.errors import NotFoundError
from tessera.extractor_files import Broken, Folder
from tessera.extractors.base import Extractor, FieldOutput, Outputs, SparseOutput, VectorOutput
from tessera.inference import Models, find, known, open_models

if TYPE_CHECKING:
    from tessera.stages.base import Stage

logger = logging.getLogger(__name__)

EXTRACTOR_GROUP = "tessera.extractors"
STAGE_GROUP = "tessera.stages"

_TIERS = {1: "SIMPLE", 2: "MODERATE", 3: "COMPLEX", 4: "PREMIUM"}
_URI = re.compile(r"mixpeek://(?P<extractor>[^@/\s]+)@(?P<version>[^/\s]+)/(?P<output>[^/\s]+)")

#: Extractors of the API that are not in this version, each with why and with what comes nearest.
_NOT_HERE = {
    "course_content_extractor": (
        "course_content_extractor is not in this version: it needs models for source code and for slides that Tessera "
        "does not have. Nearest are document_graph_extractor for slides and documents, video_extractor for lectures, "
        "and text_extractor for code as text."
    ),
}

_Base = TypeVar("_Base")


@dataclass(frozen=True, slots=True)
class FeatureUri:
    """The address of a vector output: ``mixpeek://<extractor>@<version>/<output>``."""

    extractor: str
    version: str
    output: str

    def __str__(self) -> str:
        return f"mixpeek://{self.extractor}@{self.version}/{self.output}"


def parse_feature_uri(uri: str) -> FeatureUri:
    """Return the parts of a feature URI. Raises `ValueError` that shows the form."""
    match = _URI.fullmatch(uri.strip())
    if match is None:
        raise ValueError("a feature URI has the form mixpeek://<extractor>@<version>/<output>")
    return FeatureUri(**match.groupdict())


def match_output(outputs: Outputs, word: str) -> VectorOutput | SparseOutput | None:
    """Return the vector output, or the keyword index, that `word` names, or None.

    It may be the name in the collection, the inference name, the short name (``embedding``), an alias, or
    the model that runs; of several outputs, one that is named exactly comes first.
    """
    for spellings in (_exact_spellings, _loose_spellings):
        for vector in outputs.vectors:
            if word in spellings(vector):
                return vector
    return next((words for words in outputs.sparse if word in {words.name, words.inference_name}), None)


def short_name(vector: VectorOutput) -> str:
    """Return an output's name without its extractor: ``text_extractor_v1_embedding`` is ``embedding``."""
    return vector.name.partition("_v1_")[2] or vector.name


def _exact_spellings(vector: VectorOutput) -> set[str]:
    return {vector.name, vector.inference_name, short_name(vector)}


def _loose_spellings(vector: VectorOutput) -> set[str]:
    return {*vector.aliases, vector.model_id}


class Registry:
    """What this server can run: extractors by name and version, stages by id."""

    def __init__(
        self,
        models: Models,
        extractors: Mapping[str, Extractor],
        stages: Mapping[str, Stage] | None = None,
        *,
        files: Folder | None = None,
    ) -> None:
        self.models = models
        self._installed = dict(extractors)
        self._stages = None if stages is None else dict(stages)
        self._files = files or Folder(None)
        #: Extractors of files, by the digest of their code: a file that was changed is another one.
        self._of_files: dict[str, Extractor] = {}

    @classmethod
    def load(
        cls,
        models_dir: Path,
        *,
        offline: bool = False,
        extractors_dir: Path | None = None,
        is_worker: bool = False,
    ) -> Registry:
        """Return the registry of this process; models are shared with others over the same directory.

        `extractors_dir` is looked at whenever somebody asks for a name that is not installed; a worker
        (`is_worker`) imports what its server has tried already.
        """
        models = open_models(Path(models_dir), offline)
        classes = _extractor_classes()
        made = {one: one(models) for one in set(classes.values())}
        files = Folder(extractors_dir, frozenset(classes), is_tried=not is_worker)
        return cls(models, {name: made[one] for name, one in classes.items()}, files=files)

    # --- extractors -----------------------------------------------------------------------------------

    def generation(self, names: Iterable[str]) -> int:
        """Return a number that is another one whenever a file of extractors is; 0 where all `names` are installed.

        Nobody waits for files that are looked at, or tried, on account of somebody else's extractor.
        """
        return 0 if self._installed.keys() >= set(names) else self._files.generation

    def extractor_names(self) -> list[str]:
        """Return every registered name, sorted."""
        return sorted({*self._installed, *self._files.loaded()})

    def versions(self, name: str) -> tuple[str, ...]:
        """Return the versions of an extractor; none when the name is not known."""
        extractor = self._find(name)
        return extractor.versions if extractor else ()

    def trouble(self, name: str) -> str:
        """Return a sentence, after a blank, on why an extractor of that name cannot be used, or nothing."""
        if name in _NOT_HERE and not self.versions(name):
            return f" {_NOT_HERE[name]}"
        broken = None if name in self._installed else self._files.broken().get(name)
        if broken is None:
            return ""
        return (
            f" extractors/{broken.path.name} cannot be used: {broken.told} `tessera extractors list` and the server's "
            "log say more."
        )

    def broken_files(self) -> Mapping[str, Broken]:
        """Return the files of extractors that cannot be used, by name, each with why."""
        return self._files.broken()

    def code_of(self, name: str) -> str | None:
        """Return the digest of an extractor's code when it is a file's, which may change while we run; else None."""
        found = None if name in self._installed else self._files.loaded().get(name)
        return found.digest if found else None

    def _find(self, name: str) -> Extractor | None:
        # What is installed costs no look at the folder.
        installed = self._installed.get(name)
        if installed is not None or self._files.path is None:
            return installed
        file = self._files.loaded().get(name)
        if file is None:
            return None
        found = self._of_files.get(file.digest)
        if not isinstance(found, file.made):
            found = self._of_files[file.digest] = file.made(self.models)
        return found

    def extractor(self, name: str, version: str) -> Extractor:
        """Return an extractor under any of its names and versions. Raises `NotFoundError`.

        Names and versions that mean the same implementation give the same object: compare `name`.
        """
        found = self.find(name, version)
        if found is None:
            error = NotFoundError("feature extractor", f"{name}_{version}")
            error.message += self.trouble(name)
            raise error
        return found

    def find(self, name: str, version: str) -> Extractor | None:
        """Return an extractor under any of its names and versions; None where there is none, or none any more."""
        found = self._find(name)
        return found if found is not None and version in found.versions else None

    def by_id(self, feature_extractor_id: str) -> dict[str, Any]:
        """Return the catalogue entry of an id such as ``video_extractor_1.0.0``. Raises `NotFoundError`."""
        for name in self.extractor_names():
            version = feature_extractor_id.removeprefix(f"{name}_")
            if version in self.versions(name):
                return self.describe(name, version)
        raise NotFoundError("feature extractor", feature_extractor_id)

    def resolve_feature(self, uri: str) -> VectorOutput | SparseOutput:
        """Return the vector output, or the keyword index, that a feature URI names, with default parameters.

        Raises `ValueError` for what is no feature URI, `LookupError` for an extractor or an output that is
        not there; the message names those that are.
        """
        address = parse_feature_uri(uri)
        versions = self.versions(address.extractor)
        if not versions:
            trouble = self.trouble(address.extractor)
            if trouble:
                raise LookupError(trouble.strip().removesuffix("."))
            raise LookupError(
                f"no extractor is named {address.extractor}; there are {', '.join(self.extractor_names())}"
            )
        if address.version not in versions:
            known_ones = ", ".join(versions)
            raise LookupError(f"{address.extractor} has no version {address.version}; there are {known_ones}")
        extractor = self.extractor(address.extractor, address.version)
        outputs = extractor.outputs(extractor.Params())
        # A name that another of its names carries: multimodal_extractor_v1_… for video_extractor_v1_….
        vector = match_output(outputs, address.output) or match_output(
            outputs, address.output.replace(f"{address.extractor}_v1_", f"{extractor.name}_v1_", 1)
        )
        if vector is None:
            named: tuple[VectorOutput | SparseOutput, ...] = (*outputs.vectors, *outputs.sparse)
            there = ", ".join(output.inference_name for output in named) or "none"
            raise LookupError(f"{address.extractor} has no output {address.output}; there are {there}")
        return vector

    # --- the catalogue --------------------------------------------------------------------------------

    def catalogue(self) -> list[dict[str, Any]]:
        """Describe every extractor under every name and version, as the catalogue route answers it."""
        return [
            self.describe(name, version) for name in self.extractor_names() for version in self.versions(name)
        ]

    def describe(self, name: str, version: str) -> dict[str, Any]:
        """Return one catalogue entry; no required field is ever null."""
        extractor = self.extractor(name, version)
        params = extractor.Params()
        outputs = extractor.outputs(params)
        types = sorted({kind for kinds in extractor.inputs.values() for kind in kinds})
        schema = extractor.Params.model_json_schema()
        return {
            "feature_extractor_name": name,
            "version": version,
            "feature_extractor_id": f"{name}_{version}",
            "description": extractor.description,
            "icon": extractor.icon,
            "category": extractor.category,
            "source": "builtin" if _is_builtin(type(extractor)) else "custom",
            "input_schema": {
                "type": "object",
                "properties": {key: _input_schema(kinds) for key, kinds in extractor.inputs.items()},
            },
            "output_schema": {
                "type": "object",
                "properties": {key: _field_schema(field) for key, field in outputs.fields.items()},
            },
            "parameter_schema": schema,
            "supported_input_types": types,
            "max_inputs": dict(extractor.max_inputs),
            "default_parameters": params.model_dump(mode="json"),
            "costs": {"tier": extractor.cost_tier, "tier_label": _TIERS[extractor.cost_tier], "rates": []},
            "required_vector_indexes": [
                *(_vector_index(vector, extractor, name, version) for vector in outputs.vectors),
                *(_sparse_index(words, name, version) for words in outputs.sparse),
            ],
            "required_payload_indexes": [
                index.model_copy(update={"is_protected": True}).model_dump(mode="json")
                for index in outputs.indexes
            ],
            "position_fields": list(extractor.positions),
        }

    # --- stages ---------------------------------------------------------------------------------------

    @property
    def stages(self) -> Mapping[str, Stage]:
        """Every stage by its own id."""
        if self._stages is None:
            self._stages = {name: made() for name, made in _stage_classes().items()}
        return self._stages

    def stage(self, stage_id: str) -> Stage | None:
        """Return the stage of that id, or of that further name; None when there is none."""
        direct = self.stages.get(stage_id)
        if direct is not None:
            return direct
        return next((stage for stage in self.stages.values() if stage_id in stage.also_named), None)


# --- finding ------------------------------------------------------------------------------------------


@functools.cache
def _extractor_classes() -> dict[str, type[Extractor]]:
    found: dict[str, type[Extractor]] = {}
    base: Any = Extractor  # abstract: only its concrete subclasses are made
    for made in (*_scan(extractors_package, base), *_entry_points(EXTRACTOR_GROUP, base)):
        for name in (made.name, *made.also_named):
            if name in found:
                logger.warning("%s is not registered as %s: the name is taken.", made.__qualname__, name)
            else:
                found[name] = made
    return found


@functools.cache
def _stage_classes() -> dict[str, type[Stage]]:
    from tessera import stages as stages_package
    from tessera.stages.base import Stage

    found: dict[str, type[Stage]] = {}
    base: Any = Stage
    for made in (*_scan(stages_package, base), *_entry_points(STAGE_GROUP, base)):
        if made.stage_id in found:
            logger.warning("%s is not registered as %s: the id is taken.", made.__qualname__, made.stage_id)
        else:
            found[made.stage_id] = made
    return found


def _scan(package: ModuleType, base: type[_Base]) -> Iterator[type[_Base]]:
    """Yield the concrete subclasses of `base` that a package's modules define, modules by name."""
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda module: module.name):
        if module.name != "base":
            loaded = importlib.import_module(f"{package.__name__}.{module.name}")
            for _, value in inspect.getmembers(loaded, inspect.isclass):
                if (
                    issubclass(value, base)
                    and value.__module__ == loaded.__name__
                    and not inspect.isabstract(value)
                ):
                    yield value


def _entry_points(group: str, base: type[_Base]) -> Iterator[type[_Base]]:
    """Yield what third parties register. One that cannot be loaded is logged and left out."""
    for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
        try:
            value = entry.load()
        except Exception:  # whatever a foreign package raises when imported; the server starts without it
            logger.exception("%s %s (%s) cannot be loaded.", group, entry.name, entry.value)
            continue
        if inspect.isclass(value) and issubclass(value, base):
            yield value
        else:
            logger.error("%s %s (%s) is no %s.", group, entry.name, entry.value, base.__name__)


def _is_builtin(made: type[Extractor]) -> bool:
    return made.__module__.startswith(f"{extractors_package.__name__}.")


# --- describing ---------------------------------------------------------------------------------------


def _vector_index(vector: VectorOutput, extractor: Extractor, name: str, version: str) -> dict[str, Any]:
    running = find(vector.model_id)
    inputs = [kind for kinds in extractor.inputs.values() for kind in kinds]
    return {
        "name": short_name(vector),
        "description": vector.description,
        "type": "single",
        "feature_uri": str(FeatureUri(name, version, vector.inference_name)),
        "index": {
            "name": vector.name,
            "description": vector.description,
            "dimensions": vector.dimensions,
            "type": "dense",
            "distance": vector.distance,
            "datatype": "float32",
            "on_disk": False,
            "supported_inputs": list(dict.fromkeys(inputs)),
            "inference_name": vector.inference_name,
            "inference_service_id": known(running.model_id).service_id if running else vector.model_id,
            "purpose": vector.purpose,
        },
    }


def _sparse_index(words: SparseOutput, name: str, version: str) -> dict[str, Any]:
    return {
        "name": words.name,
        "description": words.description,
        "type": "single",
        "feature_uri": str(FeatureUri(name, version, words.inference_name)),
        "index": {
            "name": words.name,
            "description": words.description,
            "type": "sparse",
            "distance": "dot",
            "datatype": "float32",
            "on_disk": False,
            "supported_inputs": ["text", "string"],
            "inference_name": words.inference_name,
            "inference_service_id": f"qdrant/{words.inference_name}",
            "purpose": "text",
        },
    }


def _input_schema(kinds: tuple[str, ...]) -> dict[str, Any]:
    return {"type": kinds[0] if kinds else "any", "accepts": list(kinds)}


def _field_schema(field: FieldOutput) -> dict[str, Any]:
    return {"type": field.type, "description": field.description}
