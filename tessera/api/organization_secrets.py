"""Routes of an organization's secrets: written, replaced, removed, listed by name; never read."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path

from tessera import secret_store
from tessera.api.auth import Asking, require
from tessera.api.routing import Router
from tessera.api.scope import Wh
from tessera.models.organizations import (
    CreateSecretRequest,
    SecretResponse,
    SecretsListResponse,
    UpdateSecretRequest,
)

router = Router(tags=["Organizations"])
_admin = [require("admin")]

SecretName = Annotated[str, Path(max_length=100, examples=["qdrant_production"])]


@router.post("/v1/organizations/secrets", status_code=201, dependencies=_admin)
def create_secret(wh: Wh, asking: Asking, body: CreateSecretRequest) -> SecretResponse:
    """Keep a secret, encrypted; durable. No answer ever shows its value."""
    return secret_store.create(wh, asking, body)


@router.get("/v1/organizations/secrets", dependencies=_admin)
def list_secrets(wh: Wh, asking: Asking) -> SecretsListResponse:
    """List the names of secrets."""
    return secret_store.list_names(wh, asking)


@router.put("/v1/organizations/secrets/{secret_name}", dependencies=_admin)
def update_secret(
    wh: Wh, asking: Asking, secret_name: SecretName, body: UpdateSecretRequest
) -> SecretResponse:
    """Replace the value of a secret; durable."""
    return secret_store.update(wh, asking, secret_name, body)


@router.delete("/v1/organizations/secrets/{secret_name}", dependencies=_admin)
def delete_secret(wh: Wh, asking: Asking, secret_name: SecretName) -> SecretResponse:
    """Remove a secret; durable."""
    return secret_store.delete(wh, asking, secret_name)
