"""Pictures: one document each, with its vector, its size, when and where it was taken, and a thumbnail."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from tessera import media
from tessera.errors import InferenceServiceUnavailableError
from tessera.extractors.base import (
    BadSample,
    Extractor,
    Feature,
    FieldOutput,
    Locator,
    Outputs,
    Params,
    Sample,
    VectorOutput,
)

Vector = npt.NDArray[np.float32]


#: Pictures that are decoded and embedded together.
AT_ONCE = 8


class ImageParams(Params):
    """Which model reads the pictures, and whether thumbnails are made."""

    enable_thumbnails: bool = Field(True, description="Make a JPEG of at most 480 pixels a side.")
    read_exif: bool = Field(
        True, description="Keep when and where the picture was taken; false leaves both out, for privacy."
    )
    model: str | None = Field(
        None,
        description="Picture model; a vendor's name stands for the default. `tessera models` lists ours.",
    )


class ImageExtractor(Extractor):
    """Pictures found by picture, and by words where the model knows words."""

    name = "image_extractor"
    description = "Embeds a picture, so that it is found by a picture (with CLIP installed also by words)."
    icon = "image"
    category = "image"
    inputs: ClassVar[Mapping[str, tuple[str, ...]]] = {"image": ("image",)}
    max_inputs: ClassVar[Mapping[str, int]] = {"image": 1}
    Params = ImageParams
    vector_name = "image_extractor_v1_embedding"

    def outputs(self, params: ImageParams) -> Outputs:
        """Return the vector, the picture's size, and the thumbnail unless it is not wanted."""
        model = self.models.choose("picture", params.model)
        vector = VectorOutput(
            name=self.vector_name,
            dimensions=model.dimensions,
            inference_name="google_siglip_base_v1",
            model_id=model.model_id,
            description=f"Look of the picture, by {model.model_id}. {model.description}",
            query_inputs=model.query_inputs,
            aliases=("embedding", "image_embedding", "image"),
            purpose="image",
        )
        fields = {
            "width": FieldOutput("integer", "Width in pixels, as displayed."),
            "height": FieldOutput("integer", "Height in pixels, as displayed."),
        }
        if params.read_exif:
            fields["taken_at"] = FieldOutput("datetime", "When it was taken, in the camera's own time.")
            fields["taken_where"] = FieldOutput("object", "Where it was taken: `lat` and `lon` in degrees.")
        if params.enable_thumbnails:
            fields["thumbnail_url"] = FieldOutput("string", "A JPEG of at most 480 pixels a side.")
        return Outputs((vector,), fields)

    def extract(
        self, samples: Sequence[Sample], params: ImageParams
    ) -> Iterator[Iterable[Feature] | BadSample]:
        """Yield one document a picture."""
        try:
            model = self.models.picture(self.models.choose("picture", params.model).model_id)
        except (BadSample, InferenceServiceUnavailableError) as error:
            for _ in samples:
                yield BadSample("model_missing", error.message)
            return
        for start in range(0, len(samples), AT_ONCE):
            opened = [_opened(sample) for sample in samples[start : start + AT_ONCE]]
            pictures = [one.image for one in opened if not isinstance(one, BadSample)]
            # All of them at once: a model is faster with several.
            vectors: Iterator[Vector] = iter(model.embed(pictures)) if pictures else iter(())
            for picture in opened:
                if isinstance(picture, BadSample):
                    yield picture
                    continue
                found = {self.vector_name: next(vectors)}
                try:
                    feature = picture_feature(picture, found, with_thumbnail=params.enable_thumbnails)
                except BadSample as error:
                    yield error
                else:
                    yield [replace(feature, fields={**feature.fields, **_taken(picture, params)})]

    def embed_query(self, vector: VectorOutput, kind: str, value: str | Path) -> Vector:
        """Return the vector of a query picture, or of words where the space holds them."""
        return embed_picture_query(self, vector, kind, value)


def _opened(sample: Sample) -> media.Picture | BadSample:
    """Return the picture of a sample, or why there is none."""
    source = sample.inputs.get("image")
    if source is None or source.path is None:
        return BadSample(
            "missing_input", "The source has no file as input `image`; map one in `input_mappings`."
        )
    try:
        return media.open_picture(source.path)
    except BadSample as error:
        return error


def _taken(picture: media.Picture, params: ImageParams) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if params.read_exif and picture.taken.at is not None:
        fields["taken_at"] = picture.taken.at
    if params.read_exif and picture.taken.place is not None:
        fields["taken_where"] = dict(zip(("lat", "lon"), picture.taken.place, strict=True))
    return fields


def picture_feature(
    picture: media.Picture,
    vectors: Mapping[str, Vector],
    position: tuple[str, ...] = (),
    *,
    with_thumbnail: bool,
) -> Feature:
    """Return the document of a picture."""
    files = {"thumbnail_url": (media.thumbnail(picture.image), "image/jpeg")} if with_thumbnail else {}
    width, height = picture.width, picture.height
    whole = Locator.in_picture((0, 0, width, height), (width, height))
    return Feature(position, {"width": width, "height": height}, vectors, files, whole)


def embed_picture_query(extractor: Extractor, vector: VectorOutput, kind: str, value: str | Path) -> Vector:
    """Return the query vector of a picture file, or of words where the space holds them."""
    model = extractor.models.picture(vector.model_id)
    if kind == "image":
        return first(model.embed([media.open_picture(Path(value)).image]))
    if kind == "text":
        return first(model.embed_words([str(value)]))
    raise BadSample("unsupported", f"{vector.name} is queried by a picture or by words, not by {kind}.")


def first(vectors: Vector) -> Vector:
    """Return the first row of a batch."""
    vector: Vector = vectors[0]
    return vector
