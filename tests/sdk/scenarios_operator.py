"""What the operator of a server does with the client; only 0.81.1 has these operations."""

from __future__ import annotations

import os

import mixpeek
from mixpeek import exceptions
from mixpeek import models as m
from scenarios_common import unique
from scenarios_typed import api, refused

URL = os.environ["SCENARIO_OPERATED_URL"]


def scenario_a_second_organization() -> None:
    private = api(mixpeek.PrivateApi, key=os.environ["SCENARIO_OPERATOR"], url=URL)
    name = unique("second")
    request = {"organization_name": name, "users": [{"email": "eve@example.org", "user_name": "Eve"}]}
    made = private.create_organization(m.CreateOrganizationRequest.from_dict(request))
    assert type(made) is m.OrganizationModel
    assert made.organization_name == name and made.internal_id is None
    assert [user["email"] for user in made.users] == ["eve@example.org"]
    identifier = made.organization_id
    for key in (identifier, name):
        found = private.get_organization(key)
        assert (type(found), found.organization_id) == (m.OrganizationModelResponse, identifier)
    update = m.OrganizationAdminUpdateRequest.from_dict({"account_type": "pro"})
    changed = private.update_organization(identifier, update)
    assert (type(changed), changed.account_type) == (m.OrganizationModelResponse, "pro")
    key = private.create_bootstrap_key_organizations_id_users_email(identifier, "eve@example.org")
    hers = api(mixpeek.OrganizationsApi, key=key["key"], url=URL)
    assert hers.get_organization().organization_id == identifier
    gone = private.delete_organization(identifier)
    assert (type(gone), gone.success) == (m.GenericDeleteResponse, True)
    refused(exceptions.UnauthorizedException, hers.get_organization)
    refused(exceptions.NotFoundException, private.get_organization, identifier)
