"""What can be searched by in a namespace: its vectors and keyword indexes, by feature URI."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import orjson
from sqlalchemy.engine import RowMapping

from tessera.context import Warehouse
from tessera.errors import BadRequestError, quote
from tessera.extraction import configured
from tessera.extractors.base import SparseOutput, VectorOutput
from tessera.ports import SparseText
from tessera.registry import Registry

#: What a search by words is answered where there is nothing to search.
NO_WORDS = (
    "This namespace has no keyword index: none of its extractors writes texts. Search by a vector, or create a "
    "namespace with one that does, for example text_extractor."
)


def vector_of(wh: Warehouse, place: RowMapping, uri: str, named_by: str = "feature_uri") -> tuple[Any, Any]:
    """Return the vector output that `uri` names in this namespace, and the extractor that embeds for it.

    Raises `BadRequestError` that speaks of the field `named_by`.
    """
    features = features_of(wh, place)
    for known, vector, extractor in features:
        if uri in (known, vector.name):
            return vector, extractor
    try:
        address = wh.registry.resolve_feature(uri)
    except (LookupError, ValueError) as error:
        address, reason = None, str(error)
    else:
        reason = "none of this namespace's extractors writes it"
    for _, vector, extractor in features:
        if address is not None and vector.name == address.name:
            return vector, extractor
    names = ", ".join(known for known, _, _ in features) or "none"
    raise BadRequestError(
        f"{named_by} {quote(uri)} is not a feature of this namespace ({reason}). Its features: {names}.",
        details={"feature_uri": uri[:200], "features": [known for known, _, _ in features]},
    )


def features_of(wh: Warehouse, place: RowMapping) -> tuple[tuple[str, Any, Any], ...]:
    """Return (URI, vector output, extractor) for every vector and keyword index of the namespace."""
    return _features_of(
        wh.registry,
        orjson.dumps(place["feature_extractors"]),
        orjson.dumps(place["vector_inference_map"]),
        frozenset(index.name for index in SparseText.all_of(place["sparse_vectors"])),
        wh.registry.generation(entry["feature_extractor_name"] for entry in place["feature_extractors"]),
    )


@lru_cache(maxsize=1024)
def _features_of(
    registry: Registry, extractors: bytes, running: bytes, sparse: frozenset[str], generation: int
) -> tuple[tuple[str, Any, Any], ...]:
    # A namespace's extractors and models are fixed when it is made; asking for them looks for files. Only what
    # is a file itself may have changed since, and then `generation` has.
    found = []
    models = orjson.loads(running)
    for entry in orjson.loads(extractors):
        if registry.find(entry["feature_extractor_name"], entry["version"]) is None:
            continue  # removed, or broken: what the others wrote is found all the same
        extractor, params = configured(
            registry,
            entry["feature_extractor_name"],
            entry["version"],
            entry.get("params") or {},
            models,
        )
        outputs = extractor.outputs(params)
        kept = [words for words in outputs.sparse if words.name in sparse]
        named: list[VectorOutput | SparseOutput] = [*outputs.vectors, *kept]
        for vector in named:
            uri = f"mixpeek://{entry['feature_extractor_name']}@{entry['version']}/{vector.inference_name}"
            found.append((uri, vector, extractor))
    return tuple(found)


def text_features(wh: Warehouse, place: RowMapping) -> list[str]:
    """Return the URIs of the vectors that a text can be turned into."""
    return [
        uri
        for uri, vector, _ in features_of(wh, place)
        if isinstance(vector, VectorOutput) and "text" in vector.query_inputs
    ]
