"""What a stage searches with: a query's text, picture, vector, document or content, turned into a vector or words."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tessera import content, fetching, media
from tessera.context import Warehouse
from tessera.errors import BadRequestError, NotFoundError, UnavailableError, quote
from tessera.extractors.base import BadSample, SparseOutput
from tessera.filters import values_at
from tessera.ports import Failed, Hit, SparseText, Vector
from tessera.retriever_features import NO_WORDS, vector_of
from tessera.retriever_plan import Plan
from tessera.stages.base import QueryInput, QueryVector

#: A picture in a query, decoded, may not be larger than this.
MAX_QUERY_IMAGE_BYTES = 16 * 2**20
#: A text in a query that comes as content, likewise.
MAX_QUERY_TEXT_BYTES = 2**20
#: Longest time to decode a query image.
QUERY_IMAGE_TIMEOUT_S = 20.0
#: Longest time to fetch a query's content.
QUERY_FETCH_TIMEOUT_S = 10.0


def embed(wh: Warehouse, plan: Plan, uri: str, query: QueryInput) -> QueryVector:
    """Return what to search the feature `uri` with for a query. Raises `BadRequestError` for one that does not fit."""
    vector, extractor = vector_of(wh, plan.place, uri)
    if isinstance(vector, SparseOutput):
        return word_query(wh, plan, query)
    if query.kind == "vector":
        if query.value.shape != (vector.dimensions,):
            raise BadRequestError(
                f"The query vector has {query.value.size} numbers; {uri} holds vectors of {vector.dimensions}."
            )
        return QueryVector(vector.name, query.value)
    if query.kind == "document":
        stored = _query_document(wh, plan, query.value).vectors.get(vector.name)
        if stored is None:
            raise BadRequestError(
                f"Document {quote(query.value)} has no vector {vector.name}; choose another feature_uri."
            )
        return QueryVector(vector.name, np.asarray(stored, dtype=np.float32))
    query = _told(wh, query)
    try:
        if query.kind == "text":
            return QueryVector(vector.name, extractor.embed_query(vector, "text", _text(query.value)))
        data = query.value if isinstance(query.value, bytes) else _image_bytes(query.value)
        with tempfile.TemporaryDirectory(prefix="tessera-query-") as folder:
            picture = _settled_picture(wh, data, Path(folder))
            return QueryVector(vector.name, extractor.embed_query(vector, "image", picture))
    except BadSample as error:
        raise BadRequestError(
            f"{uri} cannot take this query: {error.message}",
            details={"feature_uri": uri, "input": query.kind},
        ) from error


def word_query(wh: Warehouse, plan: Plan, query: QueryInput) -> QueryVector:
    """Return a search of the namespace's keyword index for the words of a text, or of a stored document."""
    indexes = SparseText.all_of(plan.place["sparse_vectors"])
    if not indexes:
        raise BadRequestError(NO_WORDS)
    query = _told(wh, query)
    if query.kind == "text":
        return QueryVector(indexes[0].name, None, _text(query.value))
    if query.kind == "document":
        payload = _query_document(wh, plan, query.value).payload
        values = [value for name in indexes[0].fields for value in values_at(payload, name)]
        texts = [value for value in values if isinstance(value, str)]
        if not any(text.strip() for text in texts):
            raise BadRequestError(f"Document {quote(query.value)} has no text; choose another feature_uri.")
        return QueryVector(indexes[0].name, None, "\n".join(texts))
    raise BadRequestError(
        f"The keyword index is searched by a text or a document, not by {query.kind}.",
        details={"input": query.kind},
    )


def _query_document(wh: Warehouse, plan: Plan, document_id: object) -> Hit:
    found = wh.views.get(plan.place["namespace_id"], [str(document_id)], True)
    # A document of a collection that this retriever does not read must look like one that does not exist.
    if not found or found[0].payload.get("collection_id") not in plan.collection_ids:
        raise NotFoundError("document", str(document_id))
    return found[0]


def _told(wh: Warehouse, query: QueryInput) -> QueryInput:
    """Return what a query given as content is: a text when it is one, else a picture. What is a URL is fetched."""
    if query.kind in ("content", "image") and isinstance(query.value, str):
        scheme = content.url_scheme(query.value)
        if scheme in ("http", "https"):
            return _fetched(wh, query)
        if scheme is not None:
            raise BadRequestError(
                f"The query {query.kind} is a URL of scheme {scheme[:32]}; for a query http:// and https:// are "
                "fetched. Send one of those, or the content itself as base64 or as a data URI."
            )
    if query.kind != "content":
        return query
    if not isinstance(query.value, str) or not query.value.lower().startswith("data:text/"):
        return QueryInput("image", query.value)
    try:
        data = content.decode(query.value, "text", max_bytes=MAX_QUERY_TEXT_BYTES).data
    except content.BadContent as error:
        raise BadRequestError(f"The query text {error.message}", details={"reason": error.kind}) from None
    return QueryInput("text", data.decode())


def _fetched(wh: Warehouse, query: QueryInput) -> QueryInput:
    """Return the text or the picture behind a URL. Raises `FetchError`, a 400, for what does not come."""
    pieces: list[bytes] = []
    fetcher = replace(
        wh.fetcher, max_bytes=MAX_QUERY_IMAGE_BYTES, total_s=QUERY_FETCH_TIMEOUT_S, bound=" (for a query)"
    )
    fetcher.fetch(query.value.strip(), pieces.append)
    data = b"".join(pieces)
    found = content.sniff(data) or ""
    if found.startswith("image/"):
        return QueryInput("image", data)
    is_text = (not found or found.startswith("text/")) and content.begins_as_text(data[:4096])
    if query.kind == "content" and is_text and len(data) <= MAX_QUERY_TEXT_BYTES:
        with suppress(UnicodeDecodeError):
            return QueryInput("text", data.decode(content.encoding_of(data)))
    raise BadRequestError(
        f"{fetching.shown(query.value)} is {found or 'nothing that is known'}; a query is a picture"
        f"{' or a text of at most 1 MiB in UTF-8' if query.kind == 'content' else ''}."
    )


def _settled_picture(wh: Warehouse, data: bytes, folder: Path) -> Path:
    """Return a picture file in `folder` that holds what models see of `data`, decoded in a process of its own.

    Raises `BadSample` for what is no picture, or one that takes its decoder too much.
    """
    given, settled = folder / "given", folder / "settled.png"
    given.write_bytes(data)
    ((_, outcome),) = wh.decoder.map(
        media.settle_picture, [(str(given), str(settled))], timeout_s=QUERY_IMAGE_TIMEOUT_S
    )
    if isinstance(outcome, Failed):
        if outcome.kind == "ours":
            raise UnavailableError(
                f"The query image cannot be decoded now: {outcome.message} Send the request again.",
                retry_after_s=1,
            )
        raise BadSample(
            outcome.kind,
            "Decoding it takes more time or memory than is allowed, or ends the decoder. Send a smaller or a whole "
            "picture.",
        )
    if outcome is not None:
        raise BadSample(*outcome)
    return settled


def vectors_of(
    wh: Warehouse, plan: Plan, document_ids: Sequence[str], uri: str | None
) -> dict[str, Mapping[str, Vector]]:
    """Return the vectors of documents by id and name; only that of the feature `uri` when it is named."""
    name = vector_of(wh, plan.place, uri)[0].name if uri else None
    return {
        hit.document_id: {key: value for key, value in hit.vectors.items() if name in (None, key)}
        for hit in wh.views.get(plan.place["namespace_id"], document_ids, True)
    }


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadRequestError(f"The query text is {quote(value)}; a text that is not blank is needed.")
    return value


def _image_bytes(value: Any) -> bytes:
    """Decode a picture given as base64 or as a data URI."""
    try:
        return content.decode(value, "image", max_bytes=MAX_QUERY_IMAGE_BYTES).data
    except content.BadContent as error:
        raise BadRequestError(f"The query image {error.message}", details={"reason": error.kind}) from None
