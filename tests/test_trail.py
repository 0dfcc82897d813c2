"""The audit log tells of every change that matters: an address that forgets to is named here."""

from collections.abc import Callable
from typing import Any

import pytest
from django.db import transaction

from organizations.models import AuditEntry
from tests import test_access
from tests.test_access import MARK, ROWS, Row, World, world  # noqa: F401 - a fixture

SUCCESS = {"200", "201", "202", "204", "302"}
# What changes nothing that a log should tell of, with the reason.
UNTOLD = {
    "asks for an answer": {
        "POST /api/deployments/{deployment}/predict",
        "POST /v2/models/{served}/infer",
        "POST /api/predict/all",
        "POST /api/predict/all/{dataset}",
        "POST /api/predict/{named}",
        "POST /api/results/model/{model}/predict",
        "POST /api/results/model/{model}/explain",
        "POST /models/{model}/predict",
        "POST /models/{model}/explain",
        "POST /models/{model}/sensitivity",
        "POST /api/training/check",
        "POST /api/training/estimate",
        "POST /training/new/check",
        "POST /training/new/estimate",
        "POST /api/live-ticket",
    },
    "tells what became true, as often as there are predictions": {
        "POST /api/deployments/{deployment}/feedback",
    },
    "sends a link, and has done nothing until that is opened": {
        "POST /password/forgotten",
        "POST /email/resend",
        "POST /api/auth/password/reset",
        "POST /api/auth/email/resend",
    },
    "is a step of signing in or out": {
        "POST /sign-in/code",  # of nobody, here: tests/accounts/test_second_factor.py
        "POST /sign-out",
        "POST /api/auth/logout",
        "POST /api/auth/refresh",
        "POST /account/second-factor",  # shows a secret that counts from the first code on
        "POST /api/auth/second-factor",
    },
    "is the person's own matter": {
        "POST /account",  # a name
        "PATCH /api/auth/me",
        "POST /organization/choose/{organization}",
    },
}
# What has to be done before there is something to change.
AFTER = {
    "POST /organization/invite/withdraw": "POST /organization/invite",
    "DELETE /api/organizations/{organization}/invite-code": (
        "POST /api/organizations/{organization}/invite-code"
    ),
    "POST /organization/restore": "POST /organization/delete",
    "POST /workers/{node}/resume": "POST /workers/{node}/drain",
    "POST /api/workers/{node}/resume": "POST /api/workers/{node}/drain",
    "POST /api/clusters/{cluster}/nodes": "DELETE /api/clusters/{cluster}/nodes/{node}",
    "POST /clusters/{cluster}/nodes": "POST /clusters/{cluster}/nodes/{node}/remove",
    "POST /deployments/{deployment}/start": "POST /deployments/{deployment}/stop",
    "POST /api/deployments/{deployment}/start": "POST /api/deployments/{deployment}/stop",
}


@pytest.mark.django_db
def test_every_change_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    rows = {str(row): row for row in ROWS}
    told: list[str] = []

    def counted(act: Callable[[], Any]) -> Any:
        known = set(AuditEntry.objects.values_list("pk", flat=True))
        answer = act()
        fresh = AuditEntry.objects.exclude(pk__in=known)
        told[:] = fresh.values_list("verb", flat=True)
        return answer

    def tells(row: Row, who: str) -> bool:
        with transaction.atomic():
            if before := AFTER.get(str(row)):
                world.send(rows[before], who)
            world.send(row, who)
            transaction.set_rollback(True)
        return bool(told)

    monkeypatch.setattr(test_access, "undone", counted)
    to = {"user": str(world.ids["member"])}
    monkeypatch.setitem(test_access.BODIES, "POST /organization/transfer", lambda _: to)
    monkeypatch.setitem(test_access.BODIES, "POST /organization/delete", lambda _: {"name": MARK})
    for who in test_access.PEOPLE:
        world.client(who)  # signed in before anything is taken back
    untold = set().union(*UNTOLD.values())
    assert untold <= set(rows), "rows that are gone"
    silent = [
        str(row)
        for row in ROWS
        if row.method != "GET"
        and str(row) not in untold
        and not any(tells(row, who) for who in test_access.PEOPLE if row.expected[who] in SUCCESS)
    ]
    assert not silent, "\n".join(silent)
