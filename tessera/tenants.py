"""Organizations as the operator of the server sees them: made, listed, bounded and removed from outside.

What opens this is the setting `operator_secret`, no API key. Every change is in the audit log of the
organization, with the actor ``operator``.
"""

from __future__ import annotations

import secrets as random
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tessera import audit, namespaces
from tessera.context import Caller, Principal, Warehouse
from tessera.db.engine import now
from tessera.db.tables import (
    api_keys,
    audit_events,
    idempotency,
    organizations,
    secrets,
    usage_counts,
    users,
    webhooks,
)
from tessera.db.tables import namespaces as namespace_rows
from tessera.errors import AlreadyExistsError, BadRequestError, NotFoundError, Problem, ValidationError, quote
from tessera.ids import new_id
from tessera.models.organizations import (
    PERMISSIONS,
    APIKeyCreateResponse,
    CreateOrganizationRequest,
    OrganizationAdminUpdateRequest,
    OrganizationListResponse,
    OrganizationModel,
    OrganizationModelResponse,
    SuccessResponse,
    UserModel,
)
from tessera.organizations import (
    find_user,
    insert_key,
    key_answer,
    new_key,
    organization_answer,
    stated_limits,
)

OPERATOR = "operator"


def create(wh: Warehouse, caller: Caller, request: CreateOrganizationRequest) -> OrganizationModel:
    """Make an organization with its users, and no key yet; an `AlreadyExistsError` when the name is taken."""
    emails = [user.email.lower() for user in request.users]
    problems = [
        Problem(("body", "users", index, "email"), f"{quote(email)} is there twice.", "duplicate")
        for index, email in enumerate(emails)
        if email in emails[:index]
    ]
    if problems:
        raise ValidationError(problems)
    organization_id, at = new_id("org"), now()
    with wh.db.write() as connection:
        _refuse_taken(connection, request.organization_name)
        connection.execute(
            organizations.insert().values(
                organization_id=organization_id,
                internal_id=f"int_{random.token_hex(12)}",
                organization_name=request.organization_name,
                account_type=request.account_type,
                logo_url=request.logo_url,
                metadata=request.metadata or {},
                created_at=at,
                updated_at=at,
            )
        )
        for user in request.users:
            connection.execute(
                users.insert().values(
                    user_id=new_id("usr"),
                    organization_id=organization_id,
                    **user.model_dump(exclude={"metadata"}),
                    metadata=user.metadata or {},
                    created_at=at,
                    updated_at=at,
                )
            )
        audit.record(
            connection,
            _operator(organization_id, caller),
            "permission_updated",
            "organization",
            organization_id,
            {"created": request.organization_name, "users": emails},
        )
        return _with_users(connection, organization_id)


def list_all(wh: Warehouse) -> OrganizationListResponse:
    """Return every organization, oldest first."""
    with wh.db.read() as connection:
        ids = connection.execute(
            sa.select(organizations.c.organization_id).order_by(
                organizations.c.created_at, organizations.c.organization_id
            )
        ).scalars()
        results = [organization_answer(connection, organization_id) for organization_id in list(ids)]
    return OrganizationListResponse(results=results, total_count=len(results))


def get(wh: Warehouse, identifier: str) -> OrganizationModel:
    """Return an organization by id or name, with its users."""
    with wh.db.read() as connection:
        return _with_users(connection, _find(connection, identifier))


def update(
    wh: Warehouse, caller: Caller, identifier: str, request: OrganizationAdminUpdateRequest
) -> OrganizationModelResponse:
    """Change name, account type or limits of an organization; in force with its next request. Repeatable.

    Limits are the operator's own: the organization can set lower ones beside them, but not lift them. Null
    removes them.
    """
    values: dict[str, Any] = request.model_dump(
        include={"organization_name", "account_type"}, exclude_none=True
    )
    if "rate_limits" in request.model_fields_set:
        values["operator_rate_limits"] = stated_limits(request.rate_limits)
    with wh.db.write() as connection:
        organization_id = _find(connection, identifier)
        if request.organization_name is not None:
            _refuse_taken(connection, request.organization_name, organization_id)
        if values:
            connection.execute(
                organizations.update()
                .where(organizations.c.organization_id == organization_id)
                .values(**values, updated_at=now())
            )
            audit.record(
                connection,
                _operator(organization_id, caller),
                "permission_updated",
                "organization",
                organization_id,
                {"fields": sorted(values)},
            )
        return organization_answer(connection, organization_id)


def delete(wh: Warehouse, caller: Caller, identifier: str) -> SuccessResponse:
    """Remove an organization with its keys, users, secrets and namespaces.

    Its keys are refused with their next request. What its namespaces held is removed in the background.
    Killed in between, it can be sent again: the organization goes last.
    """
    with wh.db.write() as connection:
        organization_id = _find(connection, identifier)
        others = connection.execute(
            sa.select(organizations.c.organization_id)
            .where(organizations.c.organization_id != organization_id)
            .limit(1)
        ).first()
        if others is None:
            raise BadRequestError("This is the only organization of this server; make another one first.")
        connection.execute(api_keys.delete().where(api_keys.c.organization_id == organization_id))
        connection.execute(secrets.delete().where(secrets.c.organization_id == organization_id))
    count = 0
    while True:
        with wh.db.write() as connection:
            ids = list(
                connection.execute(
                    sa.select(namespace_rows.c.namespace_id).where(
                        namespace_rows.c.organization_id == organization_id
                    )
                ).scalars()
            )
            if not ids:
                for table in (webhooks, users, usage_counts, idempotency, audit_events, organizations):
                    connection.execute(table.delete().where(table.c.organization_id == organization_id))
                break
        # A request that was under way when the keys went may have made one more in the meantime.
        for namespace_id in ids:
            try:
                namespaces.delete(wh, _operator(organization_id, caller), namespace_id)
            except NotFoundError:
                continue
            count += 1
    return SuccessResponse(message=f"Organization {organization_id} and its {count} namespaces are deleted.")


def bootstrap_key(wh: Warehouse, caller: Caller, identifier: str, email: str) -> APIKeyCreateResponse:
    """Make an admin key for a user of the organization, shown this once."""
    secret = new_key()
    with wh.db.write() as connection:
        organization_id = _find(connection, identifier)
        user = find_user(connection, organization_id, email)
        if user is None:
            raise NotFoundError("user", email)
        row = insert_key(
            connection,
            secret,
            organization_id,
            user["user_id"],
            name=f"bootstrap-{random.token_hex(3)}",
            permissions=["admin"],
            created_by=OPERATOR,
        )
        audit.record(
            connection,
            _operator(organization_id, caller),
            "api_key_created",
            "api_key",
            row["key_id"],
            {"name": row["name"]},
        )
    return APIKeyCreateResponse(**key_answer(wh, row).model_dump(), key=secret)


def _operator(organization_id: str, caller: Caller) -> Principal:
    return Principal(
        key_id="",
        organization_id=organization_id,
        internal_id="",
        user_id=OPERATOR,
        permissions=frozenset(PERMISSIONS),
        asks="delete",
        actor_type=OPERATOR,
        caller=caller,
    )


def _find(connection: Connection, identifier: str) -> str:
    """Return the id of an organization by id or name.

    Organizations name themselves, and cannot be told that another has the name: so a name may be ambiguous,
    and then it stands for none of them.
    """
    ids = list(
        connection.execute(
            sa.select(organizations.c.organization_id).where(
                sa.or_(
                    organizations.c.organization_id == identifier,
                    organizations.c.organization_name == identifier,
                )
            )
        ).scalars()
    )
    if not ids:
        raise NotFoundError("organization", identifier)
    if identifier in ids:
        return identifier
    if len(ids) > 1:
        raise BadRequestError(
            f"{len(ids)} organizations are called {quote(identifier)}: {', '.join(sorted(ids))}. Say which by its id."
        )
    return str(ids[0])


def _refuse_taken(connection: Connection, name: str, but: str | None = None) -> None:
    taken = sa.select(organizations.c.organization_id).where(
        organizations.c.organization_name == name, organizations.c.organization_id != (but or "")
    )
    if connection.execute(taken).first() is not None:
        raise AlreadyExistsError(f"There is an organization named {quote(name)} already.")


def _with_users(connection: Connection, organization_id: str) -> OrganizationModel:
    rows = connection.execute(
        sa.select(users)
        .where(users.c.organization_id == organization_id)
        .order_by(users.c.created_at, users.c.user_id)
    ).mappings()
    return OrganizationModel(
        **organization_answer(connection, organization_id).model_dump(),
        users=[UserModel(**row) for row in rows],
    )
