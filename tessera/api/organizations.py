"""Routes of organizations, users and keys; ``/v1/me``."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query

from tessera import organizations
from tessera.api.auth import Asking, require
from tessera.api.routing import Router
from tessera.api.scope import Wh
from tessera.models.organizations import (
    APIKeyCreateRequest,
    APIKeyCreateResponse,
    APIKeyListResponse,
    APIKeyModel,
    APIKeyUpdateRequest,
    MeResponse,
    OrganizationModelResponse,
    OrganizationUpdateRequest,
    SuccessResponse,
    UserCreateRequest,
    UserListResponse,
    UserModel,
    UserUpdateRequest,
)

router = Router(tags=["Organizations"])
_admin = [require("admin")]

Email = Annotated[str, Path(examples=["admin@localhost"])]
KeyName = Annotated[str, Path(description="Name or id of the key.", examples=["ingest-pipeline"])]


@router.get("/v1/me")
def whoami(wh: Wh, asking: Asking) -> MeResponse:
    """Tell which organization, user and permissions the key of this call stands for."""
    return organizations.me(wh, asking)


@router.get("/v1/organizations")
def get_organization(wh: Wh, asking: Asking) -> OrganizationModelResponse:
    """Return the organization of the key; its infrastructure without secrets."""
    return organizations.get_organization(wh, asking)


@router.patch("/v1/organizations", dependencies=_admin)
def update_organization(wh: Wh, asking: Asking, body: OrganizationUpdateRequest) -> OrganizationModelResponse:
    """Rename the organization, or set the infrastructure that its shared namespaces use; durable."""
    return organizations.update_organization(wh, asking, body)


@router.post("/v1/organizations/users", dependencies=_admin)
def create_user(wh: Wh, asking: Asking, body: UserCreateRequest) -> UserModel:
    """Add a user; durable."""
    return organizations.create_user(wh, asking, body)


@router.get("/v1/organizations/users", dependencies=_admin)
def list_users(
    wh: Wh,
    asking: Asking,
    skip: Annotated[int, Query(ge=0, le=10_000)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    role: str | None = None,
    status: str | None = None,
) -> UserListResponse:
    """List users, oldest first."""
    return organizations.list_users(wh, asking, skip, limit, role, status)


@router.get("/v1/organizations/users/{user_email}", dependencies=_admin)
def get_user(wh: Wh, asking: Asking, user_email: Email) -> UserModel:
    """Return one user."""
    return organizations.get_user(wh, asking, user_email)


@router.patch("/v1/organizations/users/{user_email}", dependencies=_admin)
def update_user(wh: Wh, asking: Asking, user_email: Email, body: UserUpdateRequest) -> UserModel:
    """Change a user. The keys of a suspended user are refused at once."""
    return organizations.update_user(wh, asking, user_email, body)


@router.delete("/v1/organizations/users/{user_email}", dependencies=_admin)
def delete_user(wh: Wh, asking: Asking, user_email: Email) -> SuccessResponse:
    """Remove a user and the user's keys; durable."""
    return organizations.delete_user(wh, asking, user_email)


@router.post("/v1/organizations/users/{user_email}/api-keys", dependencies=_admin)
def create_key(wh: Wh, asking: Asking, user_email: Email, body: APIKeyCreateRequest) -> APIKeyCreateResponse:
    """Make a key for a user; durable. The answer shows its secret, once."""
    return organizations.create_key(wh, asking, user_email, body)


@router.get("/v1/organizations/users/{user_email}/api-keys", dependencies=_admin)
def list_keys(wh: Wh, asking: Asking, user_email: Email, include_revoked: bool = False) -> APIKeyListResponse:
    """List a user's keys, oldest first, without secrets."""
    return organizations.list_keys(wh, asking, user_email, include_revoked)


@router.patch("/v1/organizations/users/{user_email}/api-keys/{key_name}", dependencies=_admin)
def update_key(
    wh: Wh, asking: Asking, user_email: Email, key_name: KeyName, body: APIKeyUpdateRequest
) -> APIKeyModel:
    """Change a key; in force at once."""
    return organizations.update_key(wh, asking, user_email, key_name, body)


@router.delete("/v1/organizations/users/{user_email}/api-keys/{key_name}", dependencies=_admin)
def delete_key(wh: Wh, asking: Asking, user_email: Email, key_name: KeyName) -> SuccessResponse:
    """Revoke a key for good; it is refused at once."""
    return organizations.revoke_key(wh, asking, user_email, key_name)


@router.post("/v1/organizations/users/{user_email}/api-keys/{key_name}/rotate", dependencies=_admin)
def rotate_key(wh: Wh, asking: Asking, user_email: Email, key_name: KeyName) -> APIKeyCreateResponse:
    """Give a key a new secret, shown once; the old one is refused at once."""
    return organizations.rotate_key(wh, asking, user_email, key_name)
