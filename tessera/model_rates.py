"""How fast a model runs on this machine: one source at a time, and several together, as extractors run them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tessera import sample_media
from tessera.inference import Model, Models
from tessera.media import sound as sounds

#: A figure is the best of as many rounds as fit into this, two at least.
_ROUNDS_S = 2.0
_TOGETHER = 32


@dataclass(frozen=True, slots=True)
class ModelRate:
    """What was measured: `unit` a second, one source in a call and several; None where nothing could be."""

    model_id: str
    role: str
    load_s: float
    alone: float | None
    together: float | None
    unit: str

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


def measure(models: Models, model: Model, sound: Path | None = None) -> ModelRate:
    """Load a model and measure it; models of speech with the file `sound`, and not without one.

    Raises `InferenceServiceUnavailableError` for one that cannot be loaded.
    """
    before = models.loading_s
    words = [words for _, words in sample_media.TEXTS]
    if model.role == "text":
        text = models.text(model.model_id)
        return _both(models, model, before, text.embed, words, "texts/s")
    if model.role == "rerank":
        compared = partial(models.reranker(model.model_id).scores, words[0])
        return _both(models, model, before, compared, words, "texts/s")
    if model.role == "classification":
        label = models.classifier(model.model_id)
        read = partial(label.scores, max_tokens=512)
        return _both(models, model, before, read, words, "texts/s")
    if model.role == "speech":
        recogniser = models.recogniser(model.model_id)
        load_s = models.loading_s - before
        if sound is None:
            return ModelRate(
                model.model_id, model.role, load_s, None, None, "times real time (needs --sound FILE)"
            )
        blocks = list(sounds.samples(sound))
        seconds = sum(len(block) for block in blocks) / sounds.RATE

        def heard() -> None:
            for block in blocks:
                recogniser.words(block, None)

        return ModelRate(
            model.model_id, model.role, load_s, seconds / _best_s(heard), None, "times real time"
        )
    pictures = _pictures()
    if model.role == "picture":
        return _both(models, model, before, models.picture(model.model_id).embed, pictures, "pictures/s")
    if model.role == "face identity":
        crops = [picture.resize((112, 112)) for picture in pictures]
        return _both(models, model, before, models.face_embedder(model.model_id).embed, crops, "faces/s")
    if model.role == "face detection":
        look: Callable[[Any], Any] = models.face_detector(model.model_id).find
    else:
        look = models.reader().read
    load_s = models.loading_s - before
    return ModelRate(
        model.model_id, model.role, load_s, 1 / _best_s(lambda: look(pictures[0])), None, "pictures/s"
    )


def _both(
    models: Models,
    model: Model,
    before: float,
    embed: Callable[[Sequence[Any]], Any],
    items: Sequence[Any],
    unit: str,
) -> ModelRate:
    many = [items[number % len(items)] for number in range(_TOGETHER)]
    together = len(many) / _best_s(lambda: embed(many))
    alone = len(many) / _best_s(lambda: [embed([item]) for item in many])
    return ModelRate(model.model_id, model.role, models.loading_s - before, alone, together, unit)


def _best_s(run: Callable[[], Any]) -> float:
    run()  # what is made at the first call is made
    until = time.monotonic() + _ROUNDS_S
    best = float("inf")
    for _ in range(100):
        began = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - began)
        if time.monotonic() > until:
            break
    return max(best, 1e-9)


def _pictures() -> list[Any]:
    import io

    from PIL import Image

    return [Image.open(io.BytesIO(data)).convert("RGB") for data in sample_media.pictures().values()]
