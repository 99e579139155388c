"""Taxonomies on demand: documents are compared and answered with what is said of them; nothing is stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from sqlalchemy.engine import RowMapping

from tessera import collections, documents, namespaces
from tessera.context import Principal, Warehouse
from tessera.enrichment import KEPT, SHOWN, Verdict, enriched, undone
from tessera.errors import BadRequestError, NotFoundError, Problem, TesseraError, raise_problems
from tessera.filters import And, Condition, parse
from tessera.models.base import JsonObject
from tessera.models.taxonomies import ExecuteTaxonomyRequest, JoinResponse, JoinStats, TaxonomyMatch
from tessera.ports import HIDDEN_FIELDS, Hit, Page, Payload, Vector
from tessera.stages.base import Wanted
from tessera.taxonomy_definition import find
from tessera.taxonomy_matching import BATCH, Taxonomy, compare, ready

_WAYS = ("source_documents", "document_ids", "inputs", "source_collection_id")


def execute(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    identifier: str,
    request: ExecuteTaxonomyRequest,
    version: int | None = None,
) -> JoinResponse:
    """Compare documents with a taxonomy and return each with its assignments. Nothing is written.

    Raises `BadRequestError` when the request names no documents. A document that cannot be compared is told in
    `errors`, and the others go on; the `inputs` of a single one are refused as those of its retriever would be.
    """
    if request.join_mode == "batch":
        raise BadRequestError(
            "This answers at once and stores nothing (join_mode on_demand). To enrich a collection, put the taxonomy "
            "into its taxonomy_applications (PATCH /v1/collections/<id>), or compare anew with POST "
            "/v1/collections/<id>/apply-taxonomy."
        )
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        row = find(connection, place["namespace_id"], identifier, version)
        taxonomy = ready(connection, place, row)
    hits = _documents(wh, principal, place, request, taxonomy)
    given = [request.inputs] if request.inputs is not None and request.source_documents is None else None
    verdicts: list[Verdict | TesseraError] = []
    for start in range(0, len(hits), BATCH):
        verdicts += compare(
            wh,
            taxonomy,
            hits[start : start + BATCH],
            top_k=request.top_k,
            min_confidence=request.min_confidence,
            style=request.hierarchical_enrichment_style,
            inputs=given,
        )
    if given is not None and isinstance(verdicts[0], TesseraError):
        raise verdicts[0]
    is_stored = request.source_documents is None and request.inputs is None
    return _answer(row, hits, verdicts, lambda payload: _shown(wh, place["namespace_id"], payload, is_stored))


def run_stage(
    wh: Warehouse, place: RowMapping, identifier: str, hits: Sequence[Hit], wanted: Wanted
) -> list[Verdict | TesseraError]:
    """Return what a taxonomy says of the hits of a stage. Raises `BadRequestError` when it is gone."""
    with wh.db.read() as connection:
        try:
            row = find(connection, place["namespace_id"], identifier, wanted.version)
        except NotFoundError as error:
            raise BadRequestError(
                f"{error.message} POST /v1/taxonomies/list lists those of this namespace."
            ) from None
        taxonomy = ready(connection, place, row)
    return compare(
        wh,
        taxonomy,
        with_vectors(wh, place["namespace_id"], taxonomy, hits),
        top_k=wanted.top_k,
        min_confidence=wanted.min_confidence,
        style=wanted.style,
    )


def with_vectors(wh: Warehouse, namespace_id: str, taxonomy: Taxonomy, hits: Sequence[Hit]) -> Sequence[Hit]:
    """Return the hits with the vectors that are stored for them, where the taxonomy compares by those."""
    if not taxonomy.needs_vectors:
        return hits
    missing = [hit.document_id for hit in hits if not hit.vectors and hit.document_id]
    stored = {hit.document_id: hit.vectors for hit in wh.views.get(namespace_id, missing, True)}
    return [replace(hit, vectors=hit.vectors or stored.get(hit.document_id, {})) for hit in hits]


def _documents(
    wh: Warehouse,
    principal: Principal,
    place: RowMapping,
    request: ExecuteTaxonomyRequest,
    taxonomy: Taxonomy,
) -> list[Hit]:
    """Return the documents to compare: the ones that were sent, else named, else those of the collection."""
    namespace_id = place["namespace_id"]
    if request.source_documents is not None:
        sent = _sent(request.source_documents)
        return sent if principal.through else list(with_vectors(wh, namespace_id, taxonomy, sent))
    if request.inputs is not None:
        return [Hit("", dict(request.inputs))]
    if request.document_ids is not None:
        # A key for this taxonomy alone reads nothing else.
        found = [] if principal.through else wh.views.get(namespace_id, request.document_ids, True)
        known = {hit.document_id: hit for hit in found}
        for document_id in request.document_ids:
            if document_id not in known:
                raise NotFoundError("document", document_id)
        return [_plain(known[document_id]) for document_id in dict.fromkeys(request.document_ids)]
    if request.source_collection_id is None:
        raise BadRequestError(
            f"Name the documents to compare by one of {', '.join(_WAYS)}; the body has none of them."
        )
    if principal.through:
        raise NotFoundError("collection", request.source_collection_id)
    with wh.db.read() as connection:
        collection_id = collections.find(connection, namespace_id, request.source_collection_id)[
            "collection_id"
        ]
    within: Any = Condition("collection_id", "eq", collection_id, True)
    asked = parse(request.scroll_filters, location=("body", "scroll_filters"))
    if asked is not None:
        within = And((within, asked))
    page = Page(limit=request.limit, filter=within, with_vectors=taxonomy.needs_vectors)
    return [_plain(hit) for hit in wh.views.page(namespace_id, page).hits]


def _plain(hit: Hit) -> Hit:
    return replace(hit, payload=undone(hit.payload))


def _sent(given: Sequence[JsonObject]) -> list[Hit]:
    """Read documents of a request; their `vectors` are lists of numbers by name."""
    out = []
    problems: list[Problem] = []
    for number, document in enumerate(given):
        vectors: dict[str, Vector] = {}
        sent = document.get("vectors")
        for name, values in (sent if isinstance(sent, Mapping) else {}).items():
            numbers = isinstance(values, list) and set(map(type, values)) <= {int, float} and bool(values)
            vector = np.asarray(values if numbers else [np.nan], dtype=np.float64).astype(np.float32)
            if np.isfinite(vector).all():
                vectors[name] = vector
            else:
                problems.append(
                    Problem(
                        ("body", "source_documents", number, "vectors", str(name)),
                        "A vector is a list of finite numbers.",
                        "vector",
                    )
                )
        document_id = document.get("document_id")
        payload = {
            name: value
            for name, value in document.items()
            if name not in HIDDEN_FIELDS and name not in ("vectors", SHOWN, KEPT)
        }
        out.append(Hit(document_id if isinstance(document_id, str) else "", payload, None, vectors))
    raise_problems(problems)
    return out


def _answer(
    row: Mapping[Any, Any],
    hits: Sequence[Hit],
    verdicts: Sequence[Verdict | TesseraError],
    shown: Callable[[Payload], JsonObject],
) -> JoinResponse:
    results: list[JsonObject] = []
    matches: list[TaxonomyMatch] = []
    errors: list[JsonObject] = []
    count = 0
    for number, (hit, verdict) in enumerate(zip(hits, verdicts, strict=True)):
        if isinstance(verdict, TesseraError):
            told = {"type": verdict.type, "message": verdict.message}
            errors.append({"index": number, "document_id": hit.document_id or None, **told})
            results.append(shown(hit.payload))
            continue
        count += bool(verdict.assignments)
        payload = enriched(hit.payload, [verdict])
        results.append(shown(payload))
        for said in payload.get(SHOWN, ()):
            for assignment in said["assignments"]:
                own = {name: assignment[name] for name in assignment if name in TaxonomyMatch.model_fields}
                of = {"document_id": hit.document_id or None, "taxonomy_id": row["taxonomy_id"]}
                named = {"taxonomy_name": row["taxonomy_name"], "version": verdict.version}
                matches.append(
                    TaxonomyMatch(**{**own, **of, **named, "enriched_fields": said["enriched_fields"]})
                )
    stats = JoinStats(
        processed_docs=len(hits),
        batches=-(-len(hits) // BATCH),
        errors=len(errors),
        enriched=count,
    )
    return JoinResponse(stats=stats, results=results, matches=matches, errors=errors)


def _shown(wh: Warehouse, namespace_id: str, payload: Payload, is_stored: bool) -> JsonObject:
    """Return a document as an answer has it; links in what was only sent are nobody's to sign."""
    return documents.present(wh, namespace_id, payload) if is_stored else payload
