"""Routes of the operator: organizations made and removed from outside. Only with the setting `operator_secret`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path, Request

from tessera import tenants
from tessera.api.auth import caller_of
from tessera.api.routing import Router, exchange
from tessera.api.scope import Wh
from tessera.context import Caller
from tessera.errors import UnauthorizedError
from tessera.models.organizations import (
    APIKeyCreateResponse,
    CreateOrganizationRequest,
    OrganizationAdminUpdateRequest,
    OrganizationListResponse,
    OrganizationModel,
    OrganizationModelResponse,
    SuccessResponse,
)

router = Router(tags=["Operator"])


async def _operator(request: Request) -> Caller:
    if not exchange(request).is_operator:
        raise UnauthorizedError(
            "This route takes the operator's secret (setting operator_secret) as the key."
        )
    return caller_of(request.scope)


Operator = Annotated[Caller, Depends(_operator)]
Organization = Annotated[str, Path(description="Id or name.", examples=["org_0123456789abcdef"])]


@router.post("/v1/private/organizations", include_in_schema=False)
def create_organization(wh: Wh, operator: Operator, body: CreateOrganizationRequest) -> OrganizationModel:
    """Make an organization with its users; durable."""
    return tenants.create(wh, operator, body)


@router.get("/v1/private/organizations", include_in_schema=False)
def list_organizations(wh: Wh, _operator: Operator) -> OrganizationListResponse:
    """List all organizations."""
    return tenants.list_all(wh)


@router.get("/v1/private/organizations/{organization_identifier}", include_in_schema=False)
def get_organization(wh: Wh, _operator: Operator, organization_identifier: Organization) -> OrganizationModel:
    """Return an organization with its users."""
    return tenants.get(wh, organization_identifier)


@router.patch("/v1/private/organizations/{organization_identifier}", include_in_schema=False)
def update_organization(
    wh: Wh, operator: Operator, organization_identifier: Organization, body: OrganizationAdminUpdateRequest
) -> OrganizationModelResponse:
    """Change name, account type or limits; durable."""
    return tenants.update(wh, operator, organization_identifier, body)


@router.delete("/v1/private/organizations/{organization_identifier}", include_in_schema=False)
def delete_organization(wh: Wh, operator: Operator, organization_identifier: Organization) -> SuccessResponse:
    """Remove an organization and everything in it; its keys are refused at once."""
    return tenants.delete(wh, operator, organization_identifier)


@router.post(
    "/v1/private/organizations/{organization_identifier}/users/{user_email}/bootstrap-key",
    include_in_schema=False,
)
def create_bootstrap_key(
    wh: Wh, operator: Operator, organization_identifier: Organization, user_email: str
) -> APIKeyCreateResponse:
    """Make an admin key for a user, shown once."""
    return tenants.bootstrap_key(wh, operator, organization_identifier, user_email)
