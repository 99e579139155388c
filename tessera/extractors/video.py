"""Video: cut into spans of time, each with what is seen in it and what is said in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from tessera import media
from tessera.errors import InferenceServiceUnavailableError
from tessera.extractors.base import (
    BadSample,
    Extractor,
    Feature,
    FieldOutput,
    Input,
    Outputs,
    Params,
    Sample,
    VectorOutput,
    words_of,
)
from tessera.extractors.image import Vector, embed_picture_query, first, picture_feature
from tessera.extractors.text import read_text
from tessera.inference import PictureModel, TextModel
from tessera.models import IndexType, PayloadIndex

#: Most spans of one video.
MAX_SEGMENTS = 5_000
#: A last span shorter than this belongs to the one before.
SHORTEST_SEGMENT_S = 0.5
#: Videos up to this long are looked at in three places a span, so that a cut inside one is not missed; of
#: longer ones the key frame next to the middle is taken, which spares decoding nearly all of the film.
EXACT_UP_TO_S = 600.0
#: Spans whose frames go through the picture model together.
_SPANS_AT_ONCE = 8


class VideoParams(Params):
    """How a video is cut, and what is made of each span."""

    split_method: Literal["time"] = Field("time", description="Fixed spans of time.")
    time_split_interval: float = Field(10, ge=1, le=3600, description="Length of a span in seconds.")
    run_transcription: bool = Field(True, description="Take the words from subtitles in or beside the video.")
    run_transcription_embedding: bool = Field(True, description="Embed those words, to be found by meaning.")
    transcription_language: str = Field("en", description="Which of several subtitle tracks is read.")
    run_multimodal_embedding: bool = Field(True, description="Embed what is seen.")
    run_ocr: Literal[False] = Field(False, description="Reading text in frames; not in this version.")
    run_video_description: Literal[False] = Field(
        False, description="Descriptions by a language model; not in this version."
    )
    enable_thumbnails: bool = Field(
        True, description="Make a JPEG of at most 480 pixels a side for each span."
    )
    model: str | None = Field(
        None,
        description="Picture model; a vendor's name stands for the default. `tessera models` lists ours.",
    )
    text_model: str | None = Field(None, description="Model of the words, likewise.")

    @property
    def looks(self) -> bool:
        """Whether frames are decoded at all."""
        return self.run_multimodal_embedding or self.enable_thumbnails

    @field_validator("split_method", mode="before")
    @classmethod
    def _split_method(cls, value: object) -> object:
        if value in {"scene", "silence"}:
            raise ValueError(f"{value!r} is not available in this version; 'time' is")
        return "time" if value is None else value

    @field_validator("run_ocr", "run_video_description", mode="before")
    @classmethod
    def _not_yet(cls, value: object) -> object:
        if value is True:
            raise ValueError("is not available in this version; leave it out or send false")
        return False if value is None else value


@dataclass(frozen=True, slots=True)
class Segment:
    """A span of a video in seconds, and the words that fall into it."""

    start_s: float
    end_s: float
    words: str = ""


class VideoExtractor(Extractor):
    """Spans of videos found by picture and by what is said; pictures and texts fit into the same spaces."""

    name = "video_extractor"
    also_named = ("multimodal_extractor",)
    description = (
        "Cuts a video into spans of time and embeds what is seen and what its subtitles say; "
        "takes single pictures and texts too."
    )
    icon = "video"
    category = "multimodal"
    inputs: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "video": ("video",),
        "image": ("image",),
        "text": ("text", "string"),
        "subtitles": ("text", "string"),
    }
    positions = ("start_time",)
    max_inputs: ClassVar[Mapping[str, int]] = {"video": 1, "image": 1, "text": 1}
    cost_tier = 2
    Params = VideoParams
    seen_name = "video_extractor_v1_multimodal_embedding"
    said_name = "video_extractor_v1_transcription_embedding"

    def outputs(self, params: VideoParams) -> Outputs:
        """Return the vectors that are asked for, where each span lies, its words and its thumbnail."""
        vectors = []
        fields = {
            "start_time": FieldOutput("number", "Start of the span in seconds."),
            "end_time": FieldOutput("number", "End of the span in seconds."),
            "text": FieldOutput("text", "The text, where the source is a text."),
            "width": FieldOutput("integer", "Width in pixels, where the source is a picture."),
            "height": FieldOutput("integer", "Height in pixels, where the source is a picture."),
        }
        if params.run_multimodal_embedding:
            model = self.models.choose("picture", params.model)
            vectors.append(
                VectorOutput(
                    name=self.seen_name,
                    dimensions=model.dimensions,
                    inference_name="vertex_multimodal_embedding",
                    model_id=model.model_id,
                    description=f"What is seen in the span, by {model.model_id}. {model.description}",
                    query_inputs=model.query_inputs,
                    aliases=("embedding", "video_embedding", "image_embedding", "multimodal"),
                    purpose="multimodal",
                )
            )
        if params.run_transcription and params.run_transcription_embedding:
            model = self.models.choose("text", params.text_model)
            vectors.append(
                VectorOutput(
                    name=self.said_name,
                    dimensions=model.dimensions,
                    inference_name="multilingual_e5_large_instruct_v1",
                    model_id=model.model_id,
                    description=f"What is said in the span, by {model.model_id}. {model.description}",
                    query_inputs=model.query_inputs,
                    aliases=("text_embedding", "transcription", "embedding"),
                )
            )
        if params.run_transcription:
            fields["transcription"] = FieldOutput("text", "What subtitles say during the span, if anything.")
        if params.enable_thumbnails:
            fields["thumbnail_url"] = FieldOutput("string", "A JPEG of the middle of the span.")
        indexes = tuple(
            PayloadIndex(
                field_name=name, type=IndexType.FLOAT, field_schema={"type": "float"}, is_protected=True
            )
            for name in ("start_time", "end_time")
        )
        words = words_of("text", "transcription", "ocr_text", "description")
        return Outputs(tuple(vectors), fields, indexes, sparse=(words,))

    def pinned(self, params: VideoParams, running: Mapping[str, str]) -> VideoParams:
        """Return `params` with the models that the namespace chose."""
        return params.model_copy(
            update={
                "model": running.get(self.seen_name, params.model),
                "text_model": running.get(self.said_name, params.text_model),
            }
        )

    def extract(
        self, samples: Sequence[Sample], params: VideoParams
    ) -> Iterator[Iterable[Feature] | BadSample]:
        """Yield the spans of each video, or the one document of a picture or a text."""
        for sample in samples:
            try:
                yield self._features(sample, params)
            except BadSample as error:
                yield error
            except InferenceServiceUnavailableError as error:
                yield BadSample("model_missing", error.message)

    def embed_query(self, vector: VectorOutput, kind: str, value: str | Path) -> Vector:
        """Return the vector of a query text or picture, as far as the space takes it."""
        if vector.name != self.said_name:
            return embed_picture_query(self, vector, kind, value)
        if kind != "text":
            raise BadSample("unsupported", f"{vector.name} is queried by text, not by {kind}.")
        return self.models.text(vector.model_id).embed_query(str(value))

    def _features(self, sample: Sample, params: VideoParams) -> list[Feature]:
        video, image, text = (sample.inputs.get(name) for name in ("video", "image", "text"))
        features = []
        if video is not None and video.path is not None:
            features += self._video(video.path, _beside(sample), params)
        if image is not None and image.path is not None:
            features.append(self._picture(image.path, params))
        if text is not None and not (features and _is_subtitles(text)):
            features.append(self._text(read_text(text), params))
        if not features:
            raise BadSample(
                "unreadable",
                "The source has no input `video`, `image` or `text`; map one in `input_mappings`.",
            )
        return features

    # --- video ----------------------------------------------------------------------------------------

    def _video(self, path: Path, beside: list[media.Cue] | None, params: VideoParams) -> list[Feature]:
        video = media.probe(path)
        cues: list[media.Cue] = []
        if params.run_transcription:
            cues = media.embedded_subtitles(path, params.transcription_language) if beside is None else beside
        segments = cut(video.duration_s, params.time_split_interval, cues)
        said = self._said([segment.words for segment in segments], params)
        features = []
        for segment, vectors, files in zip(
            segments, said, self._seen(path, video, segments, params), strict=True
        ):
            fields: dict[str, Any] = {"start_time": segment.start_s, "end_time": segment.end_s}
            if segment.words:
                fields["transcription"] = segment.words
            seen, thumbnail = files
            if thumbnail is None and seen is None and not segment.words and params.looks:
                continue  # the file was cut off: nothing is seen or said here
            if seen is not None:
                vectors[self.seen_name] = seen
            features.append(
                Feature(
                    (round(segment.start_s * 1000),),
                    fields,
                    vectors,
                    {} if thumbnail is None else {"thumbnail_url": (thumbnail, "image/jpeg")},
                )
            )
        return features

    def _seen(
        self, path: Path, video: media.Video, segments: Sequence[Segment], params: VideoParams
    ) -> Iterator[tuple[Vector | None, bytes | None]]:
        """Yield the picture vector and the thumbnail of each span, a few spans at a time."""
        if not params.looks:
            yield from ((None, None) for _ in segments)
            return
        model = self._picture_model(params)
        exact = video.duration_s <= EXACT_UP_TO_S
        places = (1 / 6, 1 / 2, 5 / 6) if exact else (1 / 2,)
        times = [
            segment.start_s + place * (segment.end_s - segment.start_s)
            for segment in segments
            for place in places
        ]
        frames = media.frames_at(path, times, slack_s=0.0 if exact else params.time_split_interval / 2)
        for begin in range(0, len(segments), _SPANS_AT_ONCE):
            spans = [[next(frames) for _ in places] for _ in segments[begin : begin + _SPANS_AT_ONCE]]
            shown = [[frame for frame in span if frame is not None] for span in spans]
            vectors = model.embed([frame for span in shown for frame in span]) if model else None
            done = 0
            for span in shown:
                seen = thumbnail = None
                if vectors is not None and span:
                    seen = _mean(vectors[done : done + len(span)])
                if params.enable_thumbnails and span:
                    thumbnail = media.thumbnail(span[len(span) // 2])
                done += len(span)
                yield seen, thumbnail
        frames.close()

    def _said(self, words: Sequence[str], params: VideoParams) -> list[dict[str, Vector]]:
        """Return the vector of each span's words; none where nothing is said."""
        vectors: list[dict[str, Vector]] = [{} for _ in words]
        spoken = [number for number, text in enumerate(words) if text]
        if spoken and params.run_transcription_embedding:
            found = self._text_model(params).embed([words[number] for number in spoken])
            for number, vector in zip(spoken, found, strict=True):
                vectors[number][self.said_name] = vector
        return vectors

    # --- pictures and texts ---------------------------------------------------------------------------

    def _picture(self, path: Path, params: VideoParams) -> Feature:
        picture = media.open_picture(path)
        model = self._picture_model(params)
        vectors = {self.seen_name: first(model.embed([picture.image]))} if model else {}
        return picture_feature(picture, vectors, ("image",), with_thumbnail=params.enable_thumbnails)

    def _text(self, text: str, params: VideoParams) -> Feature:
        vectors = self._said([text], params)[0] if params.run_transcription else {}
        model = self.models.choose("picture", params.model)
        if params.run_multimodal_embedding and "text" in model.query_inputs:
            vectors[self.seen_name] = first(self.models.picture(model.model_id).embed_words([text]))
        return Feature(("text",), {"text": text}, vectors)

    def _picture_model(self, params: VideoParams) -> PictureModel | None:
        if not params.run_multimodal_embedding:
            return None
        return self.models.picture(self.models.choose("picture", params.model).model_id)

    def _text_model(self, params: VideoParams) -> TextModel:
        return self.models.text(self.models.choose("text", params.text_model).model_id)


def cut(duration_s: float, interval_s: float, cues: Sequence[media.Cue] = ()) -> list[Segment]:
    """Return the spans of a video of `duration_s`, each with the words of the cues whose middle lies in it.

    Times are rounded to milliseconds. Raises `BadSample` (``limit``) beyond `MAX_SEGMENTS`.
    """
    count = max(1, math.ceil((duration_s - SHORTEST_SEGMENT_S) / interval_s))
    if count > MAX_SEGMENTS:
        raise BadSample(
            "limit",
            f"The video falls into {count} spans, more than {MAX_SEGMENTS}; raise time_split_interval.",
        )
    words: list[list[str]] = [[] for _ in range(count)]
    for cue in cues:
        middle_s = (cue.start_s + cue.end_s) / 2
        words[min(count - 1, max(0, int(middle_s // interval_s)))].append(cue.text)
    ends = [round(float(number * interval_s), 3) for number in range(1, count)] + [round(duration_s, 3)]
    return [
        Segment(start, end, " ".join(spoken))
        for start, end, spoken in zip([0.0, *ends[:-1]], ends, words, strict=True)
    ]


def _beside(sample: Sample) -> list[media.Cue] | None:
    """Return the subtitles that came beside the video, or None. A text that is something else is left alone."""
    video = sample.inputs["video"]
    file = video.sidecars.get("subtitles")
    if file is not None:
        return media.read_subtitles(file)
    for name in ("subtitles", "text"):
        source = sample.inputs.get(name)
        if source is not None and (_is_subtitles(source) or _is_named_so(source)):
            if source.path is not None:
                return media.read_subtitles(source.path)
            return media.parse_subtitles(source.text or "")
    return None


def _is_subtitles(source: Input) -> bool:
    if source.path is None:
        return media.has_subtitles(source.text or "")
    with source.path.open("rb") as file:
        return media.has_subtitles(file.read(20_000).replace(b"\x00", b"").decode("latin-1"))


def _is_named_so(source: Input) -> bool:
    return (source.filename or "").lower().endswith((".srt", ".vtt"))


def _mean(vectors: Vector) -> Vector:
    total = vectors.sum(axis=0)
    mean: Vector = total / max(float(np.linalg.norm(total)), 1e-12)
    return mean
