"""Writing what an execution found into the documents themselves, through the log.

Only the fields of the result change, so doing it again changes nothing. What a user has set of these fields by hand
stays; of other fields nothing is touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tessera import document_edits
from tessera.context import Warehouse
from tessera.models.base import JsonObject

if TYPE_CHECKING:
    from tessera.cluster_artifacts import Found

#: What a document gets unless a cluster says otherwise.
DEFAULT_FIELDS = {name: name for name in ("cluster_id", "cluster_label", "distance_to_centroid")}
#: Documents of one change of the log.
PORTION = 1000


def enrich_all(
    wh: Warehouse,
    row: Mapping[str, Any],
    result: Mapping[str, Any],
    found: Found,
    still_wanted: Callable[[], None],
) -> int:
    """Enrich the documents of all collections that were clustered, and return how many that were.

    `still_wanted` is called before each portion, and raises when there is to be no other.
    """
    return sum(
        enrich(wh, row, result, found, collection_id, still_wanted)
        for collection_id in dict.fromkeys(found.collection_ids)
    )


def enrich(
    wh: Warehouse,
    row: Mapping[str, Any],
    result: Mapping[str, Any],
    found: Found,
    collection_id: str,
    still_wanted: Callable[[], None] = lambda: None,
) -> int:
    """Enrich the documents of one collection that are there still. Durable and findable when it returns."""
    enriched = 0
    for portion in _portions(_changes(row, result, found, collection_id)):
        still_wanted()
        enriched += document_edits.add_fields(wh, row["namespace_id"], collection_id, portion)
    return enriched


def _changes(
    row: Mapping[str, Any], result: Mapping[str, Any], found: Found, collection_id: str
) -> Iterator[tuple[str, JsonObject]]:
    mappings = (row["definition"]["source_enrichment_config"] or {}).get("field_mappings")
    fields = {each["target_field"]: each["source_field"] for each in mappings} if mappings else DEFAULT_FIELDS
    about = {each["cluster_id"]: each for each in result["centroids"]}
    overrides = result.get("label_overrides") or {}
    for index, document_id in enumerate(found.document_ids):
        if found.collection_ids[index] != collection_id:
            continue
        name = f"cl_{found.labels[index]}" if found.labels[index] >= 0 else None
        of_cluster = about.get(name or "", {})
        values = {
            "cluster_id": name,
            "cluster_label": overrides.get(name, of_cluster.get("label")),
            "distance_to_centroid": number(found.distances[index]),
            "member_count": of_cluster.get("num_members"),
            "keywords": of_cluster.get("keywords"),
            "x": found.points[index][0],
            "y": found.points[index][1],
        }
        yield document_id, {target: values[source] for target, source in fields.items()}


def number(value: float | None) -> float | None:
    """Return a distance; None for what belongs to no cluster and so has none."""
    return None if value is None or math.isnan(value) else float(value)


def _portions(changes: Iterator[tuple[str, JsonObject]]) -> Iterator[dict[str, JsonObject]]:
    portion: dict[str, JsonObject] = {}
    for document_id, values in changes:
        portion[document_id] = values
        if len(portion) == PORTION:
            yield portion
            portion = {}
    if portion:
        yield portion
