"""The nouns: one model per noun for the answer, Create, Patch and Update beside it; one file a noun.

Names, defaults and bounds are those of the API. The names that every layer uses are exported here.
"""

from tessera.models.base import JsonObject, Model, PaginationResponse
from tessera.models.indexes import INDEX_PARAMS, IndexType, PayloadIndex, PayloadIndexConfig

__all__ = [
    "INDEX_PARAMS",
    "IndexType",
    "JsonObject",
    "Model",
    "PaginationResponse",
    "PayloadIndex",
    "PayloadIndexConfig",
]
