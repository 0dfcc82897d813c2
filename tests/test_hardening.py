"""What strangers and hostile texts try: each was a way in, a 500 or a flood once, or could be."""

import io
import json
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.core.cache import cache
from django.core.files.uploadedfile import SimpleUploadedFile
from django.http import HttpResponseBase
from django.test import AsyncClient, Client

from accounts import limits
from accounts.models import User
from datasets.models import Dataset
from flowml_site import csp, proxies
from organizations.models import Membership, Role
from tests.factories import PASSWORD, UserFactory, WorkerFactory, bearer, make_task
from tests.training import make
from training.rows import MOST_ERRORS, BadRows, check_rows
from workers import live
from workers.files import store_artifact
from workers.keys import task_token
from workers.models import Event, Task, Worker

pytestmark = pytest.mark.django_db
JSON = "application/json"
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


@pytest.fixture
def admin() -> Membership:
    return make.member(Role.ADMIN)


@pytest.fixture
def browser(admin: Membership) -> Client:
    client = Client(raise_request_exception=False)
    client.force_login(admin.user)
    return client


# --- Policies of pages ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "loosened"),
    [
        ("/", set()),
        ("/data", set()),
        ("/nothing-here", set()),
        ("/health/live", set()),
        ("/api/datasets", set()),
        ("/api/schema", set()),
        ("/api/docs", {"style-src", "font-src"}),
        ("/api/redoc", {"style-src", "font-src", "worker-src"}),
        ("/admin/", {"style-src", "font-src", "script-src"}),
    ],
)
def test_each_answer_has_a_policy_and_only_libraries_a_looser_one(
    browser: Client, admin: Membership, path: str, loosened: set[str]
) -> None:
    User.objects.filter(pk=admin.user.pk).update(is_staff=True, is_superuser=True)
    answer = browser.get(path)
    policy = dict(one.split(" ", 1) for one in answer[csp.HEADER].split("; "))
    strict = dict(one.split(" ", 1) for one in csp.STRICT.split("; "))
    assert "unsafe" not in csp.STRICT
    assert {name for name in policy if policy[name] != strict.get(name)} == loosened
    assert set(strict) <= set(policy)
    assert answer["X-Frame-Options"] == "DENY"
    assert answer["X-Content-Type-Options"] == "nosniff"


async def test_the_policy_comes_with_pages_served_by_asgi_too() -> None:
    assert (await AsyncClient().get("/sign-in"))[csp.HEADER] == csp.STRICT


@pytest.mark.parametrize("path", ["/api/docs", "/api/redoc"])
def test_the_pages_of_the_api_run_no_inline_script_and_ask_no_other_host(
    browser: Client, path: str
) -> None:
    page = browser.get(path).content.decode()
    assert page.count("<script") == page.count("<script src=") > 0
    assert "https://" not in page


def test_hostile_names_stay_text_on_every_page(browser: Client, admin: Membership) -> None:
    table = make.flowers().rename({"colour": EVIL})
    version = make.version(admin, table, name=EVIL[:120])
    version.filename = EVIL
    version.notices = [EVIL]
    version.columns[1]["top"] = [{"value": EVIL, "count": 3}]
    version.rejects = store_artifact(
        admin.organization, "r", io.BytesIO(f'line,reason,raw\n1,x,"{EVIL}"\n'.encode())
    )
    version.rejected = 1
    version.save()
    model = make.scored_model(admin, of=version, name=EVIL)
    model.name = EVIL
    model.params = {EVIL: EVIL}
    model.save()
    data = f"/data/{version.dataset_id}"
    pages = ["/", "/data", data, f"{data}?tab=rows", f"{data}?tab=rejects", f"{data}?tab=versions"]
    pages += [f"/training/new?dataset={version.dataset_id}&target={EVIL}", "/training", "/models"]
    pages += [f"/training/{model.job_id}", f"/data?search={EVIL}"]
    pages += [f"/models/{model.pk}?tab={tab}" for tab in ("performance", "try", "use", "details")]
    for path in pages:
        answer = browser.get(path)
        assert answer.status_code == 200, path
        page = answer.content.decode()
        assert "alert(1)" in page or path in {"/training", data + "?tab=versions"}, path
        assert "<script>alert" not in page, path
        assert "<img src=x" not in page, path


def test_names_of_files_can_break_no_header(browser: Client, admin: Membership) -> None:
    version = make.version(admin)
    version.rejects = store_artifact(admin.organization, "r", io.BytesIO(b"line,reason,raw\n"))
    version.save()
    for name in ("a\r\nSet-Cookie: x=1", 'a"; filename=b.exe', "ä/../b", "a\u202egpj.exe"):
        Dataset.objects.filter(pk=version.dataset_id).update(name=name)
        answer = browser.get(f"/api/datasets/{version.dataset_id}/rejects")
        assert answer.status_code == 200
        assert answer["Content-Disposition"].startswith("attachment; filename")
        assert "\r" not in str(answer.headers)
        assert "Set-Cookie" not in answer.headers


# --- Signing in ----------------------------------------------------------------------------------


def try_to(client: Client, name: str, password: str, path: str = "/api/auth/login") -> Any:
    return client.post(path, {"username": name, "password": password})


@pytest.mark.parametrize("path", ["/api/auth/login", "/sign-in"])
def test_passwords_are_not_guessed_quickly(path: str) -> None:
    user = UserFactory(is_staff=True)
    client, elsewhere = Client(), Client(REMOTE_ADDR="203.0.113.9")
    for _ in range(limits.FAILURES["name and address"]):
        assert try_to(client, user.username.upper(), "wrong", path).status_code in {200, 401}
    refused = try_to(client, user.username, PASSWORD, path)
    assert refused.status_code == 429
    assert "Too many sign-ins failed" in refused.content.decode()
    assert "_auth_user_id" not in client.session
    assert 0 < int(refused["Retry-After"]) <= limits.WINDOW_S
    # Others, and the person from somewhere else, are not kept out.
    assert try_to(client, UserFactory(is_staff=True).username, PASSWORD, path).status_code < 400
    answer = try_to(elsewhere, user.username, PASSWORD, path)
    assert "Too many" not in answer.content.decode()


def test_one_address_can_not_try_one_password_on_many_names() -> None:
    client = Client()
    for n in range(limits.FAILURES["address"]):
        try_to(client, f"somebody{n}", "summer2026")
    assert try_to(client, UserFactory().username, PASSWORD).status_code == 429


def test_a_name_is_not_guessed_from_many_addresses() -> None:
    user = UserFactory()
    for n in range(limits.FAILURES["name"]):
        try_to(Client(REMOTE_ADDR=f"2001:db8:{n:x}::1"), user.username, "wrong")
    client = Client(REMOTE_ADDR="203.0.113.9")
    assert try_to(client, user.username, PASSWORD).status_code == 429


def test_accounts_are_not_made_by_the_hundred(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SIGN_UPS", 1)

    def register(path: str) -> int:
        name = f"n{uuid4().hex[:8]}"
        new = {"username": name, "email": f"{name}@example.org", "password": "a long way home 7"}
        return Client().post(path, new).status_code

    assert register("/api/auth/register") == 201
    assert register("/api/auth/register") == 429
    assert register("/sign-up") == 422


def test_signing_in_goes_on_without_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise limits.RedisError("gone")

    for name in ("get", "add", "incr"):
        monkeypatch.setattr(cache, name, away)
    user = UserFactory()
    assert try_to(Client(), user.username, "wrong").status_code == 401
    assert try_to(Client(), user.username, PASSWORD).status_code == 200


def test_nobody_takes_somebody_elses_address_for_a_name(client: Client) -> None:
    new = {"username": "vic@example.org", "email": "eve@example.org", "password": "long way home 7"}
    answer = client.post("/api/auth/register", new)
    assert list(answer.json()["errors"]) == ["username"]
    assert client.post("/api/auth/register", new | {"email": "vic@example.org"}).status_code == 201


def test_a_new_password_voids_the_tokens_of_the_old_one(admin: Membership) -> None:
    headers = bearer(admin.user)
    assert Client().get("/api/datasets", headers=headers).status_code == 200
    admin.user.set_password("another one 9")
    admin.user.save()
    assert Client().get("/api/datasets", headers=headers).status_code == 401


def test_somebody_switched_off_hears_no_more(admin: Membership) -> None:
    topic = make_task(admin.organization).stream_id
    assert live.may_listen(admin.user, topic)
    User.objects.filter(pk=admin.user.pk).update(is_active=False)
    assert not live.may_listen(admin.user, topic)


def test_a_session_writes_only_with_the_token_of_a_page(admin: Membership) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin.user)
    version = make.version(admin)
    for path in ("/data/samples/iris", f"/data/{version.dataset_id}/delete", "/sign-out"):
        assert client.post(path).status_code == 403
    assert client.post("/api/live-ticket").status_code == 403
    assert client.delete(f"/api/datasets/{version.dataset_id}").status_code == 403
    client.get("/data")
    token = client.cookies["csrftoken"].value
    assert client.post("/api/live-ticket", headers={"X-CSRFToken": token}).status_code == 201


def test_only_proxies_that_are_trusted_say_where_somebody_comes_from(settings: Any) -> None:
    settings.TRUSTED_PROXIES = ["10.0.0.0/8"]
    forwarded = {"HTTP_X_FORWARDED_FOR": "6.6.6.6, 198.51.100.7, 10.0.0.9"}
    forwarded |= {"HTTP_X_FORWARDED_PROTO": "https"}
    trusted = {"REMOTE_ADDR": "10.0.0.2", **forwarded}
    proxies.heed(trusted)
    assert trusted["REMOTE_ADDR"] == "198.51.100.7"
    assert trusted["HTTP_X_FORWARDED_PROTO"] == "https"
    stranger = {"REMOTE_ADDR": "198.51.100.7", **forwarded}
    proxies.heed(stranger)
    assert stranger == {"REMOTE_ADDR": "198.51.100.7"}


def test_another_host_name_is_refused(client: Client) -> None:
    assert client.get("/sign-in", headers={"Host": "evil.example"}).status_code == 400


# --- Across organizations ------------------------------------------------------------------------


def test_a_filter_does_not_tell_whether_another_organizations_model_exists(
    admin: Membership, browser: Client
) -> None:
    theirs = make.scored_model(make.member()).pk
    answers = [browser.get(f"/api/results/predictions?model={pk}") for pk in (theirs, uuid4())]
    assert [one.status_code for one in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()


def test_a_node_can_not_pass_another_organizations_file_off_as_its_own(admin: Membership) -> None:
    secret = make.version(make.member()).data
    assert secret is not None
    browser = Client()
    browser.force_login(admin.user)
    made = browser.post("/api/datasets/upload", {"file": SimpleUploadedFile("t.csv", b"a\n1\n")})
    node = make.Node()
    task = node.claim()
    result = {"data": {"rows": 1, "columns": []}, "files": {"data": str(secret.pk)}}
    node.end(task, result=result)
    dataset = Dataset.objects.get(pk=UUID(made.json()["id"]))
    assert (dataset.latest, dataset.state) == (None, "failed")
    assert dataset.versions.get().error["code"] == "no-result"


# --- Texts and numbers that are none -------------------------------------------------------------


ODD = ['"a\\u0000"', '"\\ud800"', '{"\\u0000": 1}', '{"a": ["\\uDFFF"]}', "[" * 100_000]


@pytest.mark.parametrize("value", ODD)
def test_json_that_can_not_be_stored_is_a_400(
    browser: Client, admin: Membership, value: str
) -> None:
    version = make.version(admin)
    start = f'{{"dataset": "{version.dataset_id}", "target": "kind", "positive_class": {value}}}'
    for path, body in (
        ("/api/training/start", start),
        ("/api/auth/login", f'{{"username": {value}, "password": "x"}}'),
        ("/api/auth/register", value),
    ):
        answer = browser.post(path, body, content_type=JSON)
        assert answer.status_code == 400, (path, answer.content)
        assert answer["Content-Type"] == "application/problem+json"
    upload = {"file": SimpleUploadedFile("t.csv", b"a\n1\n"), "columns": value}
    assert browser.post("/api/datasets/upload", upload).status_code == 400
    assert not Task.objects.exists()


def test_a_pair_of_surrogates_is_a_text(browser: Client, admin: Membership) -> None:
    path = f"/api/datasets/{make.version(admin).dataset_id}"
    answer = browser.patch(path, '{"name": "\\ud83d\\ude80"}', content_type=JSON)
    assert (answer.status_code, answer.json()["name"]) == (200, "\U0001f680")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/data?search=%00x", 200),
        ("/api/datasets?search=%00", 400),
        ("/api/training?target=%00", 400),
        ("/api/training?created_after=9999-12-31T23:59:59-23:59", 400),
        ("/api/training?created_before=0001-01-01T00:00:00%2B14:00", 400),
        ("/api/training?dataset=x", 400),
        ("/api/results/predictions?model=x", 400),
        ("/api/datasets?page=" + "9" * 5000, 404),
        ("/api/datasets?ordering=organization__memberships__user__password", 200),
        ("/api/datasets/{}/preview?offset=" + "9" * 30, 400),
        ("/api/datasets/{}/preview?version=%00", 404),
        ("/data/{}?tab=rows&offset=" + "9" * 30, 200),
        ("/data/{}?version=%00", 404),
        ("/training/new?dataset=%00", 404),
    ],
)
def test_odd_addresses_are_answered(
    browser: Client, admin: Membership, path: str, status: int
) -> None:
    answer = browser.get(path.format(make.version(admin).dataset_id))
    assert answer.status_code == status, answer.content[:300]


@pytest.mark.parametrize(
    "split", ['{"seed": 1e999}', '{"seed": -1}', '{"seed": 9999999999}', '{"folds": 1e999}']
)
def test_splits_that_no_engine_could_do_are_refused(
    browser: Client, admin: Membership, split: str
) -> None:
    dataset = make.version(admin).dataset_id
    body = f'{{"dataset": "{dataset}", "target": "kind", "split": {split}}}'
    answer = browser.post("/api/training/start", body, content_type=JSON)
    assert (answer.status_code, list(answer.json()["errors"])) == (400, ["split"])


def test_an_idempotency_key_is_printable(browser: Client, admin: Membership) -> None:
    body = {"dataset": str(make.version(admin).dataset_id), "target": "kind"}

    def start(key: str) -> int:
        headers = {"Idempotency-Key": key}
        path = "/api/training/start"
        return browser.post(path, body, content_type=JSON, headers=headers).status_code

    assert [start("a\0b"), start("ü"), start("k" * 256), start("fine 1")] == [400, 400, 400, 202]


def test_a_file_with_a_long_name_is_predicted(browser: Client, admin: Membership) -> None:
    model = make.scored_model(admin)
    file = SimpleUploadedFile("x" * 300 + ".csv", b"a\n1\n")
    answer = browser.post(f"/api/results/model/{model.pk}/predict", {"file": file})
    assert answer.status_code == 202


def test_a_row_of_very_many_unknown_names_is_refused_quickly() -> None:
    row = {f"petal_{n}": 1 for n in range(100_000)}
    with pytest.raises(BadRows) as refused:
        check_rows([{"name": "petal", "dtype": "float"}], [row])
    assert len(refused.value.errors) <= MOST_ERRORS + 1


@pytest.mark.parametrize(
    ("data", "kind", "status"),
    [
        ({f"c{n}": "1" for n in range(30_000)}, None, 400),
        ("username=" + "x" * 17_000_000, "application/x-www-form-urlencoded", 413),
        ('{"username": "' + "x" * 17_000_000 + '"}', JSON, 413),
    ],
    ids=["fields", "form", "json"],
)
def test_large_requests_are_refused_in_the_shape_of_the_api(
    client: Client, data: Any, kind: str | None, status: int
) -> None:
    answer = client.post("/api/auth/login", data, **({"content_type": kind} if kind else {}))
    assert (answer.status_code, answer["Content-Type"]) == (status, "application/problem+json")


# --- Nodes ---------------------------------------------------------------------------------------


@pytest.fixture
def task() -> Task:
    WorkerFactory(token_hash=Worker.hash_token("the node's"))
    make_task()
    return make.Node(Worker.objects.get()).claim()


def say(task: Task, path: str, body: Any, method: str = "post", **more: Any) -> HttpResponseBase:
    client = Client(raise_request_exception=False)
    headers = {"Authorization": f"Task {task_token(task.pk, task.attempt)}"}
    more.setdefault("content_type", JSON)
    url = f"/api/workers/tasks/{task.pk}/{path}"
    return getattr(client, method)(url, body, headers=headers, **more)


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ('"a\\u0000b"', "a\ufffdb"),
        ('"\\ud800"', "\ufffd"),
        ("NaN", None),
        ("[1e999, -Infinity, 0.5]", [None, None, 0.5]),
        ('{"\\u0000": 1}', {"\ufffd": 1}),
    ],
)
def test_whatever_an_engine_prints_its_node_can_report(
    task: Task, written: str, stored: Any
) -> None:
    event = f'{{"type": "log", "data": {{"line": {written}}}}}'
    assert say(task, "events", f'{{"attempt": 1, "events": [{event}]}}').status_code == 200
    assert Event.objects.filter(type="log").get().data == {"line": stored}
    end = f'{{"attempt": 1, "outcome": "failed", "error": "\\u0000", "usage": {{"a": {written}}}}}'
    assert say(task, "end", end).status_code == 200


def test_progress_that_is_no_number_harms_nothing(task: Task) -> None:
    event = {"type": "progress", "data": {"fraction": "x", "message": "y"}}
    assert say(task, "events", {"attempt": 1, "events": [event]}).status_code == 200


@pytest.mark.parametrize("name", ["x" * 201, "a%0Ab", "%00", "..%2F..%2Fetc", "../../etc"])
def test_files_of_nodes_have_sane_names(task: Task, name: str) -> None:
    kind = {"content_type": "application/octet-stream"}
    assert say(task, f"artifacts/{name}", b"x", "put", **kind).status_code in {400, 404}
    assert say(task, "artifacts/model.zip", b"x", "put", **kind).status_code == 201


def test_a_node_with_odd_graphics_cards_is_refused(settings: Any, client: Client) -> None:
    settings.JOIN_TOKEN = "let me in"
    capabilities = {"cpu": 1, "ram_mib": 1, "gpus": [{"memory_mib": "x"}]}
    said = {"join_token": "let me in", "name": "atlas", "capabilities": capabilities}
    assert client.post("/api/workers/register", said, content_type=JSON).status_code == 400
    capabilities["gpus"] = [{"memory_mib": 8192, "name": "a\0"}]
    assert client.post("/api/workers/register", said, content_type=JSON).status_code == 201
    assert json.dumps(Worker.objects.get().capabilities)


def test_the_form_of_a_wide_model_is_read(browser: Client, admin: Membership) -> None:
    model = make.scored_model(admin)
    form = {f"column-{n}": "1" for n in range(5_000)}
    answer = browser.post(f"/models/{model.pk}/predict", form)
    assert answer.status_code == 503, "no node is there, and that is all that is wrong"
