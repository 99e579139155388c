"""Organizations, users and API keys: who may do what.

Only the SHA-256 of a key is kept. A key is looked up by that digest through an index, and compared in
constant time. A revoked or expired key, and one of a suspended user, is refused with the next request.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera import audit, limits, names
from tessera.context import Caller, Principal, Warehouse
from tessera.db.engine import now
from tessera.db.tables import api_keys, organizations, usage_counts, users
from tessera.errors import (
    AlreadyExistsError,
    BadRequestError,
    NotEnabledError,
    NotFoundError,
    Problem,
    UnauthorizedError,
    ValidationError,
    quote,
    raise_problems,
)
from tessera.ids import new_id
from tessera.models.organizations import (
    PERMISSIONS,
    APIKeyCreateRequest,
    APIKeyCreateResponse,
    APIKeyListResponse,
    APIKeyModel,
    APIKeyUpdateRequest,
    MeKey,
    MeResponse,
    OrganizationInfrastructureAnswer,
    OrganizationModelResponse,
    OrganizationUpdateRequest,
    RateLimits,
    SuccessResponse,
    UserCreateRequest,
    UserListResponse,
    UserModel,
    UserUpdateRequest,
)
from tessera.scopes import check_administers

if TYPE_CHECKING:
    from tessera.db.engine import Database

#: The user that the first start makes.
FIRST_USER_EMAIL = "admin@localhost"

_KEY_FORM = re.compile(r"sk_(live|test)_[A-Za-z0-9]{16,128}")
_PREFIX_LENGTH = 13
_LAST_USED_EVERY_S = 60.0


# --- checking a key -----------------------------------------------------------------------------------

_BY_DIGEST = (
    sa.select(
        api_keys.c.key_id,
        api_keys.c.key_hash,
        api_keys.c.organization_id,
        organizations.c.internal_id,
        api_keys.c.user_id,
        users.c.status.label("user_status"),
        api_keys.c.permissions,
        api_keys.c.scopes,
        api_keys.c.status,
        api_keys.c.expires_at,
        api_keys.c.rate_limit_override,
        api_keys.c.allowed_origins,
        organizations.c.account_type,
        organizations.c.rate_limits,
        organizations.c.operator_rate_limits,
        organizations.c.read_auditing,
    )
    .join(organizations, organizations.c.organization_id == api_keys.c.organization_id)
    .join(users, users.c.user_id == api_keys.c.user_id)
    .where(api_keys.c.key_hash == sa.bindparam("digest"))
)


class Keys:
    """Checks keys: one indexed SELECT for each request, so that a revoked key is refused at once.

    On SQLite `check` takes about 10 µs, on a connection that it keeps for the one thread that calls it; a
    pooled transaction takes 110 µs. Elsewhere it is `blocking`: it waits for a network, in any thread.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self.blocking = not db.is_sqlite
        self._sql = str(_BY_DIGEST.compile(db.engine))
        self._kept: Any = None
        self._used: dict[str, float] = {}

    def check(self, key: str, caller: Caller | None = None) -> Principal:
        """Return who `key` stands for. Raises `UnauthorizedError`; the message never holds the key."""
        if not _KEY_FORM.fullmatch(key):
            raise UnauthorizedError("This is not an API key: keys begin with sk_live_ or sk_test_.")
        digest = hashlib.sha256(key.encode()).digest()
        row = self._find_kept(digest) if not self.blocking else self._find(digest)
        if row is None or not hmac.compare_digest(bytes(row[1]), digest):
            raise UnauthorizedError("This API key is not known. Keys are shown once, when they are made.")
        (
            key_id,
            _,
            organization_id,
            internal_id,
            user_id,
            user_status,
            permissions,
            scopes,
            status,
            expires,
            key_limit,
            origins,
            account_type,
            rate_limits,
            operator_limits,
            reads_audited,
        ) = row
        if status == "revoked":
            raise UnauthorizedError(
                "This API key was revoked. Use another one, or ask an admin for a new one."
            )
        if status != "active" or (expires is not None and expires <= now()):
            raise UnauthorizedError("This API key has expired. Ask an admin for a new one.")
        if user_status != "active":
            raise UnauthorizedError("The user of this API key is not active. Ask an admin.")
        self._note_use(key_id)
        return Principal(
            key_id=key_id,
            organization_id=organization_id,
            internal_id=internal_id,
            user_id=user_id,
            permissions=expand(_json(permissions)),
            scopes=tuple(_json(scopes)),
            account_type=account_type,
            rate_limits=_json(rate_limits)
            if operator_limits is None
            else limits.strictest(_json(rate_limits), _json(operator_limits)),
            key_limit=key_limit,
            reads_audited=bool(reads_audited),
            allowed_origins=tuple(_json(origins) or ()),
            caller=caller,
        )

    def close(self) -> None:
        """Let go of the kept connection."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def _find(self, digest: bytes) -> Sequence[Any] | None:
        with self._db.read() as connection:
            return connection.execute(_BY_DIGEST, {"digest": digest}).one_or_none()

    def _find_kept(self, digest: bytes) -> Sequence[Any] | None:
        try:
            if self._kept is None:
                self._kept = self._db.engine.raw_connection()
            # Without a transaction around it, so that it holds no snapshot and always sees what was committed.
            row: Sequence[Any] | None = self._kept.dbapi_connection.execute(self._sql, (digest,)).fetchone()
        except Exception:  # noqa: BLE001  the driver's own; a connection that broke must not lock everybody out
            self._let_go()
            return self._find(digest)
        return row

    def _let_go(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.invalidate()

    def _note_use(self, key_id: str) -> None:
        at = time.monotonic()
        if at - self._used.get(key_id, -_LAST_USED_EVERY_S) < _LAST_USED_EVERY_S:
            return
        if len(self._used) > 10_000:
            self._used.clear()
        self._used[key_id] = at
        moment = now()

        def write(connection: Connection) -> None:
            connection.execute(
                api_keys.update().where(api_keys.c.key_id == key_id).values(last_used_at=moment)
            )

        self._db.later(write)


def expand(permissions: Iterable[str]) -> frozenset[str]:
    """Return `permissions` with all that they include: ``{"write"}`` gives read and write."""
    strongest = max((PERMISSIONS.index(p) for p in permissions if p in PERMISSIONS), default=-1)
    return frozenset(PERMISSIONS[: strongest + 1])


def _json(value: Any) -> Any:
    return orjson.loads(value) if isinstance(value, str | bytes) else value


# --- the first start ----------------------------------------------------------------------------------


def is_new(db: Database) -> bool:
    """Whether `db` has no organization yet."""
    with db.read() as connection:
        return connection.execute(sa.select(organizations.c.organization_id).limit(1)).first() is None


def bootstrap(db: Database, key: str) -> None:
    """Make the first organization, its first user, and `key` as that user's admin key."""
    at = now()
    organization_id, user_id = new_id("org"), new_id("usr")
    with db.write() as connection:
        connection.execute(
            organizations.insert().values(
                organization_id=organization_id,
                internal_id=f"int_{secrets.token_hex(12)}",
                organization_name="default",
                account_type="enterprise",
                created_at=at,
                updated_at=at,
            )
        )
        connection.execute(
            users.insert().values(
                user_id=user_id,
                organization_id=organization_id,
                email=FIRST_USER_EMAIL,
                user_name="admin",
                role="admin",
                status="active",
                metadata={},
                created_at=at,
                updated_at=at,
            )
        )
        insert_key(
            connection, key, organization_id, user_id, name="admin", permissions=["admin"], created_by=None
        )


def new_key() -> str:
    """Return a fresh secret: 192 random bits."""
    return f"sk_live_{secrets.token_hex(24)}"


# --- keys ---------------------------------------------------------------------------------------------


def create_key(
    wh: Warehouse, principal: Principal, email: str, request: APIKeyCreateRequest
) -> APIKeyCreateResponse:
    """Make a key for a user and return it with its secret, which is shown this once.

    Not repeatable: a second call with the same name is an `AlreadyExistsError`.
    """
    check_administers(principal)
    raise_problems(names.check(request.name, ("body", "name"), id_prefix="key"))
    secret = new_key()
    with wh.db.write() as connection:
        user = _user(connection, principal.organization_id, email)
        limits.check_quota(wh, connection, principal, "api_keys")
        row = insert_key(
            connection,
            secret,
            principal.organization_id,
            user["user_id"],
            name=request.name,
            description=request.description or "",
            permissions=[
                str(p) for p in (["read", "write"] if request.permissions is None else request.permissions)
            ],
            scopes=_scopes(request),
            rate_limit_override=request.rate_limit_override,
            expires_at=_end(request),
            allowed_origins=sa.null() if request.allowed_origins is None else request.allowed_origins,
            created_by=principal.user_id,
        )
        audit.record(
            connection, principal, "api_key_created", "api_key", row["key_id"], {"name": row["name"]}
        )
    return APIKeyCreateResponse(**key_answer(wh, row).model_dump(), key=secret)


def list_keys(wh: Warehouse, principal: Principal, email: str, include_revoked: bool) -> APIKeyListResponse:
    """Return a user's keys, oldest first, never with a secret."""
    check_administers(principal, "api_key")
    with wh.db.read() as connection:
        user = _user(connection, principal.organization_id, email)
        statement = sa.select(api_keys).where(api_keys.c.user_id == user["user_id"])
        if not include_revoked:
            statement = statement.where(api_keys.c.status != "revoked")
        rows = (
            connection.execute(statement.order_by(api_keys.c.created_at, api_keys.c.key_id)).mappings().all()
        )
    return APIKeyListResponse(results=[key_answer(wh, row) for row in rows], total_count=len(rows))


def update_key(
    wh: Warehouse, principal: Principal, email: str, name: str, request: APIKeyUpdateRequest
) -> APIKeyModel:
    """Change a key. It is in force with the next request that uses it."""
    check_administers(principal)
    if request.name is not None:
        raise_problems(names.check(request.name, ("body", "name"), id_prefix="key"))
    sent = request.model_fields_set
    values: dict[str, Any] = {}
    for field in ("name", "description", "rate_limit_override"):
        if field in sent and (getattr(request, field) is not None or field == "rate_limit_override"):
            values[field] = getattr(request, field)
    if request.permissions is not None:
        values["permissions"] = [str(p) for p in request.permissions]
    if "scopes" in sent:
        values["scopes"] = _scopes(request)
    if "expires_at" in sent:
        values["expires_at"] = _end(request)
    if "allowed_origins" in sent:
        values["allowed_origins"] = sa.null() if request.allowed_origins is None else request.allowed_origins
    with wh.db.write() as connection:
        user = _user(connection, principal.organization_id, email)
        row = _key(connection, user, name)
        status = _status(row)
        if status != "active" and (
            values.keys() & {"permissions", "scopes", "expires_at", "allowed_origins", "rate_limit_override"}
            or request.status not in (None, status)
        ):
            raise _final(name, status)
        if request.status is not None and request.status != status:
            values["status"] = str(request.status)
            if request.status == "revoked":
                values |= {"revoked_at": now(), "revoked_by": principal.user_id}
        if "name" in values and values["name"] != row["name"]:
            _refuse_taken(connection, user["user_id"], values["name"])
        if values:
            connection.execute(api_keys.update().where(api_keys.c.key_id == row["key_id"]).values(**values))
            audit.record(
                connection,
                principal,
                _change_of_key(values),
                "api_key",
                row["key_id"],
                {"fields": sorted(values)},
            )
        changed = (
            connection.execute(sa.select(api_keys).where(api_keys.c.key_id == row["key_id"])).mappings().one()
        )
    return key_answer(wh, changed)


def revoke_key(wh: Warehouse, principal: Principal, email: str, name: str) -> SuccessResponse:
    """End a key for good: it is refused with its next request. Repeating it changes nothing."""
    check_administers(principal, "api_key")
    with wh.db.write() as connection:
        user = _user(connection, principal.organization_id, email)
        row = _key(connection, user, name)
        if row["status"] != "revoked":
            _revoke(connection, row, principal.user_id)
            audit.record(
                connection, principal, "api_key_revoked", "api_key", row["key_id"], {"name": row["name"]}
            )
    return SuccessResponse(message=f"Key {quote(row['name'])} is revoked.")


def rotate_key(wh: Warehouse, principal: Principal, email: str, name: str) -> APIKeyCreateResponse:
    """Give a key a new secret; the old one dies with this call."""
    check_administers(principal)
    secret = new_key()
    with wh.db.write() as connection:
        user = _user(connection, principal.organization_id, email)
        row = _key(connection, user, name)
        if (status := _status(row)) != "active":
            raise _final(name, status)
        fresh = {"key_hash": hashlib.sha256(secret.encode()).digest(), "key_prefix": secret[:_PREFIX_LENGTH]}
        connection.execute(api_keys.update().where(api_keys.c.key_id == row["key_id"]).values(**fresh))
        audit.record(
            connection, principal, "api_key_rotated", "api_key", row["key_id"], {"name": row["name"]}
        )
    return APIKeyCreateResponse(**key_answer(wh, {**row, **fresh}).model_dump(), key=secret)


def key_answer(wh: Warehouse, row: Mapping[Any, Any]) -> APIKeyModel:
    """Return a key's row as answers show it."""
    shown = hmac.new(wh.signing_key, b"key_hash:" + bytes(row["key_hash"]), hashlib.sha256).hexdigest()
    return APIKeyModel(
        **{
            **{name: row[name] for name in row if name in APIKeyModel.model_fields},
            "key_hash": shown,
            "internal_id": row["organization_id"],
            "status": _status(row),
        }
    )


def _status(row: Mapping[Any, Any]) -> str:
    """Return what a key is now: one whose end has come is expired, though nobody has written that down."""
    ended = row["status"] == "active" and row["expires_at"] is not None and row["expires_at"] <= now()
    return "expired" if ended else str(row["status"])


def _final(name: str, status: str) -> BadRequestError:
    return BadRequestError(f"Key {quote(name)} is {status}; that is final. Make a new key.")


# --- keys on the data directory, without a server ------------------------------------------------------


def create_key_offline(
    db: Database, email: str, name: str | None, permissions: list[str]
) -> tuple[str, RowMapping]:
    """Make a key directly in the database and return secret and row; for the owner of the data directory."""
    secret = new_key()
    with db.write() as connection:
        user = _only_user(connection, email)
        row = insert_key(
            connection,
            secret,
            user["organization_id"],
            user["user_id"],
            name=name or f"cli-{secrets.token_hex(3)}",
            permissions=permissions,
            created_by=None,
        )
    return secret, row


def is_active(db: Database, key: str) -> bool:
    """Say whether `key` is one that a server of this data directory would accept."""
    digest = hashlib.sha256(key.encode()).digest()
    statement = sa.select(api_keys.c.expires_at).where(
        api_keys.c.key_hash == digest, api_keys.c.status == "active"
    )
    with db.read() as connection:
        row = connection.execute(statement).first()
    return row is not None and (row.expires_at is None or row.expires_at > now())


def list_keys_offline(db: Database) -> list[RowMapping]:
    """Return all keys of all users with the user's email, oldest first."""
    statement = (
        sa.select(api_keys, users.c.email)
        .join(users, users.c.user_id == api_keys.c.user_id)
        .order_by(api_keys.c.created_at, api_keys.c.key_id)
    )
    with db.read() as connection:
        return list(connection.execute(statement).mappings())


def revoke_key_offline(db: Database, name: str) -> RowMapping:
    """Revoke the key of that name, id or prefix; a running server refuses it with its next request."""
    with db.write() as connection:
        rows = (
            connection.execute(
                sa.select(api_keys).where(
                    sa.or_(api_keys.c.name == name, api_keys.c.key_id == name, api_keys.c.key_prefix == name),
                    api_keys.c.status == "active",
                )
            )
            .mappings()
            .all()
        )
        if not rows:
            raise NotFoundError("key", name)
        if len(rows) > 1:
            ids = ", ".join(row["key_id"] for row in rows)
            raise BadRequestError(
                f"{len(rows)} active keys are called {quote(name)}: {ids}. Say which by its id."
            )
        _revoke(connection, rows[0], None)
        return rows[0]


# --- users --------------------------------------------------------------------------------------------


def create_user(wh: Warehouse, principal: Principal, request: UserCreateRequest) -> UserModel:
    """Add a user to the organization; an `AlreadyExistsError` when the email is taken."""
    check_administers(principal, "user")
    at = now()
    row = {
        "user_id": new_id("usr"),
        "organization_id": principal.organization_id,
        **request.model_dump(exclude={"metadata"}),
        "metadata": request.metadata or {},
        "created_at": at,
        "updated_at": at,
    }
    with wh.db.write() as connection:
        if find_user(connection, principal.organization_id, request.email) is not None:
            raise AlreadyExistsError(f"A user with the email {quote(request.email)} exists already.")
        connection.execute(users.insert().values(**row))
        audit.record(connection, principal, "user_created", "user", row["user_id"], {"email": request.email})
    return UserModel(**row)


def list_users(
    wh: Warehouse, principal: Principal, skip: int, limit: int, role: str | None, status: str | None
) -> UserListResponse:
    """Return the organization's users, oldest first."""
    check_administers(principal, "user")
    conditions = [users.c.organization_id == principal.organization_id]
    if role is not None:
        conditions.append(users.c.role == role)
    if status is not None:
        conditions.append(users.c.status == status)
    with wh.db.read() as connection:
        total = connection.execute(
            sa.select(sa.func.count()).select_from(users).where(*conditions)
        ).scalar_one()
        rows = connection.execute(
            sa.select(users)
            .where(*conditions)
            .order_by(users.c.created_at, users.c.user_id)
            .offset(skip)
            .limit(limit)
        ).mappings()
        results = [UserModel(**row) for row in rows]
    return UserListResponse(results=results, total_count=total, skip=skip, limit=limit)


def get_user(wh: Warehouse, principal: Principal, email: str) -> UserModel:
    """Return one user by email."""
    check_administers(principal, "user")
    with wh.db.read() as connection:
        return UserModel(**_user(connection, principal.organization_id, email))


def update_user(wh: Warehouse, principal: Principal, email: str, request: UserUpdateRequest) -> UserModel:
    """Change a user; the keys of a user who is not active are refused with their next request."""
    check_administers(principal, "user")
    values = {
        name: value for name, value in request.model_dump(exclude_unset=True).items() if value is not None
    }
    with wh.db.write() as connection:
        row = dict(_user(connection, principal.organization_id, email))
        if row["user_id"] == principal.user_id and values.get("status", "active") != "active":
            raise BadRequestError("A key cannot suspend its own user; use the key of another admin.")
        if values:
            row |= {**values, "updated_at": now()}
            connection.execute(
                users.update()
                .where(users.c.user_id == row["user_id"])
                .values(**values, updated_at=row["updated_at"])
            )
            action = "permission_updated" if "role" in values else "user_updated"
            audit.record(connection, principal, action, "user", row["user_id"], {"fields": sorted(values)})
    return UserModel(**row)


def delete_user(wh: Warehouse, principal: Principal, email: str) -> SuccessResponse:
    """Remove a user and all of the user's keys. Nobody removes themselves."""
    check_administers(principal, "user")
    with wh.db.write() as connection:
        row = _user(connection, principal.organization_id, email)
        if row["user_id"] == principal.user_id:
            raise BadRequestError("A key cannot remove its own user; use the key of another admin.")
        connection.execute(api_keys.delete().where(api_keys.c.user_id == row["user_id"]))
        connection.execute(users.delete().where(users.c.user_id == row["user_id"]))
        audit.record(connection, principal, "user_deleted", "user", row["user_id"], {"email": email})
    return SuccessResponse(message=f"User {quote(email)} and the user's keys are removed.")


# --- the organization ---------------------------------------------------------------------------------


_ME = (
    sa.select(api_keys, users.c.email, organizations.c.organization_name, organizations.c.account_type)
    .join(users, users.c.user_id == api_keys.c.user_id)
    .join(organizations, organizations.c.organization_id == api_keys.c.organization_id)
    .where(api_keys.c.key_id == sa.bindparam("key_id"))
)


def get_organization(wh: Warehouse, principal: Principal) -> OrganizationModelResponse:
    """Return the organization of the key."""
    with wh.db.read() as connection:
        return organization_answer(connection, principal.organization_id)


def update_organization(
    wh: Warehouse, principal: Principal, request: OrganizationUpdateRequest
) -> OrganizationModelResponse:
    """Change what is given; `infrastructure` as a whole, null removes it. Repeatable."""
    check_administers(principal, "organization")
    values: dict[str, Any] = {}
    for name in ("organization_name", "metadata"):
        if getattr(request, name) is not None:
            values[name] = getattr(request, name)
    for name in ("logo_url", "billing_email"):
        if name in request.model_fields_set:
            values[name] = getattr(request, name)
    if "rate_limits" in request.model_fields_set:
        values["rate_limits"] = stated_limits(request.rate_limits)
    with wh.db.write() as connection:
        row = _organization(connection, principal.organization_id)
        if "infrastructure" in request.model_fields_set:
            values["infrastructure"] = sa.null()
        if request.infrastructure is not None:
            wanted = request.infrastructure.model_dump(exclude={"qdrant_api_key", "ray_auth_token"})
            stored = row["infrastructure"] or {}
            if request.infrastructure.qdrant_api_key is not None:
                wanted["qdrant_api_key"] = wh.vault.seal(request.infrastructure.qdrant_api_key)
            elif stored.get("qdrant_url") == wanted["qdrant_url"] and "qdrant_api_key" in stored:
                wanted["qdrant_api_key"] = stored["qdrant_api_key"]
            if request.infrastructure.ray_auth_token is not None:
                wanted["ray_auth_token"] = wh.vault.seal(request.infrastructure.ray_auth_token)
            elif (
                stored.get("ray_head_node_url") == wanted["ray_head_node_url"] and "ray_auth_token" in stored
            ):
                wanted["ray_auth_token"] = stored["ray_auth_token"]
            _check_infrastructure(wh, wanted)
            values["infrastructure"] = wanted
        if values:
            connection.execute(
                organizations.update()
                .where(organizations.c.organization_id == principal.organization_id)
                .values(**values, updated_at=now())
            )
            audit.record(
                connection,
                principal,
                "permission_updated",
                "organization",
                principal.organization_id,
                {"fields": sorted(values)},
            )
        return organization_answer(connection, principal.organization_id)


def me(wh: Warehouse, principal: Principal) -> MeResponse:
    """Return what the key that asks is."""
    with wh.db.read() as connection:
        row = connection.execute(_ME, {"key_id": principal.key_id}).mappings().one()
    return MeResponse(
        organization_id=row["organization_id"],
        organization_name=row["organization_name"],
        account_type=row["account_type"],
        user_email=row["email"],
        rate_limits=limits.allowed(wh.settings, principal) or None,
        principal_scoped=bool(principal.scopes),
        key=MeKey(**{name: row[name] for name in MeKey.model_fields if name in row}),
    )


# --- inside -------------------------------------------------------------------------------------------


def _scopes(request: APIKeyCreateRequest | APIKeyUpdateRequest) -> list[dict[str, Any]]:
    return [scope.model_dump(mode="json", exclude_none=True) for scope in request.scopes or []]


def _end(request: APIKeyCreateRequest | APIKeyUpdateRequest) -> str | None:
    if request.expires_at is None:
        return None
    end = request.expires_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    if end <= now():
        problem = Problem(
            ("body", "expires_at"), f"expires_at must lie in the future, not {end}.", "past_time"
        )
        raise ValidationError([problem])
    return end


def insert_key(
    connection: Connection,
    secret: str,
    organization_id: str,
    user_id: str,
    *,
    name: str,
    permissions: list[str],
    created_by: str | None,
    **more: Any,
) -> RowMapping:
    """Insert a key and return its row; an `AlreadyExistsError` when the user has one of that name."""
    _refuse_taken(connection, user_id, name)
    key_id = new_id("key")
    values = {
        "key_id": key_id,
        "organization_id": organization_id,
        "user_id": user_id,
        "name": name,
        "key_hash": hashlib.sha256(secret.encode()).digest(),
        "key_prefix": secret[:_PREFIX_LENGTH],
        "description": "",
        "permissions": permissions,
        "scopes": [],
        "status": "active",
        "created_at": now(),
        "created_by": created_by,
        **more,
    }
    connection.execute(api_keys.insert().values(**values))
    return connection.execute(sa.select(api_keys).where(api_keys.c.key_id == key_id)).mappings().one()


def _refuse_taken(connection: Connection, user_id: str, name: str) -> None:
    taken = sa.select(api_keys.c.key_id).where(
        api_keys.c.user_id == user_id, api_keys.c.name == name, api_keys.c.status != "revoked"
    )
    if connection.execute(taken).first() is not None:
        raise AlreadyExistsError(
            f"This user has a key named {quote(name)} already. Choose another name, or revoke that key first."
        )


def _revoke(connection: Connection, row: RowMapping, by: str | None) -> None:
    if row["status"] != "revoked":
        connection.execute(
            api_keys.update()
            .where(api_keys.c.key_id == row["key_id"])
            .values(status="revoked", revoked_at=now(), revoked_by=by)
        )


def _key(connection: Connection, user: RowMapping, name: str) -> RowMapping:
    """Return a user's key by name or id; of several with that name the one that is not revoked."""
    rows = connection.execute(
        sa.select(api_keys)
        .where(
            api_keys.c.user_id == user["user_id"],
            sa.or_(api_keys.c.name == name, api_keys.c.key_id == name),
        )
        .order_by(api_keys.c.status == "revoked", api_keys.c.created_at.desc())
    ).mappings()
    found = rows.first()
    if found is None:
        raise NotFoundError("key", name)
    return found


def find_user(connection: Connection, organization_id: str, email: str) -> RowMapping | None:
    """Return a user's row by email, upper and lower case alike."""
    return (
        connection.execute(
            sa.select(users).where(
                users.c.organization_id == organization_id, sa.func.lower(users.c.email) == email.lower()
            )
        )
        .mappings()
        .one_or_none()
    )


def _user(connection: Connection, organization_id: str, email: str) -> RowMapping:
    found = find_user(connection, organization_id, email)
    if found is None:
        raise NotFoundError("user", email)
    return found


def _only_user(connection: Connection, email: str) -> RowMapping:
    found = connection.execute(sa.select(users).where(users.c.email == email)).mappings().first()
    if found is None:
        known = ", ".join(connection.execute(sa.select(users.c.email).limit(10)).scalars())
        raise BadRequestError(
            f"There is no user {quote(email)}; this data directory has {known or 'no users yet'}."
        )
    return found


def _organization(connection: Connection, organization_id: str) -> RowMapping:
    return (
        connection.execute(sa.select(organizations).where(organizations.c.organization_id == organization_id))
        .mappings()
        .one()
    )


def organization_answer(connection: Connection, organization_id: str) -> OrganizationModelResponse:
    """Return an organization as answers show it: no secret, no internal id."""
    row = _organization(connection, organization_id)
    infrastructure = row["infrastructure"]
    month = now()[:7]
    used = connection.execute(
        sa.select(sa.func.coalesce(sa.func.sum(usage_counts.c.requests), 0)).where(
            usage_counts.c.organization_id == organization_id, usage_counts.c.hour >= month
        )
    ).scalar_one()
    return OrganizationModelResponse(
        **{
            name: row[name]
            for name in (
                "organization_id",
                "organization_name",
                "account_type",
                "logo_url",
                "billing_email",
                "created_at",
                "updated_at",
            )
        },
        metadata=row["metadata"] or {},
        rate_limits=RateLimits(**limits.strictest(row["rate_limits"], row["operator_rate_limits"])),
        current_month_usage=int(used),
        infrastructure=None
        if infrastructure is None
        else OrganizationInfrastructureAnswer(
            **{name: infrastructure.get(name) for name in OrganizationInfrastructureAnswer.model_fields}
        ),
    )


def stated_limits(limits_given: RateLimits | None) -> Any:
    """Return limits as their column holds them: what is stated, null when nothing is."""
    stated = limits_given.model_dump(exclude_none=True) if limits_given is not None else {}
    return stated or sa.null()


def _change_of_key(values: Mapping[str, Any]) -> str:
    """Return the audit log's word for a change of these columns of a key."""
    if values.get("status") == "revoked":
        return "api_key_revoked"
    return "api_key_scope_updated" if "scopes" in values else "permission_updated"


def _check_infrastructure(wh: Warehouse, wanted: Mapping[str, Any]) -> None:
    """Refuse a dedicated tier that lacks what it needs; every missing field is named."""
    if wanted["compute_tier"] == "shared":
        return
    if not wh.settings.allow_dedicated:
        raise NotEnabledError(
            "This server does not offer dedicated infrastructure (setting allow_dedicated)."
        )
    problems = [
        Problem(
            ("body", "infrastructure", name),
            f"infrastructure.{name} is required with compute_tier {wanted['compute_tier']}.",
            "missing",
        )
        for name in ("qdrant_url", "qdrant_api_key", "ray_head_node_url")
        if not wanted.get(name)
    ]
    if problems:
        raise ValidationError(problems)
