"""What knowing the caller costs: at most three queries of an API call, whatever it does."""

from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from organizations import service
from organizations.models import Membership, Role
from tests.factories import bearer
from tests.test_access import World, world  # noqa: F401 - a fixture
from tests.training import make

pytestmark = pytest.mark.django_db
MOST = 3
# By their tables: who asks (people, sessions, tokens) and for whom (memberships). The role and the
# organization of row-level security come with the membership, in one statement.
KNOWING = (
    "accounts_", "django_session", "organizations_membership", "organizations_servicetoken",
    "token_blacklist", "otp_", "set_config",
)  # fmt: skip
ADDRESSES = (
    "/api/datasets",
    "/api/datasets/{dataset}",
    "/api/training",
    "/api/training/{job}",
    "/api/training/{job}/progress",
    "/api/results/job/{job}/leaderboard",
    "/api/results/model/{model}",
    "/api/results/predictions",
    "/api/stats/overview",
    "/api/clusters",
    "/api/deployments/{deployment}",
    "/api/pipelines",
)


def by_session(member: Membership) -> Client:
    client = Client()
    client.force_login(member.user)
    return client


def by_jwt(member: Membership) -> Client:
    return Client(headers=bearer(member.user))


def by_token(member: Membership) -> Client:
    made = by_session(member).post(
        "/api/auth/tokens", {"name": "mine"}, content_type="application/json"
    )
    assert made.status_code == 201, made.content
    return Client(headers={"Authorization": f"Bearer {made.json()['token']}"})


def by_service(member: Membership) -> Client:
    return Client(
        headers={"Authorization": f"Bearer {service.make(member, name='ci', actions='read')[1]}"}
    )


@pytest.mark.parametrize("sign_in", [by_jwt, by_session, by_token, by_service])
@pytest.mark.parametrize("named", [False, True], ids=["first", "named"])
def test_knowing_the_caller_costs_three_queries_at_most(
    sign_in: Callable[[Membership], Client],
    named: bool,
    world: World,  # noqa: F811
) -> None:
    member = world.people["developer"]
    assert member is not None
    client = sign_in(member)
    headers = {"X-Organization": str(member.organization_id)} if named else {}
    client.get(ADDRESSES[0], headers=headers)  # a token notes once in a while that it was used
    for address in ADDRESSES:
        with CaptureQueriesContext(connection) as seen:
            assert client.get(address.format(**world.ids), headers=headers).status_code == 200
        knowing = [one["sql"] for one in seen.captured_queries if is_about_who(one["sql"])]
        assert len(knowing) <= MOST, f"{address}: " + "\n".join(knowing)
        assert any("set_config" in sql for sql in knowing), "the second line came along"


def is_about_who(sql: str) -> bool:
    """Whether a statement looks at the caller first of all: by the table after its FROM."""
    start = sql.split(" FROM ", 1)[-1].lstrip('("') if " FROM " in sql else sql
    return start.startswith(KNOWING) or sql.startswith("SELECT set_config")


def test_the_count_sees_what_it_counts(world: World) -> None:  # noqa: F811
    """Signed in by a session: the session, the person, the membership."""
    client = by_session(make.member(Role.VIEWER))
    with CaptureQueriesContext(connection) as seen:
        client.get("/api/datasets")
    about_who: list[Any] = [one for one in seen.captured_queries if is_about_who(one["sql"])]
    assert len(about_who) >= 2
    assert len(about_who) < len(seen.captured_queries)
