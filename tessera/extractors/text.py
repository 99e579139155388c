"""Text: cut into pieces as asked, each with the vector of its meaning."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator, model_validator

from tessera import content, media
from tessera.errors import InferenceServiceUnavailableError
from tessera.extractors.base import (
    BadSample,
    Extractor,
    Feature,
    FieldOutput,
    Input,
    Locator,
    Outputs,
    Params,
    Sample,
    VectorOutput,
    text_vector,
    words_of,
)

#: A source's text is at most this long, in bytes, and gives at most so many pieces.
MAX_TEXT_BYTES = 8 * 2**20
MAX_PIECES = 10_000

SplitBy = Literal["none", "characters", "words", "sentences", "paragraphs", "pages", "time_segments"]
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a text, where it lies in it, and its position: its first character, or its segment's first ms."""

    text: str
    locator: Locator
    position: int


class TextParams(Params):
    """How a text is cut, and which model reads the pieces."""

    split_by: SplitBy = Field(
        "none",
        description="Unit in which `chunk_size` and `chunk_overlap` count; `none` keeps a text whole, `pages` end at "
        "form feeds. `time_segments` cuts subtitles (SubRip, WebVTT) by `segment_length_seconds`.",
    )
    chunk_size: int = Field(1000, ge=1, le=10_000, description="Units in one piece.")
    chunk_overlap: int = Field(
        0, ge=0, le=5_000, description="Units that a piece shares with the one before."
    )
    segment_length_seconds: int = Field(
        120, ge=30, le=600, description="Length of a piece with `time_segments`."
    )
    source_type: Literal["text"] = Field(
        "text", description="Kind of source. For captions of a video, send its subtitles as the text."
    )
    response_shape: Any = Field(
        None, description="Fields that a language model would fill; ignored, none is asked in this version."
    )
    model: str | None = Field(
        None, description="Text model; a vendor's name stands for the default. `tessera models` lists ours."
    )

    @field_validator("split_by", mode="before")
    @classmethod
    def _split_by(cls, value: object) -> object:
        return "none" if value is None else value

    @field_validator("source_type", mode="before")
    @classmethod
    def _source_type(cls, value: object) -> object:
        if value == "youtube":
            raise ValueError(
                "captions are not fetched from YouTube; send them as a text, with split_by 'time_segments'"
            )
        return "text" if value is None else value

    @model_validator(mode="after")
    def _overlap(self) -> TextParams:
        if self.split_by not in {"none", "time_segments"} and self.chunk_overlap >= self.chunk_size:
            raise ValueError(
                f"chunk_overlap ({self.chunk_overlap}) is smaller than chunk_size ({self.chunk_size})"
            )
        return self


class TextExtractor(Extractor):
    """Texts found by meaning: one document a text, or one for each piece of it."""

    name = "text_extractor"
    description = "Cuts text into pieces and embeds each one, so that it is found by meaning."
    icon = "text"
    category = "text"
    inputs: ClassVar[Mapping[str, tuple[str, ...]]] = {"text": ("text", "string")}
    positions = ("start_char",)
    max_inputs: ClassVar[Mapping[str, int]] = {"text": 1}
    Params = TextParams
    vector_name = "text_extractor_v1_embedding"

    def outputs(self, params: TextParams) -> Outputs:
        """Return the vector, the piece's text, and where it lies when texts are cut."""
        model = self.models.choose("text", params.model)
        fields = {"text": FieldOutput("string", "The piece of text that the vector stands for.")}
        if params.split_by != "none":
            fields["chunk_index"] = FieldOutput("integer", "Number of the piece in its source, from 0.")
        if params.split_by == "time_segments":
            fields |= {
                "start_time": FieldOutput("number", "Start of the piece in seconds."),
                "end_time": FieldOutput("number", "End of the piece in seconds."),
            }
        elif params.split_by != "none":
            fields |= {
                "start_char": FieldOutput("integer", "First character of the piece in its source, from 0."),
                "end_char": FieldOutput("integer", "Character behind the piece's last one."),
            }
        vector = text_vector(self.vector_name, model, "Meaning of the text")
        return Outputs((vector,), fields, sparse=(words_of("text"),))

    def extract(
        self, samples: Sequence[Sample], params: TextParams
    ) -> Iterator[Iterable[Feature] | BadSample]:
        """Yield the pieces of each text. All pieces of all samples go through the model together."""
        found = [_pieces_or_bad(sample, params) for sample in samples]
        texts = [piece.text for pieces in found if not isinstance(pieces, BadSample) for piece in pieces]
        try:
            vectors = iter(self.models.text(self.models.choose("text", params.model).model_id).embed(texts))
        except InferenceServiceUnavailableError as error:
            missing = BadSample("model_missing", error.message)
            found = [pieces if isinstance(pieces, BadSample) else missing for pieces in found]
            vectors = iter(())
        for pieces in found:
            if isinstance(pieces, BadSample):
                yield pieces
            else:
                yield [
                    self._feature(params, piece, number, next(vectors)) for number, piece in enumerate(pieces)
                ]

    def embed_query(self, vector: VectorOutput, kind: str, value: str | Path) -> npt.NDArray[np.float32]:
        """Return the vector of a query text."""
        if kind != "text":
            raise BadSample("unsupported", f"{vector.name} is queried by text, not by {kind}.")
        return self.models.text(vector.model_id).embed_query(str(value))

    def _feature(
        self, params: TextParams, piece: Piece, number: int, vector: npt.NDArray[np.float32]
    ) -> Feature:
        fields: dict[str, Any] = {"text": piece.text}
        vectors, place = {self.vector_name: vector}, piece.locator
        if params.split_by == "none":
            return Feature((), fields, vectors, locator=place)
        fields["chunk_index"] = number
        if place.start_ms is not None and place.end_ms is not None:
            fields |= {"start_time": place.start_ms / 1000, "end_time": place.end_ms / 1000}
        else:
            fields |= {"start_char": place.start_char, "end_char": place.end_char}
        return Feature((piece.position,), fields, vectors, locator=place)


def read_text(source: Input) -> str:
    """Return the text of an input, decoded by its byte order mark, else as UTF-8.

    Raises `BadSample`: ``too_large``, or ``unreadable`` for what is no text.
    """
    if source.text is not None:
        text = source.text
    elif source.path is None:
        raise BadSample("unreadable", "The input holds neither a text nor a file.")
    else:
        if source.path.stat().st_size > MAX_TEXT_BYTES:
            raise BadSample("too_large", f"The text file is larger than {MAX_TEXT_BYTES >> 20} MiB.")
        data = source.path.read_bytes()
        try:
            text = data.decode(content.encoding_of(data))
        except UnicodeDecodeError as error:
            raise BadSample(
                "unreadable",
                f"The file is not text in UTF-8, nor in UTF-16 or UTF-32 with a byte order mark ({error.reason}).",
            ) from error
        if "\x00" in text:
            raise BadSample("unreadable", "The file holds NUL characters: it is not text.")
    if len(text.encode("utf-8", "surrogatepass")) > MAX_TEXT_BYTES:
        raise BadSample("too_large", f"The text is larger than {MAX_TEXT_BYTES >> 20} MiB.")
    if not text.strip():
        raise BadSample("unreadable", "The text is blank.")
    return text


def _pieces_or_bad(sample: Sample, params: TextParams) -> list[Piece] | BadSample:
    source = sample.inputs.get("text")
    if source is None:
        return BadSample("missing_input", "The source has no input `text`; map one in `input_mappings`.")
    try:
        text = read_text(source)
        if params.split_by == "time_segments":
            return time_segments(text, params.segment_length_seconds)
        spans = split(text, params.split_by, params.chunk_size, params.chunk_overlap)
    except BadSample as error:
        return error
    return [Piece(text[start:end], Locator.in_text(start, end), start) for start, end in spans]


# --- cutting ------------------------------------------------------------------------------------------

#: The end of a sentence: its mark with closing quotes and brackets, followed by a blank or by nothing
#: (marks of East Asian scripts need none), or an empty line. A run of marks is tried from its start only and
#: never given back: a megabyte of points costs one look at each.
_SENTENCE_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’»)\]]*+(?=\s|$)|[。！？]+[”’」』）]*|\n[ \t]*\n")
#: A point behind one of these does not end a sentence; neither does one behind a single capital.
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|etc|e\.g|i\.e|cf|No|Nr|Fig|Vol|approx|Inc|Ltd|Co|Corp"
    r"|z\.B|d\.h|bzw|ca)\.$"
)


def split(text: str, unit: SplitBy, size: int, overlap: int = 0) -> list[Span]:
    """Return the pieces of `text` as ``(start, end)``: `size` units each, `overlap` of them shared with the last.

    Units keep their own punctuation; blanks between pieces belong to none. Every unit is in a piece.
    Raises `BadSample` (``limit``) beyond `MAX_PIECES`.
    """
    if unit == "none":
        return [(0, len(text))]
    units = None if unit == "characters" else _units(text, unit)
    count = len(text) if units is None else len(units)
    step = size - overlap
    starts = range(0, max(count - overlap, min(count, 1)), step)
    _check_count(len(starts), "chunk_size")
    lasts = [min(first + size, count) - 1 for first in starts]
    if units is None:
        return [(first, last + 1) for first, last in zip(starts, lasts, strict=True)]
    return [(units[first][0], units[last][1]) for first, last in zip(starts, lasts, strict=True)]


def time_segments(text: str, length_s: int) -> list[Piece]:
    """Return the subtitles in `text` (SubRip or WebVTT) in pieces of `length_s`; in order.

    A subtitle belongs to the piece in which its middle lies; a piece lasts from its first one's start to its last
    one's end. Raises `BadSample`: ``unsupported`` for a text without times, ``limit`` beyond `MAX_PIECES`.
    """
    if not media.has_subtitles(text):
        raise BadSample(
            "unsupported",
            "time_segments needs subtitles (SubRip or WebVTT); the text has no times. Cut it by sentences or words.",
        )
    groups: dict[int, list[media.Cue]] = {}
    for cue in media.parse_subtitles(text):
        groups.setdefault(int((cue.start_s + cue.end_s) / 2 // length_s), []).append(cue)
    _check_count(len(groups), "segment_length_seconds")
    pieces = []
    for number, cues in sorted(groups.items()):
        start_ms = round(min(cue.start_s for cue in cues) * 1000)
        end_ms = round(max(cue.end_s for cue in cues) * 1000)
        words = " ".join(cue.text for cue in cues)
        pieces.append(Piece(words, Locator.at_time(start_ms, end_ms), number * length_s * 1000))
    return pieces


def _check_count(count: int, size: str) -> None:
    if count > MAX_PIECES:
        raise BadSample("limit", f"The text falls into {count} pieces, more than {MAX_PIECES}; raise {size}.")


def _units(text: str, unit: SplitBy) -> Sequence[Span]:
    if unit == "words":
        return [match.span() for match in re.finditer(r"\S+", text)]
    if unit == "sentences":
        ends = [match.end() for match in _SENTENCE_END.finditer(text) if not _is_abbreviation(text, match)]
    elif unit == "paragraphs":
        ends = [match.end() for match in re.finditer(r"\n[ \t]*\n\s*", text)]
    else:
        ends = [match.end() for match in re.finditer("\f", text)]
    spans = zip([0, *ends], [*ends, len(text)], strict=True)
    return [span for start, end in spans if (span := _trimmed(text, start, end)) is not None]


def _is_abbreviation(text: str, match: re.Match[str]) -> bool:
    return (
        match.group() == "." and _ABBREVIATION.search(text, max(0, match.end() - 12), match.end()) is not None
    )


def _trimmed(text: str, start: int, end: int) -> Span | None:
    piece = text[start:end]
    blank = len(piece) - len(piece.lstrip())
    return (start + blank, start + len(piece.rstrip())) if piece.strip() else None
