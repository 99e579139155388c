"""Text: cut into pieces as asked, each with the vector of its meaning."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator, model_validator

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
    words_of,
)

#: A source's text is at most this long, in bytes, and gives at most so many pieces.
MAX_TEXT_BYTES = 8 * 2**20
MAX_PIECES = 10_000

SplitBy = Literal["none", "characters", "words", "sentences", "paragraphs", "pages"]
Span = tuple[int, int]


class TextParams(Params):
    """How a text is cut, and which model reads the pieces."""

    split_by: SplitBy = Field(
        "none", description="Unit in which `chunk_size` and `chunk_overlap` count; `none` keeps a text whole."
    )
    chunk_size: int = Field(1000, ge=1, le=10_000, description="Units in one piece.")
    chunk_overlap: int = Field(
        0, ge=0, le=5_000, description="Units that a piece shares with the one before."
    )
    source_type: Literal["text"] = Field("text", description="Kind of source; texts only.")
    model: str | None = Field(
        None, description="Text model; a vendor's name stands for the default. `tessera models` lists ours."
    )

    @field_validator("split_by", mode="before")
    @classmethod
    def _split_by(cls, value: object) -> object:
        if value == "time_segments":
            raise ValueError("'time_segments' needs time-coded captions; give subtitles to video_extractor")
        return "none" if value is None else value

    @model_validator(mode="after")
    def _overlap(self) -> TextParams:
        if self.split_by != "none" and self.chunk_overlap >= self.chunk_size:
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
            fields |= {
                "chunk_index": FieldOutput("integer", "Number of the piece in its source, from 0."),
                "start_char": FieldOutput("integer", "First character of the piece in its source, from 0."),
                "end_char": FieldOutput("integer", "Character behind the piece's last one."),
            }
        vector = VectorOutput(
            name=self.vector_name,
            dimensions=model.dimensions,
            inference_name="multilingual_e5_large_instruct_v1",
            model_id=model.model_id,
            description=f"Meaning of the text, by {model.model_id}. {model.description}",
            query_inputs=model.query_inputs,
            aliases=("embedding", "text_embedding", "text"),
        )
        return Outputs((vector,), fields, sparse=(words_of("text"),))

    def pinned(self, params: TextParams, running: Mapping[str, str]) -> TextParams:
        """Return `params` with the model that the namespace chose."""
        return params.model_copy(update={"model": running.get(self.vector_name, params.model)})

    def extract(
        self, samples: Sequence[Sample], params: TextParams
    ) -> Iterator[Iterable[Feature] | BadSample]:
        """Yield the pieces of each text. All pieces of all samples go through the model together."""
        texts = [_text_or_bad(sample, params) for sample in samples]
        pieces = [text[start:end] for text, spans in _good(texts) for start, end in spans]
        try:
            vectors = iter(self.models.text(self.models.choose("text", params.model).model_id).embed(pieces))
        except InferenceServiceUnavailableError as error:
            texts = [
                item if isinstance(item, BadSample) else BadSample("model_missing", error.message)
                for item in texts
            ]
            vectors = iter(())
        for item in texts:
            if isinstance(item, BadSample):
                yield item
            else:
                yield [
                    self._feature(params, item[0], number, span, next(vectors))
                    for number, span in enumerate(item[1])
                ]

    def embed_query(self, vector: VectorOutput, kind: str, value: str | Path) -> npt.NDArray[np.float32]:
        """Return the vector of a query text."""
        if kind != "text":
            raise BadSample("unsupported", f"{vector.name} is queried by text, not by {kind}.")
        return self.models.text(vector.model_id).embed_query(str(value))

    def _feature(
        self, params: TextParams, text: str, number: int, span: Span, vector: npt.NDArray[np.float32]
    ) -> Feature:
        start, end = span
        fields: dict[str, Any] = {"text": text[start:end]}
        vectors, place = {self.vector_name: vector}, Locator.in_text(start, end)
        if params.split_by == "none":
            return Feature((), fields, vectors, locator=place)
        fields |= {"chunk_index": number, "start_char": start, "end_char": end}
        return Feature((start,), fields, vectors, locator=place)


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
        encoding = "utf-16" if data[:2] in {b"\xff\xfe", b"\xfe\xff"} else "utf-8-sig"
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError as error:
            raise BadSample(
                "unreadable", f"The file is not text in UTF-8 or UTF-16 ({error.reason})."
            ) from error
        if "\x00" in text:
            raise BadSample("unreadable", "The file holds NUL characters: it is not text.")
    if len(text.encode("utf-8", "surrogatepass")) > MAX_TEXT_BYTES:
        raise BadSample("too_large", f"The text is larger than {MAX_TEXT_BYTES >> 20} MiB.")
    if not text.strip():
        raise BadSample("unreadable", "The text is blank.")
    return text


def _text_or_bad(sample: Sample, params: TextParams) -> tuple[str, list[Span]] | BadSample:
    source = sample.inputs.get("text")
    if source is None:
        return BadSample("unreadable", "The source has no input `text`; map one in `input_mappings`.")
    try:
        text = read_text(source)
        spans = split(text, params.split_by, params.chunk_size, params.chunk_overlap)
    except BadSample as error:
        return error
    return text, spans


def _good(texts: Iterable[tuple[str, list[Span]] | BadSample]) -> Iterator[tuple[str, list[Span]]]:
    return (item for item in texts if not isinstance(item, BadSample))


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
    if len(starts) > MAX_PIECES:
        raise BadSample(
            "limit", f"The text falls into {len(starts)} pieces, more than {MAX_PIECES}; raise chunk_size."
        )
    lasts = [min(first + size, count) - 1 for first in starts]
    if units is None:
        return [(first, last + 1) for first, last in zip(starts, lasts, strict=True)]
    return [(units[first][0], units[last][1]) for first, last in zip(starts, lasts, strict=True)]


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
