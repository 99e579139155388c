"""Scopes of keys: the resources that a key is confined to, and what it may do there.

A scope names resources of one type by id or name, ``*`` standing for any characters. A key without
scopes reaches the whole organization.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase

from tessera.context import Principal
from tessera.errors import ForbiddenError

#: What each operation of a scope allows, from weakest to strongest.
RANK = {
    "read": 1,
    "execute": 1,
    "write": 2,
    "create": 2,
    "cancel": 2,
    "modify": 2,
    "delete": 3,
    "manage": 4,
    "admin": 4,
}
_ALL = 4


def matching(
    principal: Principal, resource_type: str, names: tuple[str, ...]
) -> Iterator[Mapping[str, object]]:
    """Yield the key's scopes of that type that name the resource by one of `names`."""
    for scope in principal.scopes:
        if scope.get("resource_type") != resource_type:
            continue
        # `*` alone is a wildcard: brackets and question marks are themselves.
        pattern = str(scope.get("resource_id", "")).replace("[", "[[]").replace("?", "[?]")
        if any(fnmatchcase(name, pattern) for name in names):
            yield scope


def strength(scope: Mapping[str, object]) -> int:
    """Return the strongest of the scope's operations as a rank of `RANK`; without any, all are allowed."""
    operations = scope.get("operations")
    if not isinstance(operations, list):
        return _ALL
    return max((RANK.get(str(word).partition("_")[0], 1) for word in operations), default=0)


def check_administers(principal: Principal, resource: str = "organization") -> None:
    """Refuse a key that is confined to other resources: it could make itself a key without a scope.

    A scope on all of `resource` is enough where that lets nobody out of a scope; making, changing and
    rotating keys does, so for these only one on the organization is.
    """
    if not principal.scopes:
        return
    for kind in {"organization", resource}:
        for scope in matching(principal, kind, (principal.organization_id,)):
            if strength(scope) >= RANK["admin"]:
                return
    raise ForbiddenError(
        "This key is confined to some resources; organizations, users and keys need a key without scopes."
    )
