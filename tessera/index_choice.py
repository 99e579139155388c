"""Which index serves a condition: rules that are compared with what the engine's translator really does."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tessera.filters import Condition, instant
from tessera.models import IndexType, PayloadIndex

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_RANGES = frozenset({"gt", "gte", "lt", "lte"})
_GEO = {"geo_radius": "index", "geo_bounding_box": "index", "geo_polygon": "partly"}


def served_by(condition: Condition, indexes: Mapping[str, PayloadIndex]) -> str:
    """Return who answers a condition: the ``index``; ``partly``, it narrows down; or a ``scan`` of each document.

    As `adapters/qdrant/translate.py` decides, but for values in documents that their index does not see.
    """
    operator, value = condition.operator, condition.value
    if operator in ("ne", "nin"):
        positive = Condition(
            condition.path, "eq" if operator == "ne" else "in", value, condition.case_sensitive
        )
        return "index" if served_by(positive, indexes) == "index" else "scan"
    if operator == "in" and not value:
        return "index"
    index = indexes.get(condition.path)
    if index is None or '"' in condition.path or "\\" in condition.path:
        return "scan"
    if operator in ("exists", "is_null") or (operator == "eq" and value is None):
        return "index"
    if operator == "in":
        single = [Condition(condition.path, "eq", one, condition.case_sensitive) for one in value]
        return "index" if all(served_by(one, indexes) == "index" for one in single) else "scan"
    return _by_type(condition, index)


def _by_type(condition: Condition, index: PayloadIndex) -> str:
    operator, value, exact_case = condition.operator, condition.value, condition.case_sensitive
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    match index.type:
        case IndexType.KEYWORD if isinstance(value, str):
            if not exact_case and operator in ("eq", "contains") and instant(value) is not None:
                return "scan"
            if operator == "eq" or (operator == "starts_with" and value):
                return "index"
            return "partly" if operator in ("contains", "ends_with") and value else "scan"
        case IndexType.INTEGER | IndexType.FLOAT if is_number:
            # Beyond 2**53 numbers are not exact in the engine's ranges; whole ones are looked up as they are.
            is_exact = abs(value) < 2**53
            if operator in _RANGES:
                return "index" if is_exact else "scan"
            if not is_exact and not (index.type == IndexType.INTEGER and isinstance(value, int)):
                return "scan"
            return {"eq": "index", "contains": "partly"}.get(operator, "scan")
        case IndexType.BOOL if isinstance(value, bool):
            return {"eq": "index", "contains": "partly"}.get(operator, "scan")
        case IndexType.DATETIME if isinstance(value, str) and instant(value) is not None:
            return "index" if operator in _RANGES or (operator == "eq" and not exact_case) else "scan"
        case IndexType.UUID if isinstance(value, str) and operator == "eq" and _UUID.fullmatch(value):
            return "partly" if exact_case else "index"
        case IndexType.TEXT if isinstance(value, str):
            return _by_words(operator, str(index.field_schema.get("tokenizer")))
        case IndexType.GEO:
            return _GEO.get(operator, "scan")
    return "scan"


def _by_words(operator: str, tokenizer: str) -> str:
    if operator == "text" or (operator == "words" and tokenizer != "prefix"):
        return "index"
    return "partly" if operator in ("words", "phrase") and tokenizer != "multilingual" else "scan"
