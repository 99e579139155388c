"""Faces in pictures and videos: where each is, how good it is to be known by, and the vector of whose it is."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from tessera import faces, media
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
from tessera.inference import ARCFACE, Model, find
from tessera.models import IndexType, PayloadIndex

if TYPE_CHECKING:
    from PIL.Image import Image

Vector = npt.NDArray[np.float32]

#: The detector that a collection gets which names none.
DEFAULT_DETECTOR: Final = "scrfd_2.5g"
#: Pictures are looked at, and crops are taken, with at most this many pixels a side.
PICTURE_SIDE = 1920
#: Most faces of one video, each for as long as it stays.
MAX_STAYS = 20_000
#: A face that is not seen in so many samples in a row has gone.
_MISSED = 2


class FaceIdentityParams(Params):
    """Which faces are kept, and what is kept of each."""

    detection_model: Literal["scrfd_500m", "scrfd_2.5g", "scrfd_10g"] = Field(
        DEFAULT_DETECTOR,
        description="What finds faces: the fastest, the balanced one, the one that finds the most.",
    )
    min_face_size: int = Field(
        20, ge=10, le=200, description="Smaller faces, in pixels of the source, are left out."
    )
    detection_threshold: float = Field(
        0.5, ge=0, le=1, description="Faces that the detector is less sure of are left out."
    )
    max_faces_per_image: int | None = Field(
        None, ge=1, description="Of a picture or frame so many are kept, the largest first; null: all."
    )
    normalize_embeddings: Literal[True] = Field(
        True, description="Vectors have unit length: they are compared by their angle."
    )
    enable_quality_scoring: bool = Field(
        True, description="Say how good each face is to be known by, from its size, sharpness and pose."
    )
    quality_threshold: float | None = Field(
        None, ge=0, le=1, description="Faces of less quality are left out; null: none."
    )
    max_video_length: float = Field(
        60, ge=1, le=43_200, description="Longest video that is taken, in seconds."
    )
    video_sampling_fps: float = Field(
        1, ge=0.1, le=60, description="Frames of each second that are looked at."
    )
    video_deduplication: bool = Field(
        True,
        description="Make one document of a face for as long as it stays in the picture; false: one a frame.",
    )
    video_deduplication_threshold: float = Field(
        0.8, ge=0, le=1, description="Similarity (cosine) from which on two faces are one that stays."
    )
    output_mode: Literal["per_face", "per_image"] = Field(
        "per_face",
        description="A document for each face, found by the face; or one for each picture or frame, with a list.",
    )
    include_face_crops: bool = Field(False, description="Keep the upright crop of each face, 112×112 pixels.")
    include_source_frame_thumbnail: bool = Field(
        False, description="Make a JPEG of the picture or frame, at most 480 pixels a side."
    )
    store_detection_metadata: bool = Field(
        True, description="Keep box, score and landmarks as fields; the place is kept in any case."
    )
    model: str | None = Field(
        None,
        description="Model of identity; a vendor's name stands for the default. `tessera models` lists ours.",
    )

    @model_validator(mode="after")
    def _threshold_needs_scores(self) -> FaceIdentityParams:
        if self.quality_threshold is not None and not self.enable_quality_scoring:
            raise ValueError(
                "quality_threshold needs enable_quality_scoring: leave one out or send true for the other"
            )
        return self


@dataclass(frozen=True, slots=True)
class _Seen:
    """A face as it was seen in a picture, or in a frame at `time_s`. Pixels are those of the source."""

    face: faces.Face
    number: int
    quality: float | None
    vector: Vector
    time_s: float
    #: As files, where they are wanted.
    crop: bytes | None
    thumbnail: bytes | None


@dataclass(slots=True)
class _Stay:
    """A face that stays in the picture: how it was seen first, last and best."""

    first: _Seen
    last: _Seen
    best: _Seen

    def likeness(self, seen: _Seen) -> float:
        return max(float(known.vector @ seen.vector) for known in (self.last, self.best))

    def see(self, seen: _Seen) -> None:
        self.last = seen
        if _worth(seen) > _worth(self.best):
            self.best = seen


def _worth(seen: _Seen) -> tuple[float, float]:
    return (seen.quality or 0.0, seen.face.score)


class FaceIdentityExtractor(Extractor):
    """Faces found by a face: one query picture finds a person in pictures and in films, with place and time."""

    name = "face_identity_extractor"
    description = (
        "Finds faces in pictures and videos and embeds each one, so that a picture of a face finds that person. The "
        "models are not part of Tessera; `tessera models` names them and their licence."
    )
    icon = "scan-face"
    category = "face"
    inputs: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "image": ("image",),
        "video": ("video",),
        "video_frame": ("image",),
    }
    positions = ("start_time", "face_index")
    max_inputs: ClassVar[Mapping[str, int]] = {"image": 1, "video": 1, "video_frame": 1}
    cost_tier = 2
    Params = FaceIdentityParams
    vector_name = "face_identity_extractor_v1_embedding"

    def outputs(self, params: FaceIdentityParams) -> Outputs:
        """Return the vector of a face, its place and its score; with ``per_image`` the lists of them."""
        if params.output_mode == "per_image":
            return Outputs((), _picture_fields(params), _indexes())
        model = self._identity(params)
        vector = VectorOutput(
            name=self.vector_name,
            dimensions=model.dimensions,
            inference_name="face_identity_arcface_r100_v1",
            model_id=model.model_id,
            description=f"Whose face it is, by {model.model_id}. {model.description}",
            query_inputs=model.query_inputs,
            aliases=("embedding", "face_embedding", "face"),
            purpose="image",
        )
        return Outputs((vector,), _face_fields(params), _indexes())

    def extract(
        self, samples: Sequence[Sample], params: FaceIdentityParams
    ) -> Iterator[Iterable[Feature] | BadSample]:
        """Yield the faces of each picture and video; a picture without any has no documents."""
        for sample in samples:
            features = self._features(sample, params)
            try:
                begun = list(itertools.islice(features, 1))
            except BadSample as error:
                yield error
            else:
                yield itertools.chain(begun, features)

    def embed_query(self, vector: VectorOutput, kind: str, value: str | Path) -> Vector:
        """Return the vector of the largest face in a query picture."""
        if kind != "image":
            raise BadSample("unsupported", f"{vector.name} is queried by a picture of a face, not by {kind}.")
        picture = media.open_picture(Path(value), PICTURE_SIDE).image
        found = self._any_detector().find(picture)
        if not found:
            raise BadSample(
                "unreadable", "No face is found in the picture of the query; send one that shows a face."
            )
        embedded: Vector = self.models.face_embedder(ARCFACE).embed([faces.aligned(picture, found[0])])[0]
        return embedded

    # --- one source -----------------------------------------------------------------------------------

    def _features(self, sample: Sample, params: FaceIdentityParams) -> Iterator[Feature]:
        picture = sample.inputs.get("image") or sample.inputs.get("video_frame")
        video = sample.inputs.get("video")
        try:
            if picture is not None and picture.path is not None:
                yield from self._of_picture(picture.path, params)
            if video is not None and video.path is not None:
                yield from self._of_video(video.path, params)
        except InferenceServiceUnavailableError as error:
            raise BadSample("model_missing", error.message) from error
        if not any(source is not None and source.path is not None for source in (picture, video)):
            raise BadSample(
                "missing_input",
                "The source has no file as input `image`, `video_frame` or `video`; map one in `input_mappings`.",
            )

    def _of_picture(self, path: Path, params: FaceIdentityParams) -> Iterator[Feature]:
        picture = media.open_picture(path, PICTURE_SIDE)
        size = (picture.width, picture.height)
        found = self._seen(picture.image, size, params, 0.0)
        whole = Locator.in_picture((0, 0, *size), size)
        if params.output_mode == "per_image":
            if found:
                yield _of_frame(found, ("image",), {}, whole, params)
            return
        for seen in found:
            place = Locator.in_picture(seen.face.box, size)
            yield self._feature(seen, ("image", seen.number), {}, place, params)

    def _of_video(self, path: Path, params: FaceIdentityParams) -> Iterator[Feature]:
        video = media.probe(path)
        if video.duration_s > params.max_video_length:
            raise BadSample(
                "limit",
                f"The video lasts {video.duration_s:.0f} s, more than max_video_length "
                f"({params.max_video_length:g} s). Raise that parameter, or cut the video.",
            )
        step_s = 1 / params.video_sampling_fps
        times = [number * step_s for number in range(max(1, round(video.duration_s / step_s)))]
        size = (float(video.width), float(video.height))
        frames = (
            self._seen(frame, size, params, time_s)
            for time_s, frame in zip(times, media.frames_at(path, times), strict=False)
            if frame is not None
        )
        if params.output_mode == "per_image":
            for found in frames:
                if found:
                    start_s = found[0].time_s
                    span = (_ms(start_s), _ms(min(start_s + step_s, video.duration_s)))
                    yield _of_frame(found, (span[0],), _times(*span), Locator.at_time(*span), params)
            return
        for stay in _stays(frames, params, step_s):
            first, best = stay.first, stay.best
            start_ms = _ms(first.time_s)
            end_ms = max(start_ms, _ms(min(stay.last.time_s + step_s, video.duration_s)))
            place = Locator.at_time(start_ms, end_ms, best.face.box, size)
            fields = {**_times(start_ms, end_ms), "best_time": best.time_s}
            yield self._feature(best, (start_ms, first.number), fields, place, params, first.number)

    def _seen(
        self,
        picture: Image,
        size: tuple[float, float],
        params: FaceIdentityParams,
        time_s: float,
    ) -> list[_Seen]:
        """Return the faces of a picture that are wanted, the largest first; `size` is that of its source."""
        scale = size[0] / picture.width, size[1] / picture.height
        found = [
            face
            for face in self._detector(params).find(picture, params.detection_threshold)
            if _enlarged(face, scale).smaller_side >= params.min_face_size
        ][: params.max_faces_per_image]
        crops = [faces.aligned(picture, face) for face in found]
        worths: list[float | None] = [None for _ in found]
        if params.enable_quality_scoring:
            worths = [
                round(faces.quality(face, crop, max(scale)), 4)
                for face, crop in zip(found, crops, strict=True)
            ]
        vectors = self.models.face_embedder(self._identity(params).model_id).embed(crops)
        least = params.quality_threshold or 0.0
        shown = media.thumbnail(picture) if found and params.include_source_frame_thumbnail else None
        kept = [media.as_png(crop) if params.include_face_crops else None for crop in crops]
        return [
            _Seen(_enlarged(face, scale), number, worth, vector, time_s, crop, shown)
            for number, (face, worth, vector, crop) in enumerate(
                zip(found, worths, vectors, kept, strict=True)
            )
            if worth is None or worth >= least
        ]

    def _identity(self, params: FaceIdentityParams) -> Model:
        """Return the model of identity, installed or not: what is searched in a namespace must not depend on it."""
        named = find(params.model) if params.model else None
        if named is not None and named.role == "face identity":
            return named
        return self.models.choose("face identity", params.model)

    def _detector(self, params: FaceIdentityParams) -> faces.Detector:
        return self.models.face_detector(_model_id(params.detection_model))

    def _any_detector(self) -> faces.Detector:
        """Return a detector that is installed, the default one before others."""
        known = [_model_id(word) for word in (DEFAULT_DETECTOR, "scrfd_10g", "scrfd_500m")]
        installed = next((one for one in known if self.models.installed(one)), known[0])
        return self.models.face_detector(installed)

    def _feature(
        self,
        seen: _Seen,
        position: tuple[str | int, ...],
        fields: Mapping[str, Any],
        place: Locator,
        params: FaceIdentityParams,
        number: int | None = None,
    ) -> Feature:
        files = _thumbnail(seen)
        if seen.crop is not None:
            files["face_crop_url"] = (seen.crop, "image/png")
        said = {**fields, **_told(seen, params), "face_index": seen.number if number is None else number}
        return Feature(position, said, {self.vector_name: seen.vector}, files, place)


def _stays(frames: Iterable[list[_Seen]], params: FaceIdentityParams, step_s: float) -> Iterator[_Stay]:
    """Yield the faces of successive frames, each once for as long as it stays, in the order of their beginning."""
    made: list[_Stay] = []
    present: list[_Stay] = []
    for found in frames:
        if not params.video_deduplication:
            yield from (_Stay(seen, seen, seen) for seen in found)
            continue
        if not found:
            continue
        since_s = found[0].time_s - (_MISSED + 0.5) * step_s
        present = [stay for stay in present if stay.last.time_s >= since_s]
        known = _seen_again(present, found, params.video_deduplication_threshold)
        new = [_Stay(seen, seen, seen) for number, seen in enumerate(found) if number not in known]
        made += new
        present += new
        if len(made) > MAX_STAYS:
            raise BadSample("limit", f"The video shows more than {MAX_STAYS} faces; cut it.")
    yield from made


def _seen_again(present: Sequence[_Stay], found: Sequence[_Seen], threshold: float) -> set[int]:
    """Give each of `found` to the stay that it is most like, each stay one; return which of them were given."""
    pairs = sorted(
        ((stay.likeness(seen), a, b) for a, stay in enumerate(present) for b, seen in enumerate(found)),
        key=lambda pair: (-pair[0], pair[1], pair[2]),
    )
    continued: set[int] = set()
    given: set[int] = set()
    for likeness, a, b in pairs:
        if likeness >= threshold and a not in continued and b not in given:
            present[a].see(found[b])
            continued.add(a)
            given.add(b)
    return given


def _of_frame(
    found: Sequence[_Seen],
    position: tuple[str | int, ...],
    fields: Mapping[str, Any],
    place: Locator,
    params: FaceIdentityParams,
) -> Feature:
    """Return the document of a picture or frame with all its faces."""
    listed = [{"face_index": seen.number, **_told(seen, params)} for seen in found]
    said = {**fields, "faces": listed, "face_count": len(listed)}
    return Feature(position, said, files=_thumbnail(found[0]), locator=place)


def _told(seen: _Seen, params: FaceIdentityParams) -> dict[str, Any]:
    """Return what is said of a face in any mode."""
    said: dict[str, Any] = {}
    if params.store_detection_metadata:
        said["bbox"] = [round(side, 2) for side in seen.face.box]
        said["detection_score"] = round(seen.face.score, 4)
        said["landmarks"] = [[round(x, 2), round(y, 2)] for x, y in seen.face.landmarks]
    if seen.quality is not None:
        said["quality_score"] = seen.quality
    return said


def _enlarged(face: faces.Face, scale: tuple[float, float]) -> faces.Face:
    """Return a face in pixels of its source, which is `scale` times as large as the picture it was found in."""
    across, down = scale
    left, top, right, bottom = face.box
    landmarks = tuple((x * across, y * down) for x, y in face.landmarks)
    return faces.Face((left * across, top * down, right * across, bottom * down), landmarks, face.score)


def _thumbnail(seen: _Seen) -> dict[str, tuple[bytes, str]]:
    return {} if seen.thumbnail is None else {"thumbnail_url": (seen.thumbnail, "image/jpeg")}


def _model_id(word: str) -> str:
    return word.replace("_", "-")


def _ms(time_s: float) -> int:
    return round(time_s * 1000)


def _times(start_ms: int, end_ms: int) -> dict[str, Any]:
    return {"start_time": start_ms / 1000, "end_time": end_ms / 1000}


def _face_fields(params: FaceIdentityParams) -> dict[str, FieldOutput]:
    fields = {
        "face_index": FieldOutput(
            "integer",
            "Number of the face in its picture, or in the frame that shows it first; the largest is 0.",
        ),
        **_time_fields(),
        "best_time": FieldOutput("number", "Time of a video, in seconds, at which box and crop were taken."),
    }
    if params.store_detection_metadata:
        fields["bbox"] = FieldOutput("array", "Left, top, right, bottom in pixels of the source.")
        fields["detection_score"] = FieldOutput("number", "How sure it is that this is a face, 0 to 1.")
        fields["landmarks"] = FieldOutput(
            "array", "Eyes, tip of the nose, corners of the mouth: five pairs of x and y in pixels."
        )
    if params.enable_quality_scoring:
        fields["quality_score"] = FieldOutput(
            "number", "How good the face is to be known by, 0 to 1: size, sharpness and pose."
        )
    if params.include_face_crops:
        fields["face_crop_url"] = FieldOutput("string", "A PNG of the upright face, 112×112 pixels.")
    return fields | _thumbnail_field(params)


def _picture_fields(params: FaceIdentityParams) -> dict[str, FieldOutput]:
    return {
        "faces": FieldOutput("array", "The faces: objects with face_index, bbox, scores and landmarks."),
        "face_count": FieldOutput("integer", "How many there are."),
        **_time_fields(),
        **_thumbnail_field(params),
    }


def _time_fields() -> dict[str, FieldOutput]:
    return {
        "start_time": FieldOutput("number", "Of a video: from when on it is seen, in seconds."),
        "end_time": FieldOutput("number", "Of a video: until when it is seen, in seconds."),
    }


def _thumbnail_field(params: FaceIdentityParams) -> dict[str, FieldOutput]:
    if not params.include_source_frame_thumbnail:
        return {}
    return {"thumbnail_url": FieldOutput("string", "A JPEG of the picture or frame.")}


def _indexes() -> tuple[PayloadIndex, ...]:
    return tuple(
        PayloadIndex(field_name=name, type=IndexType.FLOAT, field_schema={"type": "float"}, is_protected=True)
        for name in ("start_time", "end_time")
    )
