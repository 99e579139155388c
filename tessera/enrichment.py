"""PURE: what a taxonomy says of a document, how that is written into its payload, and how it is taken back.

A document that was enriched says so in `_taxonomies`: for each taxonomy its id, its version and the assignments.
`_enriched`, which is not shown, remembers for each field that was written what stood there before, so that the next
comparison begins with the document's own fields again and nothing is ever appended twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from tessera.models.taxonomies import EnrichmentField, EnrichmentStyle, MergeMode
from tessera.ports import HIDDEN_FIELDS, Payload

#: Where a document says what taxonomies say of it, and where the server keeps what it needs to take that back.
SHOWN = "_taxonomies"
KEPT = "_enriched"
#: Never copied from a node: they say who the node is and where it lies.
_OWN_FIELDS = HIDDEN_FIELDS | {
    SHOWN,
    "document_id",
    "collection_id",
    "root_object_id",
    "root_bucket_id",
    "source_object_id",
    "created_at",
    "updated_at",
    "document_blobs",
    "locator",
}
#: Fields that name a node for people, where no enrichment field does.
_LABELS = ("label", "name", "title")


@dataclass(frozen=True, slots=True)
class Tier:
    """One node on the way from the root: the best document of its collection, if any came near enough.

    `fields` are copied from it; None copies all that the document lacks.
    """

    collection_id: str
    label: str
    document_id: str | None = None
    score: float | None = None
    payload: Mapping[str, Any] = field(default_factory=dict)
    fields: tuple[EnrichmentField, ...] | None = None


@dataclass(frozen=True, slots=True)
class Assignment:
    """A document belongs to a node. `score` is the retriever's, `confidence` the same within 0 … 1.

    `tiers` lead from the root to the node; a flat taxonomy has one.
    """

    node_id: str
    label: str
    score: float
    tiers: tuple[Tier, ...]

    @property
    def confidence(self) -> float:
        """Return the score, cut to 0 … 1."""
        return min(1.0, max(0.0, self.score))

    @property
    def path(self) -> list[str]:
        """Return the labels from the root to the node."""
        return [tier.label for tier in self.tiers]

    def to_json(self) -> dict[str, Any]:
        """Return what a document shows of it."""
        return {
            "node_id": self.node_id,
            "document_id": self.tiers[-1].document_id,
            "collection_id": self.tiers[-1].collection_id,
            "label": self.label,
            "score": round(self.score, 6),
            "confidence": round(self.confidence, 6),
            "path": self.path,
            "hierarchy_level": len(self.tiers) - 1,
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one version of a taxonomy says of one document, best first. `style` is null for a flat one."""

    taxonomy_id: str
    version: int
    assignments: tuple[Assignment, ...]
    style: EnrichmentStyle | None = None


def label_of(node: Mapping[str, Any], fields: Iterable[EnrichmentField] | None) -> str:
    """Return what people call a node: its first enrichment field that is a text, its label, name, title, or its id."""
    for path in (*(item.field_path for item in fields or ()), *_LABELS):
        value = _at(node, path)
        if isinstance(value, str) and value:
            return value
    return str(node.get("document_id"))


def enriched(
    base: Payload,
    verdicts: Sequence[Verdict],
    signature: str | None = None,
    by_hand: Collection[str] = (),
) -> Payload:
    """Return the payload `base`, which nothing was written into yet, with what `verdicts` say, in their order.

    `signature` says by what the document was compared; None keeps nothing to take it back with. What users changed
    `by_hand`, by path, stays theirs.
    """
    payload = dict(base)
    records: list[dict[str, Any]] = []
    shown: list[dict[str, Any]] = []
    for verdict in verdicts:
        written: list[str] = []
        for path, value in _values(payload, verdict):
            if any(_overlap(path, mine) for mine in by_hand):
                continue
            record = _write(payload, path, value)
            if record is not None:
                records.append(record)
                written.append(path)
        if verdict.assignments:
            shown.append(
                {
                    "taxonomy_id": verdict.taxonomy_id,
                    "version": verdict.version,
                    "assignments": [assignment.to_json() for assignment in verdict.assignments],
                    "enriched_fields": written,
                }
            )
    if shown:
        payload[SHOWN] = shown
    if signature is not None:
        nodes = {
            tier.document_id
            for verdict in verdicts
            for assignment in verdict.assignments
            for tier in assignment.tiers
            if tier.document_id is not None
        }
        payload[KEPT] = {"signature": signature, "fields": records, "nodes": sorted(nodes)}
    return payload


def undone(payload: Payload) -> Payload:
    """Return the payload as it was before it was enriched; what somebody changed of it since stays as it is."""
    if KEPT not in payload and SHOWN not in payload:
        return payload
    base = {name: value for name, value in payload.items() if name not in (KEPT, SHOWN)}
    for record in reversed((payload.get(KEPT) or {}).get("fields", [])):
        path = record["path"]
        there = _at(base, path)
        if there is None or _digest(there) != record["digest"]:
            continue
        if "before" in record:
            _set(base, path, record["before"])
        else:
            _remove(base, path, record.get("made", path))
    return base


def nodes_of(payload: Mapping[str, Any]) -> set[str]:
    """Return the documents that a document was enriched from."""
    kept = payload.get(KEPT)
    return set(kept.get("nodes", ())) if isinstance(kept, Mapping) else set()


# --- values --------------------------------------------------------------------------------------------


def _values(payload: Mapping[str, Any], verdict: Verdict) -> Iterator[tuple[str, Any]]:
    """Yield the path and the final value of each field that is written."""
    replaced: dict[str, Any] = {}
    appended: dict[str, list[Any]] = {}
    # The nearest node comes first: where several replace one field, its value stays.
    for assignment in verdict.assignments:
        for tier in reversed(assignment.tiers):
            if tier.document_id is None:
                continue
            for item in _copied(payload, tier):
                value = _at(tier.payload, item.field_path)
                target = item.target_field or item.field_path
                if value is None:
                    continue
                if item.merge_mode is MergeMode.REPLACE:
                    replaced.setdefault(target, value)
                else:
                    appended.setdefault(target, []).extend(value if isinstance(value, list) else [value])
    for path, values in appended.items():
        before = replaced.pop(path, _at(payload, path))
        known = before if isinstance(before, list) else [] if before is None else [before]
        replaced[path] = _distinct([*known, *values])
    if verdict.style is not None and verdict.assignments:
        replaced |= _summary(verdict.assignments[0], verdict.style)
    yield from replaced.items()


def _copied(payload: Mapping[str, Any], tier: Tier) -> Iterable[EnrichmentField]:
    if tier.fields is not None:
        return tier.fields
    return [
        EnrichmentField(field_path=name)
        for name in tier.payload
        if name not in _OWN_FIELDS and "." not in name and name not in payload
    ]


def _summary(best: Assignment, style: EnrichmentStyle) -> dict[str, Any]:
    """Return the fields in which a hierarchy tells of its best assignment."""
    fields: dict[str, Any] = {}
    if style is not EnrichmentStyle.BEST_MATCH:
        for number, tier in enumerate(best.tiers, 1):
            fields |= {f"tier{number}_id": tier.collection_id, f"tier{number}_label": tier.label}
            if tier.score is not None:
                fields[f"tier{number}_score"] = round(tier.score, 6)
    if style is not EnrichmentStyle.FULL_CHAIN:
        fields |= {"category_id": best.node_id, "category_name": best.label, "category_path": best.path}
    return fields


def _distinct(values: Sequence[Any]) -> list[Any]:
    found: dict[str, Any] = {}
    for value in values:
        found.setdefault(_digest(value), value)
    return list(found.values())


# --- paths ---------------------------------------------------------------------------------------------


def _at(here: Any, path: str) -> Any:
    for segment in path.split("."):
        here = here.get(segment) if isinstance(here, Mapping) else None
    return here


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _digest(value: Any) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def _write(payload: Payload, path: str, value: Any) -> dict[str, Any] | None:
    """Write `value` and return how to take it back; None where a text or a list lies in the way."""
    parents = path.split(".")[:-1]
    here: Any = payload
    made: str | None = None
    for depth, segment in enumerate(parents):
        below = here.get(segment)
        if below is None:
            made = ".".join(parents[: depth + 1])
            break
        if not isinstance(below, Mapping):
            return None
        here = below
    record: dict[str, Any] = {"path": path, "digest": _digest(value)}
    before = _at(payload, path)
    if before is not None:
        record["before"] = before
    elif made is not None:
        record["made"] = made
    _set(payload, path, value)
    return record


def _set(payload: Payload, path: str, value: Any) -> None:
    """Put `value` at `path`; objects on the way are copied, those of others stay as they are."""
    *parents, last = path.split(".")
    here = payload
    for segment in parents:
        here[segment] = here = dict(here.get(segment) or {})
    here[last] = value


def _remove(payload: Payload, path: str, made: str) -> None:
    """Remove what stands at `path`, and the objects from `made` on that were made for it and are empty then."""
    _set(payload, path, None)
    segments = path.split(".")
    for depth in range(len(segments), 0, -1):
        above = _at(payload, ".".join(segments[: depth - 1])) if depth > 1 else payload
        value = above[segments[depth - 1]]
        is_made = len(".".join(segments[:depth])) >= len(made)
        if not is_made or value not in (None, {}):
            return
        del above[segments[depth - 1]]
