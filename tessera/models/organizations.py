"""Organizations, users and API keys."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BeforeValidator, ConfigDict, Field

from tessera.config import ORIGIN
from tessera.models.base import JsonObject, Model

#: From the weakest to the strongest; each includes those before it.
PERMISSIONS = ("read", "write", "delete", "admin")


class Permission(StrEnum):
    READ = "read"
    WRITE = "write"
    DELETE = "delete"
    ADMIN = "admin"


class KeyStatus(StrEnum):
    ACTIVE = "active"
    REVOKED = "revoked"
    EXPIRED = "expired"


class ResourceType(StrEnum):
    ORGANIZATION = "organization"
    USER = "user"
    API_KEY = "api_key"
    NAMESPACE = "namespace"
    COLLECTION = "collection"
    BUCKET = "bucket"
    RETRIEVER = "retriever"
    CLUSTER = "cluster"
    TAXONOMY = "taxonomy"
    STORAGE_CONNECTION = "storage_connection"
    ALERT = "alert"


class Operation(StrEnum):
    """What a scope allows on its resources, in the spelling that answers use."""

    READ_DATA = "read_data"
    WRITE_DATA = "write_data"
    DELETE_DATA = "delete_data"
    EXECUTE_RETRIEVER = "execute_retriever"
    CREATE_RETRIEVER = "create_retriever"
    DELETE_RETRIEVER = "delete_retriever"
    EXECUTE_JOB = "execute_job"
    CANCEL_JOB = "cancel_job"
    CREATE_CLUSTER = "create_cluster"
    DELETE_CLUSTER = "delete_cluster"
    MODIFY_CLUSTER = "modify_cluster"
    MODIFY_INFRASTRUCTURE = "modify_infrastructure"
    MANAGE_PERMISSIONS = "manage_permissions"


_SHORT_OPERATIONS = {
    "read": "read_data",
    "write": "write_data",
    "delete": "delete_data",
    "admin": "manage_permissions",
}


def _spelled_out(value: Any) -> Any:
    return _SHORT_OPERATIONS.get(value, value) if isinstance(value, str) else value


def _in_utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class ResourceScope(Model):
    """Resources that a key may touch: an id, a name, or a pattern with ``*``."""

    resource_type: ResourceType
    resource_id: str = Field(min_length=1, max_length=100, examples=["ns_customer_*"])
    operations: list[Annotated[Operation, BeforeValidator(_spelled_out)]] | None = Field(
        None, description="What the key may do there; absent: everything that its permissions allow."
    )


def _is_origin(value: str) -> str:
    if not ORIGIN.fullmatch(value):
        raise ValueError("an origin is written as https://example.org, without a path")
    return value.lower()


Origin = Annotated[str, AfterValidator(_is_origin)]


class APIKeyCreateRequest(Model):
    """A key to create. Without `scopes` it reaches the whole organization."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "ingest-pipeline", "permissions": ["write"]}]}
    )

    name: str = Field(min_length=1, max_length=100, examples=["ingest-pipeline"])
    description: str | None = Field(None, max_length=500)
    permissions: list[Permission] | None = Field(
        None,
        description="The strongest counts: write includes read. Default: read and write.",
        examples=[["read"]],
    )
    scopes: list[ResourceScope] | None = Field(None, max_length=100)
    rate_limit_override: int | None = Field(None, ge=1)
    expires_at: Annotated[datetime, AfterValidator(_in_utc)] | None = Field(
        None, description="When the key stops; a time without zone is UTC."
    )
    allowed_origins: list[Origin] | None = Field(
        None,
        max_length=100,
        description="Pages that may use the key, `https://*.example.org` for all below; absent: no such limit.",
        examples=[["https://app.example.org"]],
    )


class APIKeyUpdateRequest(Model):
    """Changes of a key; what is absent stays. `null` for `expires_at` removes the end."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"permissions": ["read"]}]})

    name: str | None = Field(None, min_length=1, max_length=100)
    description: str | None = Field(None, max_length=500)
    permissions: list[Permission] | None = None
    scopes: list[ResourceScope] | None = Field(None, max_length=100)
    rate_limit_override: int | None = Field(None, ge=1)
    expires_at: Annotated[datetime, AfterValidator(_in_utc)] | None = None
    status: KeyStatus | None = Field(None, description="`revoked` or `expired` end the key for good.")
    allowed_origins: list[Origin] | None = Field(
        None,
        max_length=100,
        description="Pages that may use the key, `https://*.example.org` for all below; absent: no such limit.",
        examples=[["https://app.example.org"]],
    )


class APIKeyModel(Model):
    """A key without its secret.

    `key_hash` is a keyed digest that identifies the key and says nothing about it; `internal_id` is the
    organization's public id. Both names are the API's.
    """

    key_id: str
    key_hash: str
    key_prefix: str
    key_type: Literal["standard"] = "standard"
    internal_id: str
    organization_id: str
    user_id: str
    name: str
    description: str = ""
    permissions: list[Permission]
    scopes: list[ResourceScope]
    rate_limit_override: int | None = None
    status: KeyStatus
    expires_at: str | None = None
    last_used_at: str | None = None
    created_at: str
    created_by: str | None = None
    revoked_at: str | None = None
    revoked_by: str | None = None
    allowed_origins: list[str] | None = None


class APIKeyCreateResponse(APIKeyModel):
    """A new key; `key` is its secret, shown this once."""

    key: str = Field(examples=["sk_live_0123456789abcdef0123456789abcdef0123456789abcdef"])


class APIKeyListResponse(Model):
    results: list[APIKeyModel]
    total_count: int


class UserCreateRequest(Model):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"email": "ana@example.org", "user_name": "Ana", "role": "member"}]}
    )

    email: str = Field(
        min_length=3, max_length=254, pattern=r"^[^\s/@]+@[^\s/@]+$", examples=["ana@example.org"]
    )
    user_name: str = Field(min_length=2, max_length=100, examples=["Ana"])
    role: Literal["admin", "member", "viewer"] = "member"
    status: Literal["active", "suspended", "pending"] = "active"
    avatar_url: str | None = Field(None, max_length=2048)
    metadata: JsonObject | None = None


class UserUpdateRequest(Model):
    model_config = ConfigDict(json_schema_extra={"examples": [{"role": "viewer"}]})

    user_name: str | None = Field(None, min_length=2, max_length=100)
    role: Literal["admin", "member", "viewer"] | None = None
    status: Literal["active", "suspended", "pending"] | None = Field(
        None, description="The keys of a user who is not active are refused."
    )
    avatar_url: str | None = Field(None, max_length=2048)
    metadata: JsonObject | None = None


class UserModel(Model):
    user_id: str
    organization_id: str
    email: str
    user_name: str
    role: str
    status: str
    avatar_url: str | None = None
    metadata: JsonObject
    created_at: str
    updated_at: str


class UserListResponse(Model):
    results: list[UserModel]
    total_count: int
    skip: int
    limit: int


class OrganizationInfrastructure(Model):
    """Where namespaces of this organization run unless they bring their own. Secrets are write-only."""

    compute_tier: Literal["shared", "dedicated_cpu", "dedicated_gpu"] = "shared"
    qdrant_url: str | None = Field(None, max_length=2048, pattern=r"^https?://[^\s]+$")
    qdrant_api_key: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        repr=False,
        json_schema_extra={"writeOnly": True, "format": "password"},
    )
    ray_head_node_url: str | None = Field(None, max_length=2048, pattern=r"^ray://[^\s/]+:\d+$")
    ray_auth_token: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        repr=False,
        description="Token of the Ray cluster; never shown. Ray demands one since 2.59.",
        json_schema_extra={"writeOnly": True, "format": "password"},
    )
    ray_dashboard_url: str | None = Field(None, max_length=2048, pattern=r"^https?://[^\s]+$")


class OrganizationInfrastructureAnswer(Model):
    compute_tier: str
    qdrant_url: str | None
    ray_head_node_url: str | None
    ray_dashboard_url: str | None


class RateLimits(Model):
    """Requests a minute by kind of route; null: no limit."""

    metadata: int | None = Field(None, ge=1, description="Namespaces, buckets, collections, retrievers, …")
    data: int | None = Field(None, ge=1, description="Objects and documents.")
    search: int | None = Field(None, ge=1, description="Executions of retrievers.")
    upload: int | None = Field(None, ge=1, description="Uploads.")
    compute: int | None = Field(None, ge=1, description="Batches.")


class OrganizationUpdateRequest(Model):
    model_config = ConfigDict(json_schema_extra={"examples": [{"organization_name": "Example Records"}]})

    organization_name: str | None = Field(None, min_length=1, max_length=100)
    logo_url: str | None = Field(None, max_length=2048)
    billing_email: str | None = Field(None, max_length=254)
    metadata: JsonObject | None = None
    rate_limits: RateLimits | None = Field(
        None,
        validation_alias=AliasChoices("rate_limits", "rate_limit_overrides"),
        description="Replaces the organization's own limits; the server's, if lower, still hold.",
    )
    infrastructure: OrganizationInfrastructure | None = Field(
        None, description="Replaces the organization's infrastructure; null removes it."
    )


class OrganizationModelResponse(Model):
    organization_id: str
    organization_name: str
    account_type: str
    credit_count: int = 0
    logo_url: str | None = None
    billing_email: str | None = None
    metadata: JsonObject = Field(default_factory=dict)
    rate_limits: RateLimits = Field(default_factory=RateLimits)
    auto_billing_enabled: bool = False
    billing_cycle_start: int = 1
    current_month_usage: int = Field(0, description="Requests since the month began.")
    infrastructure: OrganizationInfrastructureAnswer | None = None
    created_at: str
    updated_at: str


class MeKey(Model):
    key_id: str
    name: str
    key_prefix: str
    key_type: str = "standard"
    permissions: list[Permission]
    scopes: list[ResourceScope]
    expires_at: str | None


class MeResponse(Model):
    """Who is asking."""

    organization_id: str
    organization_name: str
    account_type: str
    user_email: str
    rate_limits: dict[str, int] | None = Field(None, description="Requests a minute by class, where limited.")
    principal_scoped: bool = Field(False, description="Whether the key is confined to some resources.")
    key: MeKey


class SuccessResponse(Model):
    message: str
    success: bool = True


class CreateSecretRequest(Model):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"secret_name": "openai_key", "secret_value": "sk-example"}]}
    )

    secret_name: str = Field(min_length=1, max_length=100, examples=["qdrant_production"])
    secret_value: str = Field(
        min_length=1,
        max_length=65_536,
        repr=False,
        json_schema_extra={"writeOnly": True, "format": "password"},
    )


class UpdateSecretRequest(Model):
    model_config = ConfigDict(json_schema_extra={"examples": [{"secret_value": "sk-renewed"}]})

    secret_value: str = Field(
        min_length=1,
        max_length=65_536,
        repr=False,
        json_schema_extra={"writeOnly": True, "format": "password"},
    )


class SecretResponse(Model):
    """What was done to a secret; never its value."""

    secret_name: str
    created: bool | None = None
    updated: bool | None = None
    deleted: bool | None = None


class SecretsListResponse(Model):
    secrets: list[str]
    count: int


class AuditEventResponse(Model):
    """One entry of the audit log."""

    audit_id: str
    timestamp: str
    action: str
    resource_type: str
    resource_id: str
    actor_id: str = Field(description="The user whose key it was, or `operator`.")
    actor_type: str = "user"
    key_id: str | None = None
    status: str = "success"
    changes: JsonObject | None = None
    ip_address: str | None = None
    user_agent: str | None = None
    request_id: str | None = None


class AuditEventListResponse(Model):
    results: list[AuditEventResponse]
    total: int
    skip: int
    limit: int


class AuditSettings(Model):
    read_auditing_enabled: bool = False


class AuditSettingsUpdateRequest(Model):
    model_config = ConfigDict(json_schema_extra={"examples": [{"read_auditing_enabled": True}]})

    read_auditing_enabled: bool | None = Field(
        None, description="Whether reads and queries are written down too."
    )


class UsageCount(Model):
    requests: int = 0
    errors: int = Field(0, description="Answers with a status from 400.")
    average_ms: float = 0.0


class UsageResponse(Model):
    """Requests of an organization or a key between two times, counted by hour."""

    organization_id: str
    key_id: str | None = None
    start: str
    end: str
    total: UsageCount
    by_api: dict[str, UsageCount]
    by_day: dict[str, UsageCount]
    by_key: dict[str, UsageCount] | None = None


class EndpointUsage(UsageCount):
    endpoint: str
    api_name: str


class CreateOrganizationRequest(Model):
    organization_name: str = Field(min_length=1, max_length=100)
    account_type: Literal["free", "pro", "team", "enterprise"] = "enterprise"
    logo_url: str | None = Field(None, max_length=2048)
    metadata: JsonObject | None = None
    users: list[UserCreateRequest] = Field(default_factory=list, max_length=1000)


class OrganizationAdminUpdateRequest(Model):
    organization_name: str | None = Field(None, min_length=1, max_length=100)
    account_type: Literal["free", "pro", "team", "enterprise"] | None = None
    rate_limits: RateLimits | None = Field(
        None, description="Limits that the organization cannot lift; null removes them."
    )


class OrganizationModel(OrganizationModelResponse):
    users: list[UserModel] = Field(default_factory=list)


class OrganizationListResponse(Model):
    results: list[OrganizationModelResponse]
    total_count: int
