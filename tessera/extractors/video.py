"""Video and sound: cut into spans of time, each with what is seen in it, said in it and written in it."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from tessera import languages, media, reading
from tessera.errors import InferenceServiceUnavailableError, quote
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
    is_new,
    text_vector,
    words_of,
)
from tessera.extractors.image import Vector, embed_picture_query, first, picture_feature
from tessera.extractors.text import read_text
from tessera.inference import RAPIDOCR, Model, PictureModel, TextModel
from tessera.locators import Locator
from tessera.media import clips, sampling, scenes, sound, spans
from tessera.media.spans import Span
from tessera.models import IndexType, PayloadIndex
from tessera.transcription import SUBTITLES, Transcript, recognise

if TYPE_CHECKING:
    from PIL.Image import Image

#: Videos up to this long are looked at in three places a span, so that a cut inside one is not missed; of
#: longer ones the key frame next to the middle is taken, which spares decoding nearly all of the film.
EXACT_UP_TO_S = 600.0
#: Spans whose frames go through the picture model together.
_SPANS_AT_ONCE = 8
#: Text is looked for twice a second, at most in so many frames of one video, of so many pixels on the longer side.
_READ_EVERY_S = 0.5
_MOST_READ = 2_400
_READ_SIDE = 960


class VideoParams(Params):
    """How a video or a recording is cut, and what is made of each span."""

    split_method: Literal["time", "scene", "silence"] = Field(
        "time",
        description="Fixed spans of time, scenes of the picture (of sound: silences), or stretches between silences.",
    )
    time_split_interval: float = Field(
        10, ge=1, le=3600, description="Length of a span in seconds, split_method 'time'."
    )
    scene_detection_threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="How clear a cut must be, split_method 'scene'; lower finds more. Default 0.5.",
    )
    silence_db_threshold: float | None = Field(
        None,
        ge=-96,
        le=0,
        description="Below this, in dB of full scale, is silence, split_method 'silence'. Default: -40, or 20 dB below "
        "what is loud in a quiet recording.",
    )
    max_segment_duration: float | None = Field(
        30, ge=1, description="Longer scenes and stretches are parted evenly; null: never."
    )
    run_transcription: bool = Field(
        True,
        description="Take the words from subtitles beside or inside the source, else by recognition of speech.",
    )
    run_transcription_embedding: bool = Field(True, description="Embed those words, to be found by meaning.")
    transcription_language: str | None = Field(
        "en",
        description="Which of several subtitle tracks is read, and the language that is spoken: a code such as en, eng "
        "or en-GB; null: any.",
    )
    transcription_model: str | None = Field(
        None, description="Model of speech; `tessera models` lists them. Default: the best that is installed."
    )
    run_multimodal_embedding: bool = Field(True, description="Embed what is seen.")
    run_ocr: bool = Field(False, description="Read the words that are shown in the picture.")
    run_ocr_embedding: bool = Field(
        True,
        description="With run_ocr: make a document of each text that is shown, with its own time and place.",
    )
    run_video_description: Literal[False] = Field(
        False, description="Descriptions by a language model; not in this version."
    )
    enable_thumbnails: bool = Field(
        True, description="Make a JPEG of at most 480 pixels a side for each span."
    )
    enable_segment_clips: bool = Field(
        False, description="Make an MP4 of each span, of at most 2 minutes, 1280 pixels a side and 32 MiB."
    )
    model: str | None = Field(
        None,
        description="Picture model; a vendor's name stands for the default. `tessera models` lists ours.",
    )
    text_model: str | None = Field(None, description="Model of the words, likewise.")

    @property
    def looks(self) -> bool:
        """Whether frames are decoded for what they show."""
        return self.run_multimodal_embedding or self.enable_thumbnails

    @property
    def embeds_words(self) -> bool:
        """Whether there is a vector of words."""
        said = self.run_transcription and self.run_transcription_embedding
        return said or (self.run_ocr and self.run_ocr_embedding)

    @field_validator("split_method", mode="before")
    @classmethod
    def _split_method(cls, value: object) -> object:
        return "time" if value is None else value

    @field_validator("transcription_language")
    @classmethod
    def _language(cls, value: str | None, info: ValidationInfo) -> str | None:
        # What was stored before this was checked still opens.
        if value is not None and is_new(info) and languages.code_of(value) is None:
            raise ValueError(
                f"{quote(value)} is no language that models of speech know; send one of "
                f"{', '.join(languages.SPELLINGS)}, or null for whatever is spoken"
            )
        return value

    @field_validator("run_video_description", mode="before")
    @classmethod
    def _not_yet(cls, value: object) -> object:
        if value is True:
            raise ValueError("is not available in this version; leave it out or send false")
        return False if value is None else value


@dataclass(frozen=True)
class _Source:
    """A file that is being extracted, and where there is sound in it, found out once."""

    path: Path
    sample: Sample
    input_name: Literal["video", "audio"]
    duration_s: float
    has_sound: bool
    silence_db: float | None

    @functools.cached_property
    def sounding(self) -> list[tuple[float, float]]:
        """From when to when there is sound, in seconds."""
        if not self.has_sound:
            return []
        try:
            return sound.sounding(sound.levels(self.path), self.silence_db)
        except BadSample:
            if self.input_name == "audio":
                raise
            return []  # the pictures count without it


class VideoExtractor(Extractor):
    """Spans of videos found by what is seen, said and written; sound, pictures and texts fit into the same spaces."""

    name = "video_extractor"
    also_named = ("multimodal_extractor",)
    description = (
        "Cuts a video or a recording into spans of time, scenes or stretches between silences, and embeds what is "
        "seen and what is said; reads words in the picture; takes single pictures and texts too."
    )
    icon = "video"
    category = "multimodal"
    inputs: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "video": ("video",),
        "audio": ("audio",),
        "image": ("image",),
        "text": ("text", "string"),
        "subtitles": ("text", "string"),
    }
    positions = ("start_time",)
    max_inputs: ClassVar[Mapping[str, int]] = {"video": 1, "audio": 1, "image": 1, "text": 1}
    cost_tier = 2
    Params = VideoParams
    seen_name = "video_extractor_v1_multimodal_embedding"
    said_name = "video_extractor_v1_transcription_embedding"

    def outputs(self, params: VideoParams) -> Outputs:
        """Return the vectors that are asked for, where each span lies, its words and its files."""
        if params.run_transcription and params.transcription_model:
            self.models.choose_recogniser(params.transcription_model)
        if params.run_ocr:
            self.models.choose("reading", RAPIDOCR)
        vectors = []
        if params.run_multimodal_embedding:
            vectors.append(self._seen_output(self.models.choose("picture", params.model)))
        if params.embeds_words:
            vectors.append(self._said_output(self.models.choose("text", params.text_model)))
        indexes = tuple(
            PayloadIndex(
                field_name=name, type=IndexType.FLOAT, field_schema={"type": "float"}, is_protected=True
            )
            for name in ("start_time", "end_time")
        )
        words = words_of("text", "transcription", "ocr_text", "description")
        return Outputs(tuple(vectors), _fields(params), indexes, sparse=(words,))

    def _seen_output(self, model: Model) -> VectorOutput:
        return VectorOutput(
            name=self.seen_name,
            dimensions=model.dimensions,
            inference_name="vertex_multimodal_embedding",
            model_id=model.model_id,
            description=f"What is seen in the span, by {model.model_id}. {model.description}",
            query_inputs=model.query_inputs,
            aliases=("embedding", "video_embedding", "image_embedding", "multimodal"),
            purpose="multimodal",
        )

    def _said_output(self, model: Model) -> VectorOutput:
        return text_vector(
            self.said_name,
            model,
            "What is said, or written in the picture",
            ("text_embedding", "transcription", "embedding"),
        )

    def pinned(self, params: VideoParams, running: Mapping[str, str]) -> VideoParams:
        """Return `params` with the models that the namespace chose, and the model of speech that is there now."""
        speech = params.transcription_model
        if params.run_transcription and speech is None:
            found = self.models.choose_recogniser(None, params.transcription_language)
            speech = found.model_id if found else None
        return params.model_copy(
            update={
                "model": running.get(self.seen_name, params.model),
                "text_model": running.get(self.said_name, params.text_model),
                "transcription_model": speech,
            }
        )

    def extract(
        self, samples: Sequence[Sample], params: VideoParams
    ) -> Iterator[Iterable[Feature] | BadSample]:
        """Yield the spans of each source one after the other, or the one document of a picture or a text.

        What is wrong with a source is told before its first span; what breaks off later raises `BadSample` there.
        """
        for sample in samples:
            features = self._features(sample, params)
            try:
                begun = list(itertools.islice(features, 1))
            except BadSample as error:
                yield error
            else:
                yield itertools.chain(begun, features)

    def embed_query(self, vector: VectorOutput, kind: str, value: str | Path) -> Vector:
        """Return the vector of a query text or picture, as far as the space takes it."""
        if vector.name != self.said_name:
            return embed_picture_query(self, vector, kind, value)
        if kind != "text":
            raise BadSample("unsupported", f"{vector.name} is queried by text, not by {kind}.")
        return self.models.text(vector.model_id).embed_query(str(value))

    def _features(self, sample: Sample, params: VideoParams) -> Iterator[Feature]:
        video, audio, image, text = (sample.inputs.get(name) for name in ("video", "audio", "image", "text"))
        try:
            found = False
            if video is not None and video.path is not None:
                yield from self._video(sample, video.path, params)
                found = True
            if audio is not None and audio.path is not None:
                yield from self._audio(sample, audio.path, params)
                found = True
            if image is not None and image.path is not None:
                yield self._picture(image.path, params)
                found = True
            if text is not None and not (found and _is_subtitles(text)):
                yield self._text(read_text(text), params)
                found = True
        except InferenceServiceUnavailableError as error:
            raise BadSample("model_missing", error.message) from error
        if not found:
            raise BadSample(
                "missing_input",
                "The source has no input `video`, `audio`, `image` or `text`; map one in `input_mappings`.",
            )

    # --- video and sound ------------------------------------------------------------------------------

    def _video(self, sample: Sample, path: Path, params: VideoParams) -> Iterator[Feature]:
        video = media.probe(path)
        source = _Source(
            path, sample, "video", video.duration_s, video.has_audio, params.silence_db_threshold
        )
        transcript = self._transcript(source, params)
        segments = _spans(source, params)
        shown = self._read(path, video, params) if params.run_ocr else []
        spoken = spans.placed(transcript.pieces, segments)
        said = self._said([_text_of(pieces) for pieces in spoken], params.run_transcription_embedding, params)
        seen = self._seen(path, video.duration_s, segments, params)
        for span, pieces, vectors, (picture, thumbnail), texts in zip(
            segments, spoken, said, seen, spans.during(shown, segments), strict=True
        ):
            if thumbnail is None and picture is None and not pieces and params.looks:
                continue  # the file was cut off: nothing is seen or said here
            fields = {**_place(span), **_spoken(pieces, transcript)}
            if texts:
                fields["ocr_text"] = "\n".join(dict.fromkeys(text.text for text in texts))
            if picture is not None:
                vectors[self.seen_name] = picture
            files = {} if thumbnail is None else {"thumbnail_url": (thumbnail, "image/jpeg")}
            if params.enable_segment_clips:
                files["video_segment_url"] = (clips.clip(path, span.start_s, span.end_s), "video/mp4")
            yield Feature((_ms(span.start_s),), fields, vectors, files, _locator(span))
        if params.run_ocr_embedding:
            yield from self._written(path, video, shown, params)

    def _audio(self, sample: Sample, path: Path, params: VideoParams) -> Iterator[Feature]:
        found = sound.probe(path)
        source = _Source(path, sample, "audio", found.duration_s, True, params.silence_db_threshold)
        transcript = self._transcript(source, params)
        segments = _spans(source, params)
        spoken = spans.placed(transcript.pieces, segments)
        said = self._said([_text_of(pieces) for pieces in spoken], params.run_transcription_embedding, params)
        for span, pieces, vectors in zip(segments, spoken, said, strict=True):
            silent = not any(begin < span.end_s and end > span.start_s for begin, end in source.sounding)
            if silent and not pieces and len(segments) > 1:
                continue
            fields = {**_place(span), **_spoken(pieces, transcript)}
            yield Feature((_ms(span.start_s),), fields, vectors, locator=_locator(span))

    def _transcript(self, source: _Source, params: VideoParams) -> Transcript:
        if not params.run_transcription:
            return Transcript()
        cues = _beside(source.sample, source.input_name)
        if cues is None and source.input_name == "video":
            cues = media.embedded_subtitles(source.path, params.transcription_language)
        if cues:
            return Transcript(tuple(cues), SUBTITLES)
        if not source.has_sound:
            return Transcript()
        model = self.models.choose_recogniser(params.transcription_model, params.transcription_language)
        if model is not None:
            return recognise(
                source.path, self.models, model.model_id, params.transcription_language, source.sounding
            )
        if source.input_name == "audio":
            raise BadSample("model_missing", self.models.missing_recogniser(params.transcription_language))
        return Transcript()

    def _seen(
        self, path: Path, duration_s: float, segments: Sequence[Span], params: VideoParams
    ) -> Iterator[tuple[Vector | None, bytes | None]]:
        """Yield the picture vector and the thumbnail of each span, a few spans at a time."""
        if not params.looks:
            yield from ((None, None) for _ in segments)
            return
        model = self._picture_model(params)
        exact = duration_s <= EXACT_UP_TO_S
        places = (1 / 6, 1 / 2, 5 / 6) if exact else (1 / 2,)
        lengths = [span.end_s - span.start_s for span in segments]
        times = [
            span.start_s + place * length
            for span, length in zip(segments, lengths, strict=True)
            for place in places
        ]
        frames = media.frames_at(path, times, slack_s=0.0 if exact else [length / 2 for length in lengths])
        for begin in range(0, len(segments), _SPANS_AT_ONCE):
            found = [[next(frames) for _ in places] for _ in segments[begin : begin + _SPANS_AT_ONCE]]
            shown = [[frame for frame in span if frame is not None] for span in found]
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

    def _said(self, words: Sequence[str], wanted: bool, params: VideoParams) -> list[dict[str, Vector]]:
        """Return the vector of each span's words; none where nothing is said."""
        vectors: list[dict[str, Vector]] = [{} for _ in words]
        spoken = [number for number, text in enumerate(words) if text]
        if spoken and wanted:
            found = self._text_model(params).embed([words[number] for number in spoken])
            for number, vector in zip(spoken, found, strict=True):
                vectors[number][self.said_name] = vector
        return vectors

    # --- words in the picture -------------------------------------------------------------------------

    def _read(self, path: Path, video: media.Video, params: VideoParams) -> list[reading.Shown]:
        """Return the texts that are shown, in the order of time, their boxes in pixels of the video."""
        reader = self.models.reader()
        interval_s = max(_READ_EVERY_S, video.duration_s / _MOST_READ)
        scale = 1.0

        def readings() -> Iterator[tuple[float, list[reading.Text]]]:
            nonlocal scale
            for time_s, frame in sampling.new_frames(path, interval_s, _READ_SIDE):
                scale = frame.shape[1] / video.width
                yield time_s, reading.blocks(reader.read_array(frame))

        found = list(reading.over_time(readings(), video.duration_s))
        shown = [_to_video(text, scale) for text in found]
        return sorted(shown, key=lambda text: (text.start_s, text.box[1], text.box[0]))

    def _written(
        self, path: Path, video: media.Video, shown: Sequence[reading.Shown], params: VideoParams
    ) -> Iterator[Feature]:
        """Yield a document for each text that is shown, in the order of the middle of its time."""
        texts = sorted(shown, key=_middle)
        said = self._said([text.text for text in texts], True, params)
        frames: Iterator[Image | None] = itertools.repeat(None)
        if params.enable_thumbnails and texts:
            frames = media.frames_at(path, [_middle(text) for text in texts])
        known: Counter[int] = Counter()
        for text, vectors, frame in zip(texts, said, frames, strict=False):
            start_ms = _ms(text.start_s)
            known[start_ms] += 1
            yield Feature(
                ("ocr", start_ms, known[start_ms]),
                {"start_time": text.start_s, "end_time": text.end_s, "ocr_text": text.text},
                vectors,
                {} if frame is None else {"thumbnail_url": (media.thumbnail(frame), "image/jpeg")},
                Locator.at_time(start_ms, _ms(text.end_s), text.box, (video.width, video.height)),
            )

    # --- pictures and texts ---------------------------------------------------------------------------

    def _picture(self, path: Path, params: VideoParams) -> Feature:
        picture = media.open_picture(path)
        model = self._picture_model(params)
        vectors = {self.seen_name: first(model.embed([picture.image]))} if model else {}
        feature = picture_feature(picture, vectors, ("image",), with_thumbnail=params.enable_thumbnails)
        texts = reading.blocks(self.models.reader().read(picture.image)) if params.run_ocr else []
        if not texts:
            return feature
        words = "\n".join(text.text for text in texts)
        said = self._said([words], params.run_ocr_embedding, params)[0]
        return replace(
            feature, fields={**feature.fields, "ocr_text": words}, vectors={**feature.vectors, **said}
        )

    def _text(self, text: str, params: VideoParams) -> Feature:
        vectors = self._said([text], params.run_transcription and params.run_transcription_embedding, params)[
            0
        ]
        model = self.models.choose("picture", params.model)
        if params.run_multimodal_embedding and "text" in model.query_inputs:
            vectors[self.seen_name] = first(self.models.picture(model.model_id).embed_words([text]))
        return Feature(("text",), {"text": text}, vectors, locator=Locator.in_text(0, len(text)))

    def _picture_model(self, params: VideoParams) -> PictureModel | None:
        if not params.run_multimodal_embedding:
            return None
        return self.models.picture(self.models.choose("picture", params.model).model_id)

    def _text_model(self, params: VideoParams) -> TextModel:
        return self.models.text(self.models.choose("text", params.text_model).model_id)


def _fields(params: VideoParams) -> dict[str, FieldOutput]:
    fields = {
        "start_time": FieldOutput("number", "Start of the span in seconds."),
        "end_time": FieldOutput("number", "End of the span in seconds."),
        "text": FieldOutput("text", "The text, where the source is a text."),
        "width": FieldOutput("integer", "Width in pixels, where the source is a picture."),
        "height": FieldOutput("integer", "Height in pixels, where the source is a picture."),
    }
    if params.run_transcription:
        fields["transcription"] = FieldOutput("text", "What is said during the span, if anything.")
        fields["transcription_source"] = FieldOutput(
            "string", "Where the words are from: subtitles, or the model that listened."
        )
        fields["words"] = FieldOutput(
            "array", "Words heard, or subtitles: objects with text, start_time and end_time in seconds."
        )
    if params.run_ocr:
        fields["ocr_text"] = FieldOutput("text", "What can be read in the picture, a line for each text.")
    if params.enable_thumbnails:
        fields["thumbnail_url"] = FieldOutput("string", "A JPEG of the middle of the span.")
    if params.enable_segment_clips:
        fields["video_segment_url"] = FieldOutput("string", "An MP4 of the span.")
    return fields


def _spans(source: _Source, params: VideoParams) -> list[Span]:
    """Return the spans of a source, as `params` want it cut."""
    if params.split_method == "time":
        return spans.every(source.duration_s, params.time_split_interval)
    if params.split_method == "scene" and source.input_name == "video":
        threshold = 0.5 if params.scene_detection_threshold is None else params.scene_detection_threshold
        boundaries = scenes.cuts(source.path, threshold)
    else:
        boundaries = spans.by_silence(source.sounding, source.duration_s)
    return spans.at(boundaries, source.duration_s, params.max_segment_duration)


def _to_video(text: reading.Shown, scale: float) -> reading.Shown:
    """Return a text with its place in pixels of the video; it was read in frames `scale` times as large."""
    left, top, right, bottom = (side / scale for side in text.box)
    return reading.Shown(text.text, round(text.start_s, 3), round(text.end_s, 3), (left, top, right, bottom))


def _middle(text: reading.Shown) -> float:
    return (text.start_s + text.end_s) / 2


def _ms(time_s: float) -> int:
    return round(time_s * 1000)


def _locator(span: Span) -> Locator:
    return Locator.at_time(_ms(span.start_s), _ms(span.end_s))


def _place(span: Span) -> dict[str, Any]:
    return {"start_time": span.start_s, "end_time": span.end_s}


def _text_of(pieces: Sequence[media.Cue]) -> str:
    return " ".join(piece.text for piece in pieces)


def _spoken(pieces: Sequence[media.Cue], transcript: Transcript) -> dict[str, Any]:
    """Return the fields of what is said during a span."""
    if not pieces:
        return {}
    return {
        "transcription": _text_of(pieces),
        "transcription_source": transcript.source,
        "words": [
            {"text": piece.text, "start_time": piece.start_s, "end_time": piece.end_s} for piece in pieces
        ],
    }


def _beside(sample: Sample, input_name: str) -> list[media.Cue] | None:
    """Return the subtitles that came beside a source, or None. A text that is something else is left alone."""
    file = sample.inputs[input_name].sidecars.get("subtitles")
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
