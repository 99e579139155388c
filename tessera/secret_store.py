"""Secrets of an organization: written once, used by the server, never shown again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tessera import audit, names, sealing
from tessera.context import Principal, Warehouse
from tessera.db.engine import now
from tessera.db.tables import (
    doomed_views,
    fetches,
    namespaces,
    organizations,
    purges,
    secrets,
    webhooks,
)
from tessera.errors import AlreadyExistsError, NotFoundError, quote, raise_problems
from tessera.models.organizations import (
    CreateSecretRequest,
    SecretResponse,
    SecretsListResponse,
    UpdateSecretRequest,
)
from tessera.scopes import check_administers

if TYPE_CHECKING:
    from tessera.db.engine import Database
    from tessera.sealing import Vault

#: Every column that may hold sealed texts, alone or somewhere inside JSON.
_SEALED: tuple[tuple[sa.Table, str], ...] = (
    (secrets, "sealed"),
    (organizations, "infrastructure"),
    (namespaces, "infrastructure"),
    (namespaces, "place"),
    (doomed_views, "place"),
    (purges, "targets"),
    (fetches, "sealed_url"),
    (webhooks, "secret"),
    (webhooks, "channels"),
)


def create(wh: Warehouse, principal: Principal, request: CreateSecretRequest) -> SecretResponse:
    """Keep a secret, sealed. Durable when it returns; a taken name is an `AlreadyExistsError`."""
    check_administers(principal, "organization")
    name = request.secret_name
    raise_problems(names.check(name, ("body", "secret_name"), id_prefix="secret"))
    at = now()
    with wh.db.write() as connection:
        if _exists(connection, principal, name):
            raise AlreadyExistsError(
                f"There is a secret {quote(name)} already. Change it with PUT /v1/organizations/secrets/{name}."
            )
        connection.execute(
            secrets.insert().values(
                organization_id=principal.organization_id,
                secret_name=name,
                sealed=wh.vault.seal(request.secret_value),
                created_at=at,
                updated_at=at,
            )
        )
        audit.record(connection, principal, "secret_created", "organization", name)
    return SecretResponse(secret_name=name, created=True)


def list_names(wh: Warehouse, principal: Principal) -> SecretsListResponse:
    """Return the names of the organization's secrets, in order; never a value."""
    check_administers(principal, "organization")
    with wh.db.read() as connection:
        found = sorted(secret_names(connection, principal.organization_id))
    return SecretsListResponse(secrets=found, count=len(found))


def secret_names(connection: Connection, organization_id: str) -> set[str]:
    """Return the names of an organization's secrets."""
    return set(
        connection.execute(
            sa.select(secrets.c.secret_name).where(secrets.c.organization_id == organization_id)
        ).scalars()
    )


def update(wh: Warehouse, principal: Principal, name: str, request: UpdateSecretRequest) -> SecretResponse:
    """Replace a secret's value; in force with its next use. Repeatable."""
    check_administers(principal, "organization")
    with wh.db.write() as connection:
        if not _exists(connection, principal, name):
            raise NotFoundError("secret", name)
        connection.execute(
            secrets.update()
            .where(_mine(principal, name))
            .values(sealed=wh.vault.seal(request.secret_value), updated_at=now())
        )
        audit.record(connection, principal, "secret_updated", "organization", name)
    return SecretResponse(secret_name=name, updated=True)


def delete(wh: Warehouse, principal: Principal, name: str) -> SecretResponse:
    """Remove a secret and every trace of its value from the database."""
    check_administers(principal, "organization")
    with wh.db.write() as connection:
        if not _exists(connection, principal, name):
            raise NotFoundError("secret", name)
        connection.execute(secrets.delete().where(_mine(principal, name)))
        audit.record(connection, principal, "secret_deleted", "organization", name)
    return SecretResponse(secret_name=name, deleted=True)


def value_of(wh: Warehouse, organization_id: str, name: str) -> str:
    """Return a secret's value, for the server's own use. Raises `NotFoundError`."""
    with wh.db.read() as connection:
        sealed = connection.execute(
            sa.select(secrets.c.sealed).where(
                secrets.c.organization_id == organization_id, secrets.c.secret_name == name
            )
        ).scalar()
    if sealed is None:
        raise NotFoundError("secret", name)
    return wh.vault.unseal(sealed)


def sealed_texts(db: Database) -> list[str]:
    """Return every sealed text of the database."""
    with db.read() as connection:
        return [
            text
            for table, column in _SEALED
            for _, value in _rows(connection, table, column)
            for text in sealing.sealed_in(value)
        ]


def reseal_all(db: Database, vault: Vault) -> int:
    """Seal whatever is sealed anew with the vault's present key, in one transaction; return how many texts."""
    count = 0
    with db.write() as connection:
        for table, column in _SEALED:
            for key, value in list(_rows(connection, table, column)):
                fresh = vault.reseal(value)
                if fresh != value:
                    count += _difference(value, fresh)
                    connection.execute(table.update().where(key).values({column: fresh}))
    # The old texts are worthless without the old key, but nothing has to keep them either.
    db.forget_deleted()
    return count


def discard_lost(db: Database, vault: Vault) -> int:
    """Remove what `vault` cannot open: secrets altogether, other credentials become empty. Return how many texts."""

    def emptied(value: Any) -> Any:
        if isinstance(value, str):
            return vault.seal("") if value.startswith(sealing.MARK) and vault.lacks(value) else value
        if isinstance(value, dict):
            return {name: emptied(item) for name, item in value.items()}
        return [emptied(item) for item in value] if isinstance(value, list) else value

    count = 0
    with db.write() as connection:
        for table, column in _SEALED:
            for key, value in list(_rows(connection, table, column)):
                fresh = emptied(value)
                if fresh == value:
                    continue
                count += _difference(value, fresh)
                statement = (
                    table.delete() if table is secrets else table.update().values({column: fresh})
                ).where(key)
                connection.execute(statement)
    db.forget_deleted()
    return count


def _rows(
    connection: Connection, table: sa.Table, column: str
) -> Iterator[tuple[sa.ColumnElement[bool], Any]]:
    keys = list(table.primary_key)
    # Of thousands of namespaces few hold a credential: the database looks first.
    for *identity, value in connection.execute(
        sa.select(*keys, table.c[column]).where(sa.cast(table.c[column], sa.String).contains(sealing.MARK))
    ):
        yield sa.and_(*(key == part for key, part in zip(keys, identity, strict=True))), value


def _difference(old: Any, new: Any) -> int:
    if isinstance(old, dict):
        return sum(_difference(old[name], new[name]) for name in old)
    if isinstance(old, list):
        return sum(_difference(a, b) for a, b in zip(old, new, strict=True))
    return int(old != new)


def _mine(principal: Principal, name: str) -> sa.ColumnElement[bool]:
    return sa.and_(secrets.c.organization_id == principal.organization_id, secrets.c.secret_name == name)


def _exists(connection: Connection, principal: Principal, name: str) -> bool:
    return (
        connection.execute(sa.select(secrets.c.secret_name).where(_mine(principal, name))).first() is not None
    )
