"""Connections, as people and programs make, change, test and delete them."""

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from datasets.models import DatasetVersion
from organizations.models import AuditEntry, Role
from pipelines import doing
from pipelines.models import Connection
from tests.factories import MembershipFactory, WorkerFactory, bearer
from tests.pipelines import make
from tests.training.make import Node
from workers.files import store_artifact
from workers.models import Task

pytestmark = pytest.mark.django_db
JSON = "application/json"
SECRET, OTHER = "hunter2-of-the-warehouse", "correct-horse-battery"
QUERY = {
    "key": "q",
    "stage": "sql",
    "params": {"connection": "warehouse", "sql": "SELECT 1", "dataset": "one"},
}
HOST = {"host": "warehouse.example.org", "database": "shop", "user": "reader"}


@pytest.fixture(autouse=True)
def allowed(settings):
    settings.REACH = "warehouse.example.org:5432 other.example.org:5432"


@pytest.fixture
def admin():
    return MembershipFactory(role=Role.ADMIN)


class Api:
    def __init__(self, client, member):
        self.client, self.auth = client, bearer(member.user)

    def __call__(self, method, path, body=None):
        return getattr(self.client, method)(
            f"/api/connections{path}", body, content_type=JSON, headers=self.auth
        )


@pytest.fixture
def api(client, admin):
    return Api(client, admin)


def new(api, **change):
    body = {
        "name": "warehouse", "kind": "postgres", "settings": HOST,
        "secrets": {"password": SECRET}, **change,
    }  # fmt: skip
    return api("post", "", body)


# --- The API ---


def test_a_connection_is_made_and_its_secret_never_comes_back(api, admin):
    made = new(api)
    assert made.status_code == 201
    one = made.json()
    assert one["settings"] == {**HOST, "port": 5432, "sslmode": "prefer"}
    assert one["secrets"] == ["password"]
    assert one["last_test"] is None
    answers = [made, api("get", ""), api("get", "/"), api("get", f"/{one['id']}")]
    assert [answer.status_code for answer in answers] == [201, 200, 200, 200]
    stored = Connection.objects.get()
    assert stored.secrets == {"password": SECRET}
    told = [*Connection.objects.values(), *AuditEntry.objects.values()]
    assert SECRET not in str(told) + "".join(answer.content.decode() for answer in answers)
    assert AuditEntry.objects.get(verb="connection.made").changes["kind"] == "postgres"


def test_the_embedded_warehouse_needs_nothing(api):
    made = api("post", "/", {"name": "ours", "kind": "duckdb"})
    assert made.status_code == 201
    assert made.json()["settings"] == {}


@pytest.mark.parametrize(
    ("change", "field", "said"),
    [
        ({"kind": "oracle"}, "kind", "not a valid choice"),
        ({"name": "a/b"}, "name", "letters"),
        ({"settings": {"host": "warehouse.example.org"}}, "settings.database", "needed"),
        ({"settings": {**HOST, "port": 6543}}, "settings.host", "FLOWML_REACH"),
        ({"settings": {**HOST, "host": "evil.example.org"}}, "settings.host", "FLOWML_REACH"),
        ({"settings": {**HOST, "host": "127.0.0.1"}}, "settings.host", "FLOWML_REACH"),
        ({"settings": {**HOST, "host": "169.254.169.254"}}, "settings.host", "FLOWML_REACH"),
        ({"settings": {**HOST, "host": "/var/run/postgresql"}}, "settings.host", "no name"),
        ({"settings": {**HOST, "options": "-c x=y"}}, "settings.options", "no such setting"),
        ({"settings": {**HOST, "sslmode": "allow"}}, "settings.sslmode", "Use one of"),
        ({"settings": {**HOST, "port": "x"}}, "settings.port", "1 to 65535"),
        ({"settings": {**HOST, "user": "a\nb"}}, "settings.user", "one line"),
        ({"settings": {**HOST, "user": {"a": 1}}}, "settings.user", "text"),
        ({"secrets": {"token": "x"}}, "secrets.token", "no such secret"),
        ({"secrets": {"password": 5}}, "secrets.password", "text"),
    ],
)
def test_what_cannot_be_is_told_by_field(api, change, field, said):
    refused = new(api, **change)
    assert refused.status_code == 400
    assert said in " ".join(refused.json()["errors"][field])
    assert not Connection.objects.exists()
    assert new(api).status_code == 201


def test_a_name_is_the_organizations_own(api, client):
    assert new(api).status_code == 201
    again = new(api)
    assert (again.status_code, again.json()["code"]) == (409, "name-taken")
    other = Api(client, MembershipFactory(role=Role.ADMIN))
    assert new(other).status_code == 201


def test_what_is_sent_is_changed_and_the_rest_stays(api):
    one = new(api).json()
    path = f"/{one['id']}"
    changed = api("patch", path, {"secrets": {"password": OTHER}})  # asks for nothing else
    assert changed.status_code == 200
    assert Connection.objects.get().secrets == {"password": OTHER}
    changed = api("patch", path, {"settings": {"user": "writer"}}).json()
    assert changed["settings"] == {**one["settings"], "user": "writer"}
    assert Connection.objects.get().secrets == {"password": OTHER}
    assert api("patch", path, {"secrets": {"password": None}}).json()["secrets"] == []
    assert Connection.objects.get().secrets == {}
    entries = AuditEntry.objects.filter(verb="connection.changed").values_list("changes", flat=True)
    assert sum("entered" in one for one in entries) == 2
    assert OTHER not in str(list(entries))


def test_a_secret_is_not_sent_to_another_host_than_it_was_entered_for(api):
    path = f"/{new(api).json()['id']}"
    elsewhere = {"settings": {"host": "other.example.org"}}
    refused = api("patch", path, elsewhere)
    assert refused.status_code == 400
    assert "enter this again" in refused.json()["errors"]["secrets.password"][0]
    assert Connection.objects.get().settings["host"] == "warehouse.example.org"
    changed = api("patch", path, {**elsewhere, "secrets": {"password": OTHER}})
    assert changed.json()["settings"]["host"] == "other.example.org"


def test_a_connection_that_a_pipeline_uses_stays(api, admin):
    one = new(api).json()
    pipeline = make.pipeline(admin, [QUERY], "nightly")
    refused = api("delete", f"/{one['id']}")
    assert (refused.status_code, refused.json()["code"]) == (409, "connection-in-use")
    assert "nightly" in refused.json()["detail"]
    refused = api("patch", f"/{one['id']}", {"name": "lake"})  # pipelines know it by its name
    assert refused.status_code == 409
    pipeline.delete()
    assert api("patch", f"/{one['id']}", {"name": "lake"}).status_code == 200
    assert api("delete", f"/{one['id']}").status_code == 204
    assert not Connection.objects.exists()
    assert AuditEntry.objects.filter(verb="connection.deleted").exists()


def test_a_test_runs_on_a_node_and_answers_with_a_sentence(api, admin):
    one = new(api).json()
    path = f"/{one['id']}/test"
    assert api("get", path).status_code == 404
    begun = api("post", path)
    assert begun.status_code == 202
    assert begun.json()["state"] == "waiting"
    assert api("post", path).json()["task"] == begun.json()["task"]  # that one counts
    task = Task.objects.get(kind="pipeline.test")
    assert task.light
    assert SECRET not in str(task.payload)
    node = Node(WorkerFactory(queues=["cpu"]))
    node.claim()
    assert api("get", path).json()["state"] == "running"
    node.end(task, result={"data": {"sentence": "PostgreSQL 18 answers reader."}, "files": {}})
    found = api("get", path).json()
    assert (found["state"], found["sentence"]) == ("works", "PostgreSQL 18 answers reader.")
    api("post", path)
    task = node.claim()
    said = "PostgreSQL at warehouse.example.org:5432 can't be used: password authentication failed."
    node.end(
        task,
        "failed",
        error=said,
        code="connection",
        fault="work",
        result={"data": {}, "files": {}},
    )
    found = api("get", f"/{one['id']}").json()["last_test"]
    assert (found["state"], found["sentence"]) == ("fails", said)
    assert AuditEntry.objects.filter(verb="connection.tested").count() == 2


def test_a_list_asks_the_same_few_questions_however_long(api, admin):
    counts = []
    for _ in range(2):
        for _ in range(3):
            one = make.connection(admin, kind="postgres", settings=HOST)
            api("post", f"/{one.pk}/test")
        with CaptureQueriesContext(connection) as asked:
            assert len(api("get", "").json()["results"]) == Connection.objects.count()
        counts.append(len(asked))
    assert counts[0] == counts[1]


# --- The pages ---


@pytest.fixture
def page(client, admin):
    client.force_login(admin.user)
    return client


def test_the_pages_lead_from_nothing_to_a_connection_that_is_tested(page, admin):
    assert "No connections yet" in page.get("/connections").content.decode()
    kinds = page.get("/connections/new").content.decode()
    assert "PostgreSQL" in kinds
    assert "DuckDB" in kinds
    form = {"kind": "postgres", "name": "warehouse", "port": "5432", "sslmode": "prefer", **HOST}
    refused = page.post(
        "/connections/new", {**form, "host": "evil.example.org", "password": SECRET}
    )
    assert refused.status_code == 400
    shown = refused.content.decode()
    assert "FLOWML_REACH" in shown
    assert "evil.example.org" in shown  # what was typed is still there
    assert SECRET not in shown  # but no secret
    made = page.post("/connections/new", {**form, "password": SECRET})
    one = Connection.objects.get()
    assert made["Location"] == reverse("pipelines:connection", args=[one.pk])
    shown = page.get(made["Location"]).content.decode()
    assert "every 1s" in shown  # the test goes on
    assert SECRET not in shown
    task = Task.objects.get(kind="pipeline.test")
    node = Node(WorkerFactory(queues=["cpu"]))
    node.claim()
    node.end(task, result={"data": {"sentence": "It answers reader."}, "files": {}})
    part = page.get(f"/connections/{one.pk}/tested").content.decode()
    assert "It answers reader." in part
    assert "every 1s" not in part
    assert "Works" in page.get("/connections").content.decode()


def test_a_form_asks_for_what_is_needed_and_folds_away_what_is_seldom_changed(page, admin):
    form = page.get("/connections/new?kind=ssh").content.decode()
    key = form[form.index('<textarea class="form-control mono" id="private_key"') :]
    assert " required" in key[: key.index(">")]
    shown, folded = form.split("How files travel")
    assert 'name="host_key"' in shown
    assert 'name="chunk_mib"' not in shown
    assert 'name="chunk_mib"' in folded
    assert "<details>" in shown
    made = make.connection(admin, "gpu", kind="ssh", settings={"chunk_mib": 4},
                           secrets={"private_key": "k"})  # fmt: skip
    form = page.get(f"/connections/{made.pk}").content.decode()
    assert "<details open>" in form, "what was changed is seen"
    key = form[form.index('id="private_key"') :]
    assert " required" not in key[: key.index(">")], "one is kept"


def test_a_form_that_leaves_a_secret_empty_keeps_it(page, admin):
    one = make.connection(
        admin,
        "warehouse",
        kind="postgres",
        settings={**HOST, "port": 5432, "sslmode": "prefer"},
        secrets={"password": SECRET},
    )
    form = {"name": "lake", "port": "5432", "sslmode": "require", "password": "", **HOST}
    assert page.post(f"/connections/{one.pk}/change", form).status_code == 302
    one.refresh_from_db()
    assert (one.name, one.settings["sslmode"]) == ("lake", "require")
    assert one.secrets == {"password": SECRET}
    bad = page.post(f"/connections/{one.pk}/change", {**form, "host": ""})
    assert bad.status_code == 400
    assert "This is needed" in bad.content.decode()
    one.refresh_from_db()
    assert one.settings["host"] == HOST["host"]


def test_deleting_is_refused_while_a_pipeline_uses_it(page, admin):
    one = make.connection(admin, "warehouse")
    pipeline = make.pipeline(admin, [QUERY], "nightly")
    link = f'<a href="/pipelines/{pipeline.pk}">nightly</a>'
    assert link in page.get(f"/connections/{one.pk}").content.decode()
    refused = page.post(f"/connections/{one.pk}/delete", follow=True)
    assert "It is used by the pipeline nightly" in refused.content.decode()
    pipeline.delete()
    gone = page.post(f"/connections/{one.pk}/delete", follow=True)
    assert "is deleted" in gone.content.decode()
    assert not Connection.objects.exists()


# --- What comes of them ---


def test_a_data_set_says_which_run_made_it_of_what(page, admin):
    run = make.run(admin, [QUERY])
    file = SimpleUploadedFile("result.parquet", b"PAR1 and so on")
    rows = store_artifact(admin.organization, "data", file)
    work = doing.Work(run, run.steps.get(), QUERY, {}, admin)
    for number in (1, 2):
        doing._take_in(work, rows, "one")
        version = DatasetVersion.objects.get(number=number)
        assert version.origin == {
            "text": f"the run {run}, step q",
            "url": run.get_absolute_url(),
            "run": str(run.pk),
            "step": "q",
            "connection": "warehouse",
            "sql": "SELECT 1",
        }
        DatasetVersion.objects.update(state="failed", error={"detail": "", "code": "x"})
    shown = page.get(f"/data/{version.dataset_id}").content.decode()
    assert f'<a href="{run.get_absolute_url()}">the run {run}, step q</a>' in shown
    told = page.get(f"/api/datasets/{version.dataset_id}").json()["newest"]["origin"]
    assert told["sql"] == "SELECT 1"
