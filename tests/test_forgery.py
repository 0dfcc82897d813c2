"""What pages of strangers, and clients that say too much, can't do: tried at every address."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest
from django.apps import apps
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import transaction
from django.test import Client
from django.urls import reverse

from accounts.models import User
from datasets.models import Dataset
from organizations.models import Membership, Organization, OrgOwned, Role
from tests import test_access
from tests.test_access import BODIES, ROWS, Row, World, undone, world  # noqa: F401
from tests.test_isolation import fields, operations
from tests.training import make
from training.models import TrainedModel, TrainingJob

pytestmark = pytest.mark.django_db
JSON = "application/json"
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


def is_api(row: Row) -> bool:
    return row.address.startswith(("/api/", "/v2"))


def body(row: Row, world: World) -> dict[str, Any]:  # noqa: F811
    return dict(BODIES.get(str(row), lambda _: {})(world))


# --- Cross-site request forgery ------------------------------------------------------------------


def test_nothing_is_written_for_a_page_of_somebody_else(world: World) -> None:  # noqa: F811
    """A session's cookie alone changes nothing: not on any page, not at any API address."""
    tried = 0
    for row in ROWS:
        if row.method == "GET" or (is_api(row) and row.expected["anonymous"] != "401"):
            continue  # what needs no sign-in takes nothing from a cookie either
        client = Client(enforce_csrf_checks=True, raise_request_exception=False)
        client.cookies = world.client("admin").cookies
        path = world.path(row, "admin")
        call = getattr(client, row.method.lower())
        given = body(row, world)
        answer = undone(lambda call=call, path=path, given=given: call(path, given))
        assert answer.status_code == 403, f"{row}: {answer.status_code}"
        tried += 1
    assert tried > 25


# --- Open redirects ------------------------------------------------------------------------------

ELSEWHERE = (
    "https://evil.example/",
    "//evil.example/",
    "///evil.example",
    "/\\evil.example",
    "\\\\evil.example",
    "https:evil.example",
    "http:///evil.example",
    "javascript:alert(1)",
    " //evil.example",
    "https://testserver@evil.example/",
    "/%09/evil.example",
)


@pytest.mark.parametrize("who", ["anonymous", "admin"])
def test_no_page_sends_anybody_to_another_site(who: str, world: World) -> None:  # noqa: F811
    redirects = 0
    for row in ROWS:
        if is_api(row) or not any(code in {"302", "sign"} for code in row.expected.values()):
            continue
        # All of them where somebody may be sent on; else one, since the page never looks.
        places = ELSEWHERE if row.address.startswith("/sign") else ELSEWHERE[:2]
        for place in places:
            path = world.path(row, who)
            path += ("&" if "?" in path else "?") + "next=" + place.replace("#", "%23")
            given = body(row, world) | {"next": place} if row.method == "POST" else {}
            call = getattr(world.client(who), row.method.lower())
            headers = {"Referer": place}
            world.count += 1
            answer = undone(
                lambda call=call, path=path, given=given, headers=headers: call(
                    path, given, headers=headers
                )
            )
            if location := answer.headers.get("Location"):
                redirects += 1
                to = urlsplit(location)
                assert to.netloc in {"", "testserver"}, f"{row} sends to {location}"
                assert to.scheme in {"", "http"}, f"{row} sends to {location}"
                assert not location.startswith(("//", "/\\", "\\", " ")), f"{row}: {location!r}"
    assert redirects > 20


# --- Mass assignment -----------------------------------------------------------------------------

TOO_MUCH_ID = "00000000-0000-4000-8000-00000000dead"


def too_much(world: World) -> dict[str, Any]:  # noqa: F811
    """Fields that a client may set nowhere, with what a thief would like them to be."""
    stranger = world.people["stranger"]
    assert stranger is not None
    home, person = str(stranger.organization_id), str(stranger.user_id)
    return {
        "organization": home, "organization_id": home, "org": home,
        "owner": person, "owner_id": person, "created_by": person, "created_by_id": person,
        "user": person, "user_id": person, "membership": person,
        "id": TOO_MUCH_ID, "pk": TOO_MUCH_ID,
        "role": "admin", "is_staff": True, "is_superuser": True, "is_active": True,
        "state": "succeeded", "status": "succeeded", "finished_at": "2026-01-01T00:00:00Z",
        "score": 1.0, "priority_class": 99, "attempt": 99, "sha256": "0" * 64,
        "max_concurrent_jobs": 10**6, "quota": {"jobs": 10**6}, "is_best": True,
    }  # fmt: skip


OF_MEMBERS = re.compile(r"/api/organizations/\{organization\}|/organization|/join")


def declared() -> dict[str, set[str]]:
    """Which fields each address takes, by its description."""
    return {
        re.sub(r"\{[^}]*\}", "{}", f"{method} {path}"): set(fields(operation, shapes))
        for method, path, operation, shapes in operations()
    }


def owned() -> dict[Any, Any]:
    """Every row of a tenant, and whose it is."""
    return {
        (model, row.pk): row.organization_id
        for model in apps.get_models()
        if issubclass(model, OrgOwned)
        for row in model._default_manager.only("pk", "organization_id")
    }


def powers() -> set[Any]:
    staff = User.objects.filter(is_staff=True) | User.objects.filter(is_superuser=True)
    return set(staff.values_list("pk", flat=True))


def has_state(model: Any) -> bool:
    """Whether its rows hold a state, rather than tell that of another row."""
    return any(field.name == "state" for field in model._meta.fields)


@pytest.mark.parametrize("who", ["developer", "anonymous"])
def test_what_a_client_may_not_set_is_ignored_or_refused(who: str, world: World) -> None:  # noqa: F811
    stranger = world.people["stranger"]
    assert stranger is not None
    known = declared()
    accepted = 0
    limits_before = list(Organization.objects.order_by("pk").values())
    roles = dict(Membership.objects.values_list("pk", "role"))
    for row in ROWS:
        if row.method in {"GET", "DELETE"}:
            continue
        route = re.sub(r"\{[^}]*\}", "{}", str(row).split("?")[0])
        takes = known.get(route, set())
        more = {name: value for name, value in too_much(world).items() if name not in takes}
        given = body(row, world)
        files = any(isinstance(value, SimpleUploadedFile) for value in given.values())
        if is_api(row) and not files:
            kind: dict[str, Any] = {"content_type": JSON}
        else:
            kind = {}
            more = {name: str(value) for name, value in more.items()}
        call = getattr(world.client(who), row.method.lower())
        world.count += 1
        before, staff = owned(), powers()
        with transaction.atomic():
            answer = call(world.path(row, who), more | given, **kind)
            assert answer.status_code < 500, row
            accepted += answer.status_code < 400
            now = owned()
            for (model, pk), home in now.items():
                assert str(pk) != TOO_MUCH_ID, f"{row} let the client choose an id"
                if (model, pk) not in before:
                    assert home != stranger.organization_id, f"{row} planted a {model.__name__}"
                    made = model._default_manager.get(pk=pk)
                    state = getattr(made, "state", "") if has_state(model) else ""
                    assert state not in {"succeeded", "ready"}, row
                    assert getattr(made, "created_by_id", None) != stranger.user_id, row
                else:
                    assert home == before[model, pk], f"{row} moved a {model.__name__}"
            assert powers() == staff, f"{row} made an operator"
            same = Organization.objects.filter(pk__in=[one["id"] for one in limits_before])
            if not OF_MEMBERS.match(row.address):
                assert list(same.order_by("pk").values()) == limits_before, row
                members = Membership.objects.filter(pk__in=roles)
                assert dict(members.values_list("pk", "role")) == roles, row
            transaction.set_rollback(True)
    assert accepted > (15 if who == "developer" else 1)


def test_an_old_clients_role_is_not_believed(client: Client) -> None:
    new = {"username": "eve", "email": "eve@example.org", "password": "a long way home 7"}
    answer = client.post("/api/auth/register", new | {"role": "operator"}, content_type=JSON)
    assert answer.status_code == 201
    eve = User.objects.get(username="eve")
    assert not eve.is_staff
    assert eve.memberships.get().role == Role.ADMIN, "of the personal organization, as everybody"


# --- Ids -----------------------------------------------------------------------------------------


def test_what_addresses_name_can_not_be_counted_through() -> None:
    """Every id in an address is a UUID; what else stands there is a name, or a container's own
    address below its deployment's."""
    names = re.compile(
        r"<(str|slug):(key|name|model_name|alias|dataset)>|<uuid:\w+>(/http/<path:path>$)?"
    )
    for route in test_access.all_routes():
        if not route.startswith("admin"):
            left = re.findall(r"<[^>]*>", names.sub("", route))
            assert not left, f"{route}: {left}"
    for model in apps.get_models():
        if issubclass(model, OrgOwned):
            assert isinstance(model().pk, UUID), model


# --- Stored scripts ------------------------------------------------------------------------------


class Scripts(HTMLParser):
    """Finds what would run: scripts written into the page, handlers and addresses of scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "script":
            self._inside = "" if given.get("type", "").endswith("json") else "script"
        for name, value in given.items():
            if name.startswith("on"):
                self.found.append(f"<{tag} {name}={value}>")
            if name in {"href", "src", "action", "formaction"} and "script:" in value.lower():
                self.found.append(f"<{tag} {name}={value}>")
        if tag == "img" and given.get("src") == "x":
            self.found.append("the image")

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside and ("alert(1)" in data):
            self.found.append(f"a script: {data[:80]}")


def running(page: str) -> list[str]:
    scripts = Scripts()
    scripts.feed(page)
    scripts.close()
    return scripts.found


@pytest.fixture
def poisoned() -> tuple[Membership, TrainedModel]:
    """An organization in which everything that somebody can name is named like an attack."""
    admin = make.member(Role.ADMIN)
    table = make.flowers()
    table = table.rename({"colour": EVIL}).with_columns(
        table["kind"].replace("kind 1", EVIL), table["colour"].replace("red", EVIL).alias(EVIL)
    )
    version = make.version(admin, table, name=EVIL[:120])
    model = make.scored_model(admin, of=version, name=EVIL)
    TrainedModel.objects.filter(pk=model.pk).update(
        name=EVIL, family=EVIL[:60], params={EVIL: EVIL}, reason=EVIL
    )
    TrainingJob.objects.filter(pk=model.job_id).update(
        error=EVIL, notices=[{"message": EVIL, "engine": EVIL}], task_reason=EVIL
    )
    Organization.objects.filter(pk=admin.organization_id).update(name=EVIL[:120])
    User.objects.filter(pk=admin.user_id).update(
        first_name=EVIL[:150], last_name=EVIL[:150], is_staff=True, is_superuser=True
    )
    return admin, model


def test_class_and_column_names_run_nothing_on_charts(
    poisoned: tuple[Membership, TrainedModel],
) -> None:
    admin, model = poisoned
    client = Client()
    client.force_login(admin.user)
    job, dataset = model.job_id, Dataset.objects.get().pk
    pages = ["/", "/data", "/training", "/models", "/organization"]
    pages += [f"/training/{job}", f"/training/{job}/live", f"/training/{job}/leaderboard"]
    pages += [f"/training/{job}/log", f"/data/{dataset}?tab=rows", f"/data/{dataset}"]
    pages += [f"/models/{model.pk}?tab={tab}" for tab in ("performance", "try", "use", "details")]
    named = 0
    for path in pages:
        answer = client.get(path)
        assert answer.status_code == 200, path
        page = answer.content.decode()
        named += "alert(1)" in page
        assert running(page) == [], path
        assert "unsafe" not in answer["Content-Security-Policy"], path
    assert named > len(pages) / 2


def test_names_run_nothing_in_the_console(poisoned: tuple[Membership, TrainedModel]) -> None:
    admin, _ = poisoned
    client = Client()
    client.force_login(admin.user)
    named = 0
    for label in ("organizations", "workers", "datasets", "training", "accounts"):
        for model in apps.get_app_config(label).get_models():
            where = f"admin:{label}_{model._meta.model_name}"
            try:
                address = reverse(f"{where}_changelist")
            except Exception:
                continue
            paths = [address]
            if first := model._default_manager.first():
                paths.append(reverse(f"{where}_change", args=[first.pk]))
            for path in paths:
                answer = client.get(path)
                page = answer.content.decode()
                named += "alert(1)" in page
                assert "<script>alert" not in page, path
                assert "<img src=x" not in page, path
                assert not [one for one in running(page) if "alert" in one], path
    assert named > 5


def test_answers_of_the_api_are_never_taken_for_pages(
    poisoned: tuple[Membership, TrainedModel],
) -> None:
    admin, model = poisoned
    client = Client()
    client.force_login(admin.user)
    for path in ("/api/datasets", f"/api/results/model/{model.pk}", f"/api/nothing/{EVIL}"):
        answer = client.get(path, headers={"Accept": "text/html"})
        assert "json" in answer["Content-Type"], path
        assert answer["X-Content-Type-Options"] == "nosniff"


# --- Headers -------------------------------------------------------------------------------------

_ASK = """
import json, django
django.setup()
from django.conf import settings
from django.test import Client
from django.views.decorators.csrf import ensure_csrf_cookie
secure = Client(headers={"Host": "flowml.example.org"})
live = secure.get("/health/live", secure=True)
plain = secure.get("/sign-in")
page = secure.get("/sign-in", secure=True)
print(json.dumps({
    "headers": dict(live.headers),
    "plain": [plain.status_code, plain.headers.get("Location")],
    "cookie": str(page.cookies.get("csrftoken", "")),
    "policy": page.headers["Content-Security-Policy"],
    "session": [settings.SESSION_COOKIE_SECURE, settings.SESSION_COOKIE_HTTPONLY,
                settings.SESSION_COOKIE_SAMESITE, settings.CSRF_COOKIE_SECURE],
}))
"""


def test_behind_https_browsers_are_told_to_be_careful() -> None:
    env = {
        **os.environ,
        "PUBLIC_URL": "https://flowml.example.org",
        "DEBUG": "0",
        "DJANGO_SETTINGS_MODULE": "flowml_site.settings",
        "PYTEST_VERSION": "x",
    }
    done = subprocess.run(
        [sys.executable, "-c", _ASK], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.strip().splitlines()[-1])
    headers = told["headers"]
    hsts = headers["Strict-Transport-Security"]
    assert int(re.search(r"max-age=(\d+)", hsts)[1]) >= 31_536_000
    assert "includeSubDomains" in hsts
    assert headers["Referrer-Policy"] == "same-origin"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert told["plain"] == [301, "https://flowml.example.org/sign-in"]
    assert told["session"] == [True, True, "Lax", True]
    assert "Secure" in told["cookie"]
    policy = told["policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy


def test_other_sites_may_ask_the_api_only_where_they_are_named(settings: Any) -> None:
    member = make.member()
    client = Client()
    client.force_login(member.user)
    friend, stranger = "https://app.example.org", "https://evil.example"
    settings.CORS_ALLOWED_ORIGINS = [friend]
    asks = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-organization",
    }

    def allowed(path: str, origin: str, method: str = "get") -> str | None:
        answer = getattr(client, method)(path, headers={"Origin": origin, **asks})
        assert "Access-Control-Allow-Credentials" not in answer.headers, "no cookies, ever"
        return answer.headers.get("Access-Control-Allow-Origin")

    assert allowed("/api/datasets", friend) == friend
    assert allowed("/api/datasets", friend, "options") == friend
    for origin in (stranger, "null", f"{friend}.evil.example", "http://app.example.org"):
        assert allowed("/api/datasets", origin) is None
        assert allowed("/api/datasets", origin, "options") is None
    assert allowed("/data", friend) is None, "pages are for nobody else's scripts"
    preflight = client.options("/api/datasets", headers={"Origin": friend, **asks})
    for name in ("x-organization", "idempotency-key", "authorization"):
        assert name in preflight["Access-Control-Allow-Headers"]


def test_nobody_is_named_by_default(settings: Any) -> None:
    assert settings.CORS_ALLOWED_ORIGINS == []
    assert not getattr(settings, "CORS_ALLOW_ALL_ORIGINS", False)
    answer = Client().get("/health/live", headers={"Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in answer.headers
