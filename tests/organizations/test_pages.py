"""The pages of an organization, as a person uses them: forms, without a script."""

import re

import pytest

from organizations import exports
from organizations.models import (
    Membership,
    Organization,
    OrganizationExport,
    Role,
    ServiceToken,
)
from tests.factories import MembershipFactory, UserFactory
from tests.training import make

pytestmark = pytest.mark.django_db


@pytest.fixture
def admin(client):
    admin = make.member(Role.ADMIN, organization__name="Delta")
    client.force_login(admin.user)
    return admin


def page(client, tab="members"):
    answer = client.get("/organization", {"tab": tab})
    assert answer.status_code == 200
    return answer.content.decode()


def test_an_admin_invites_changes_a_role_and_removes(client, admin):
    ada = make.member(Role.VIEWER, organization=admin.organization)
    text = page(client)
    assert re.search(r"/join\?code=(\w{4}-){3}\w{4}<", text)
    answer = client.post(f"/organization/members/{ada.user_id}/role", {"role": "20"}, follow=True)
    assert f"{ada.user} is developer now" in answer.content.decode()
    answer = client.post(f"/organization/members/{ada.user_id}/remove", follow=True)
    assert "There is no invite code" in answer.content.decode()
    client.post("/organization/invite", {"role": "20", "valid_days": "", "max_uses": "3"})
    text = page(client)
    assert "0 of 3 used" in text
    assert "good until it is withdrawn" in text
    answer = client.post("/organization/invite", {"role": "20", "valid_days": "many"}, follow=True)
    assert "Choose 1 to 365 days" in answer.content.decode()


def test_a_viewer_sees_members_and_use_and_no_button(client, admin):
    ada = make.member(Role.VIEWER, organization=admin.organization)
    client.force_login(ada.user)
    text = page(client)
    assert admin.user.username in text
    assert "Remove" not in text
    assert "Invite people" not in text
    assert "Audit log" not in text
    assert "Quotas" in page(client, "usage")
    assert "Members" in page(client, "audit")  # which is not for viewers


def test_an_export_that_is_being_made_is_watched_and_one_that_is_there_is_not(client, admin):
    client.post("/organization/exports")
    assert 'hx-trigger="every 5s"' in page(client, "settings")
    exports.build(OrganizationExport.objects.get().pk)
    text = page(client, "settings")
    assert "Download" in text
    assert "every 5s" not in text
    assert "Delete this export?" in text, "it asks first"


def test_handing_over_asks_first(client, admin):
    make.member(Role.VIEWER, organization=admin.organization)
    text = page(client, "settings")
    assert "Hand this organization over?" in text
    assert '<button class="btn" type="submit">Hand over' not in text


def test_the_last_admin_is_told_why_they_stay(client, admin):
    answer = client.post("/organization/leave", follow=True)
    assert "You are its last admin" in answer.content.decode()
    assert Membership.objects.filter(pk=admin.pk).exists()


def test_somebody_makes_an_organization_works_there_and_changes_over(client, admin):
    client.post("/organizations/new", {"name": "Side project"})
    made = Organization.objects.get(name="Side project")
    assert "<h1>Side project</h1>" in page(client)
    assert "Delta" in client.get("/organizations").content.decode()
    fragment = client.get("/organizations", headers={"HX-Request": "true"}).content.decode()
    assert "<html" not in fragment
    assert "Delta" in fragment
    client.post(f"/organization/choose/{admin.organization_id}")
    assert "<h1>Delta</h1>" in page(client)
    assert client.post("/organizations/new", {"name": " "}).status_code == 400
    assert made.memberships.get().role == Role.ADMIN


def test_who_is_in_no_organization_can_make_or_join_one(client):
    client.force_login(UserFactory())
    text = client.get("/organizations").content.decode()
    assert "You are in no organization" in text
    assert "Invite code" in text


def test_a_token_is_shown_once_and_revoked(client, admin):
    answer = client.post("/organization/tokens", {"name": "ci", "actions": "read"})
    secret = re.search(r"flowml_svc_\w{36}", answer.content.decode())
    assert secret is not None
    assert secret[0] not in page(client, "tokens")
    token = ServiceToken.objects.get()
    client.post(f"/organization/tokens/{token.pk}/revoke")
    assert "No service tokens" in page(client, "tokens")
    refused = client.post("/organization/tokens", {"name": "x", "expires_in_days": "9999999999"})
    assert refused.status_code == 422


def test_the_log_is_shown_filtered_and_taken_along(client, admin):
    client.post("/organization/rename", {"name": "Epsilon"})
    assert "Organization renamed" in page(client, "audit")
    text = client.get("/organization", {"tab": "audit", "verb": "dataset"}).content.decode()
    assert "No entry fits these filters" in text
    text = client.get("/organization", {"tab": "audit", "since": "soon"}).content.decode()
    assert "since must be a day or a time" in text
    assert b"organization.renamed" in client.get("/organization/audit.csv").content


def test_what_people_type_is_never_markup(client, admin):
    evil = "<script>alert(1)</script>"
    client.post("/organization/rename", {"name": evil})
    client.post("/organization/tokens", {"name": evil, "actions": "read"})
    for tab in ("members", "usage", "tokens", "audit", "settings"):
        assert evil not in page(client, tab)
    assert evil not in client.get("/organizations").content.decode()


def test_the_page_costs_the_same_for_many_members(client, admin, django_assert_max_num_queries):
    MembershipFactory.create_batch(20, organization=admin.organization)
    page(client)
    with django_assert_max_num_queries(7):
        page(client)
