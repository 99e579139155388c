"""Organizations, users, keys, secrets, audit and usage with the generated classes; the same file for both releases.

Each operation's status is checked by the client itself: of another one it makes no answer.
"""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import mixpeek
from mixpeek import exceptions
from mixpeek import models as m
from scenarios_common import KEY, URL, unique, until
from scenarios_typed import CONFIGURED, api, refused


def answered(model: Any, call: Any, *arguments: Any, **named: Any) -> Any:
    answer = call(*arguments, **named)
    assert type(answer) is model, (call, answer)
    return answer


def new_user() -> Any:
    email = f"{unique('user')}@example.org"
    request = m.UserCreateRequest.from_dict({"email": email, "user_name": "Una", "metadata": {"team": "x"}})
    return api(mixpeek.OrganizationUsersApi).create_user_organizations(request)


def scenario_the_organization() -> None:
    organizations = api(mixpeek.OrganizationsApi)
    before = answered(m.OrganizationModelResponse, organizations.get_organization)
    assert before.organization_id.startswith("org_")
    assert (before.account_type, before.credit_count) == ("enterprise", 0)
    assert before.created_at.tzinfo is not None
    limits = "rate_limit_overrides" if CONFIGURED else "rate_limits"
    # Of a class that is left out this client sends a default of its own, 10 a minute.
    high = dict.fromkeys(("metadata", "data", "search", "upload", "compute"), 100_000)
    wanted = {"organization_name": "Sdk", "metadata": {"a": [1]}, limits: high}
    request = m.OrganizationUpdateRequest.from_dict(wanted)
    changed = answered(m.OrganizationModelResponse, organizations.update_organization, request)
    assert (changed.organization_name, changed.metadata) == ("Sdk", {"a": [1]})
    assert changed.rate_limits.to_dict() == high
    back = m.OrganizationUpdateRequest.from_dict({"organization_name": before.organization_name})
    restored = answered(m.OrganizationModelResponse, organizations.update_organization, back)
    assert restored.organization_name == before.organization_name
    assert restored.rate_limits.to_dict() == high
    # Limits are removed by a null, which this client does not send.
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    url, body = f"{URL}/v1/organizations", b'{"rate_limits": null, "metadata": {}}'
    request = urllib.request.Request(url, body, headers, method="PATCH")
    with urllib.request.urlopen(request) as answer:
        assert set(json.load(answer)["rate_limits"].values()) == {None}


def scenario_users() -> None:
    users = api(mixpeek.OrganizationUsersApi)
    made = new_user()
    required = {
        "user_id",
        "organization_id",
        "email",
        "user_name",
        "role",
        "status",
        "metadata",
        "created_at",
    }
    assert required <= set(made), made
    assert (made["role"], made["status"], made["metadata"]) == ("member", "active", {"team": "x"})
    email = made["email"]
    assert users.get_user_organizations_email(email) == made
    listed = users.list_users_organizations(limit=1000, role="member", status="active")
    assert made in listed["results"]
    assert {"total_count", "skip", "limit"} <= set(listed)
    patch = m.UserUpdateRequest.from_dict({"role": "viewer", "status": "suspended"})
    changed = users.update_user_organizations_email(email, patch)
    assert (changed["role"], changed["status"]) == ("viewer", "suspended")
    assert users.delete_user_organizations_email(email).success is True
    refused(exceptions.NotFoundException, users.get_user_organizations_email, email)


def scenario_keys_of_a_user() -> None:
    email = new_user()["email"]
    keys = api(mixpeek.OrganizationAPIKeysApi)
    body = {
        "name": "reader",
        "description": "reads",
        "permissions": ["read"],
        "scopes": [{"resource_type": "namespace", "resource_id": "*", "operations": ["read_data"]}],
        "rate_limit_override": 100_000,
        "expires_at": "2999-01-01T00:00:00Z",
    }
    request = m.APIKeyCreateRequest.from_dict(body)
    made = answered(m.APIKeyCreateResponse, keys.create_key_organizations_users_email, email, request)
    assert all((made.key, made.key_hash, made.internal_id, made.user_id, made.key_id, made.organization_id))
    assert (made.key_type, made.status, made.permissions) == ("standard", "active", ["read"])
    assert (made.revoked_at, made.revoked_by, made.rate_limit_override) == (None, None, 100_000)
    assert made.scopes[0].resource_id == "*"
    assert made.created_by
    update = m.APIKeyUpdateRequest.from_dict({"description": "patched", "permissions": ["read", "write"]})
    changed = answered(m.APIKeyModel, keys.update_key_organizations_users_email_name, email, "reader", update)
    assert (changed.description, changed.key_id) == ("patched", made.key_id)
    rotated = answered(
        m.APIKeyCreateResponse, keys.rotate_key_organizations_users_email_name, email, "reader"
    )
    assert rotated.key != made.key and rotated.key_id == made.key_id
    refused(exceptions.UnauthorizedException, api(mixpeek.OrganizationsApi, key=made.key).get_organization)
    deleted = keys.delete_key_organizations_users_email_name(email, "reader")
    assert (type(deleted), deleted.success) == (m.GenericSuccessResponse, True)
    revoked = keys.list_keys_organizations_users_email(email, include_revoked=True)["results"][0]
    assert revoked["status"] == "revoked" and revoked["revoked_at"] and revoked["revoked_by"]
    assert keys.list_keys_organizations_users_email(email)["results"] == []


def scenario_secrets() -> None:
    secrets, name = api(mixpeek.OrganizationSecretsApi), unique("secret")
    create = m.CreateSecretRequest.from_dict({"secret_name": name, "secret_value": "canary"})
    made = secrets.create_secret_organizations_with_http_info(create)
    assert made.status_code == 201
    # The newer client declares 200 here, and decodes no 201.
    typed = m.SecretResponse.from_dict(json.loads(made.raw_data)) if CONFIGURED else made.data
    assert (typed.secret_name, typed.created) == (name, True)
    refused(exceptions.ConflictException, secrets.create_secret_organizations, create)
    listed = answered(m.SecretsListResponse, secrets.list_secrets_organizations)
    assert name in listed.secrets and listed.count == len(listed.secrets)
    update = m.UpdateSecretRequest.from_dict({"secret_value": "another"})
    assert answered(m.SecretResponse, secrets.update_secret_organizations_name, name, update).updated is True
    assert answered(m.SecretResponse, secrets.delete_secret_organizations_name, name).deleted is True
    refused(exceptions.NotFoundException, secrets.delete_secret_organizations_name, name)


def scenario_audit_log() -> None:
    audit, user = api(mixpeek.OrganizationAuditApi), new_user()
    found = answered(
        m.AuditEventListResponse,
        audit.list_audit_logs_organizations,
        resource_type="user",
        resource_id=user["user_id"],
        action="user_created",
        limit=5,
    )
    (event,) = found.results
    assert (found.total, found.skip, found.limit) == (1, 0, 5)
    assert (event.action, event.actor_type, event.status) == ("user_created", "user", "success")
    assert event.timestamp and event.actor_id.startswith("usr_")
    assert answered(m.AuditEventResponse, audit.get_audit_log_organizations, event.audit_id) == event
    before = answered(m.AuditSettings, audit.get_audit_settings_organizations)
    assert before.read_auditing_enabled is False
    same = m.AuditSettingsUpdateRequest.from_dict({"read_auditing_enabled": False})
    assert answered(m.AuditSettings, audit.update_audit_settings_organizations, same) == before


def scenario_usage() -> None:
    email, usage = new_user()["email"], api(mixpeek.OrganizationUsageApi)
    request = m.APIKeyCreateRequest.from_dict({"name": "counted", "permissions": ["read"]})
    key = api(mixpeek.OrganizationAPIKeysApi).create_key_organizations_users_email(email, request)
    api(mixpeek.OrganizationsApi, key=key.key).get_organization()
    routes = until(lambda: usage.get_key_breakdown_organizations_id_usage_endpoints(key.key_id))
    assert [(route["endpoint"], route["requests"]) for route in routes] == [("GET /v1/organizations", 1)]
    assert usage.get_key_usage_organizations(key.key_id)["total"]["requests"] == 1
    whole = usage.get_org_usage_organizations(start="2020-01-01T00:00:00Z")
    assert whole["total"]["requests"] >= 1 and key.key_id in whole["by_key"]


def scenario_who_am_i() -> None:
    if not CONFIGURED:
        return
    me = answered(m.MeResponse, api(mixpeek.AccountApi).whoami_me)
    assert me.organization_id.startswith("org_") and me.account_type == "enterprise"
    assert (me.user_email, me.key.permissions) == ("admin@localhost", ["admin"])
