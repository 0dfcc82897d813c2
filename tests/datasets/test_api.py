"""The API of data sets: who may do what, what it costs, and what it says."""

import json
from pathlib import Path
from uuid import uuid4

import polars as pl
import pytest
from django.core.files.storage import default_storage
from django.core.files.uploadedfile import SimpleUploadedFile
from django.urls import reverse

from datasets import actions
from datasets.api.urls import urlpatterns
from datasets.models import Dataset, DatasetVersion
from organizations.models import Role
from tests.datasets.nodes import ingest_next
from tests.factories import bearer
from tests.training import make
from workers.models import Artifact, Event, Task
from workers.tasks import handle_end

pytestmark = pytest.mark.django_db
JSON = "application/json"
CSV = "id,name,x,when\n" + "".join(
    f"{i},n{i % 7},{i / 4},2024-01-{1 + i % 28:02}\n" for i in range(100)
)


def token(membership):
    return bearer(membership.user)


def a_file(content: str = CSV, name: str = "table.csv") -> SimpleUploadedFile:
    return SimpleUploadedFile(name, content.encode())


@pytest.fixture
def by():
    return make.member()


@pytest.fixture
def ask(client, by):
    signed_in = token(by)

    def send(method, path, body=None, **headers):
        return getattr(client, method)(path, body, content_type=JSON, headers=signed_in | headers)

    return send


@pytest.fixture
def post(client, by):
    """post(path, **fields) -> response to a form with files."""

    def send(path, **fields):
        return client.post(path, fields, headers=token(by))

    return send


@pytest.fixture
def dataset(by, tmp_path):
    made = actions.upload(by, a_file())
    ingest_next(tmp_path)
    made.refresh_from_db()
    assert made.state == "ready"
    return made


# --- How much at once ----------------------------------------------------------------------------


def test_only_so_many_files_wait_to_be_read_however_small(monkeypatch, dataset, by, post, ask):
    monkeypatch.setattr(actions, "MOST_READING", 2)
    first = [post("/api/datasets/upload", file=a_file()).json()["id"] for _ in range(2)]
    files = Artifact.objects.count()
    for again in (
        lambda: post("/api/datasets/upload", file=a_file()),
        lambda: post(f"/api/datasets/{dataset.pk}/versions", file=a_file()),
        lambda: ask("post", "/api/datasets/samples/iris"),
    ):
        refused = again()
        assert (refused.status_code, refused.json()["code"]) == (429, "too-many-uploads")
        assert refused["Retry-After"] == "10"
    assert Artifact.objects.count() == files, "nothing is stored of what is refused"
    actions.upload(make.member(), a_file())  # another organization's
    assert ask("delete", f"/api/datasets/{first[0]}").status_code == 204
    assert post("/api/datasets/upload", file=a_file()).status_code == 202


# --- Who may do what -----------------------------------------------------------------------------

# (route, method) -> (lowest role, status for those who may)
ROUTES = {
    ("dataset-list", "get"): (Role.VIEWER, 200),
    ("dataset-upload", "post"): (Role.DEVELOPER, 202),
    ("sample-list", "get"): (Role.VIEWER, 200),
    ("sample-load", "post"): (Role.DEVELOPER, 202),
    ("dataset-detail", "get"): (Role.VIEWER, 200),
    ("dataset-detail", "patch"): (Role.DEVELOPER, 200),
    ("dataset-detail", "delete"): (Role.DEVELOPER, 204),
    ("dataset-preview", "get"): (Role.VIEWER, 200),
    ("dataset-image", "get"): (Role.VIEWER, 400),  # the table has none
    ("dataset-stats", "get"): (Role.VIEWER, 200),
    ("dataset-associations", "get"): (Role.VIEWER, 200),
    ("dataset-versions", "get"): (Role.VIEWER, 200),
    ("dataset-versions", "post"): (Role.DEVELOPER, 202),
    ("dataset-rejects", "get"): (Role.VIEWER, 404),  # there are none
}
OF_NOBODY = {"dataset-list", "dataset-upload", "sample-list", "sample-load"}


def test_the_table_of_routes_is_whole():
    served = set()
    for url in urlpatterns:
        view = url.callback
        methods = getattr(view, "actions", None) or {"get": 0, "post": 0, "patch": 0, "delete": 0}
        served |= {
            (url.name, method)
            for method in methods
            if hasattr(view, "actions") or hasattr(view.view_class, method)
        }
    assert {pair for pair in served if pair[1] != "head"} == set(ROUTES)


def call(client, route, method, membership, dataset):
    keys = {"sample-load": ["iris"]}.get(route, [] if route in OF_NOBODY else [dataset.pk])
    path = reverse(route, args=keys)
    headers = token(membership) if membership else {}
    if method == "post":
        return client.post(path, {"file": a_file()}, headers=headers)
    return getattr(client, method)(path, {}, content_type=JSON, headers=headers)


@pytest.mark.parametrize(("route", "method"), ROUTES)
def test_each_route_asks_for_its_role_and_keeps_others_out(client, by, dataset, route, method):
    lowest, status = ROUTES[route, method]
    assert call(client, route, method, None, dataset).status_code == 401
    stranger = make.member(Role.ADMIN)
    others = 404 if route not in OF_NOBODY else status
    assert call(client, route, method, stranger, dataset).status_code == others
    for role in (Role.VIEWER, Role.DEVELOPER):
        member = make.member(role, organization=by.organization)
        expected = status if role >= lowest else 403
        assert call(client, route, method, member, dataset).status_code == expected, role


def test_another_organizations_data_is_in_no_list(client, dataset):
    stranger = make.member(Role.ADMIN)
    answer = client.get(reverse("dataset-list"), headers=token(stranger))
    assert answer.json()["results"] == []


def test_a_version_of_another_data_set_is_not_there(ask, by, dataset, tmp_path):
    other = actions.upload(by, a_file())
    ingest_next(tmp_path)
    version = other.versions.get()
    path = reverse("dataset-preview", args=[dataset.pk])
    assert ask("get", path, {"version": str(version.pk)}).status_code == 404
    assert ask("get", path, {"version": "x"}).status_code == 404


# --- Uploads -------------------------------------------------------------------------------------


def test_an_upload_is_read_and_then_ready(post, ask, by, tmp_path):
    answer = post(
        reverse("dataset-upload"), file=a_file(name="sales 2024.csv"), description="Of a shop"
    )
    assert answer.status_code == 202
    made = answer.json()
    assert made["state"] == "ingesting"
    assert made["progress"] == 0
    assert answer["Location"].endswith(f"/api/datasets/{made['id']}")
    upload = Artifact.objects.get()

    ingest_next(tmp_path)

    seen = ask("get", answer["Location"]).json()
    assert seen["state"] == "ready"
    assert seen["name"] == "sales 2024.csv"
    assert seen["description"] == "Of a shop"
    assert seen["progress"] is None
    assert seen["latest"]["rows"] == 100
    assert seen["latest"]["source"]["delimiter"] == ","
    assert [(c["name"], c["dtype"], c["role"]) for c in seen["columns"]] == [
        ("id", "integer", "identifier"),
        ("name", "string", "categorical"),
        ("x", "float", "numeric"),
        ("when", "date", "datetime"),
    ]
    version = DatasetVersion.objects.get()
    assert version.sha256 == version.data.sha256
    assert version.upload is None
    assert not Artifact.objects.filter(pk=upload.pk).exists()
    types = list(Event.objects.filter(stream=version.dataset.topic).values_list("type", flat=True))
    assert types[0] == "task.queued"
    assert types[-1] == "state"


def test_a_file_that_can_not_be_read_says_why_and_is_gone(
    post, ask, tmp_path, django_capture_on_commit_callbacks
):
    answer = post(reverse("dataset-upload"), file=a_file("a,a\n1,2\n"))
    upload = Artifact.objects.get()
    with django_capture_on_commit_callbacks(execute=True):
        ingest_next(tmp_path)
    seen = ask("get", answer["Location"]).json()
    assert seen["state"] == "failed"
    assert seen["latest"] is None
    error = seen["newest"]["error"]
    assert error["code"] == "duplicate-columns"
    assert "'a' (2 times)" in error["detail"]
    assert error["columns"] == ["a"]
    assert not Artifact.objects.exists()
    assert not default_storage.exists(upload.file.name)
    preview = ask("get", reverse("dataset-preview", args=[seen["id"]]))
    assert preview.status_code == 404


def test_reacting_twice_to_the_end_of_an_ingest_changes_nothing(by, tmp_path):
    made = actions.upload(by, a_file())
    task = ingest_next(tmp_path)
    before = DatasetVersion.objects.get()
    Task.objects.filter(pk=task.pk).update(handled_at=None)
    handle_end(str(task.pk))
    after = DatasetVersion.objects.get()
    assert after.data_id == before.data_id
    assert after.ready_at == before.ready_at
    made.refresh_from_db()
    assert made.latest_id == before.pk


def test_a_request_without_a_file(post):
    answer = post(reverse("dataset-upload"))
    assert answer.status_code == 400
    assert answer["Content-Type"] == "application/problem+json"
    assert "file" in answer.json()["errors"]
    assert not Dataset.objects.exists()


def test_a_file_over_the_limit_is_stopped_and_leaves_nothing(post, settings, tmp_path):
    settings.MAX_UPLOAD_SIZE_MB = 1
    settings.FILE_UPLOAD_TEMP_DIR = tmp_path / "tmp"
    (tmp_path / "tmp").mkdir()
    fits = post(reverse("dataset-upload"), file=a_file("a,b\n" + "1,2\n" * 200_000))
    assert fits.status_code == 202
    answer = post(reverse("dataset-upload"), file=a_file("a,b\n" + "1,2\n" * 400_000))
    assert answer.status_code == 413
    assert answer.json()["code"] == "too-large"
    assert Dataset.objects.count() == Artifact.objects.count() == 1
    assert list((tmp_path / "tmp").iterdir()) == []


def test_what_the_file_leaves_open_can_be_said(post, ask, tmp_path):
    content = "zip;v\n" + "1234;1\n4321;2\n" * 20 + "12a;3\n" + "5555;x\n"
    answer = post(
        reverse("dataset-upload"),
        file=a_file(content),
        delimiter="semicolon",
        header="true",
        encoding="cp1252",
        columns=json.dumps({"zip": "string", "v": "integer"}),
    )
    ingest_next(tmp_path)
    seen = ask("get", answer["Location"]).json()
    assert [(c["name"], c["dtype"]) for c in seen["columns"]] == [
        ("zip", "string"),
        ("v", "integer"),
    ]
    assert seen["latest"]["rejected"] == 1
    rejects = ask("get", reverse("dataset-rejects", args=[seen["id"]]))
    text = b"".join(rejects.streaming_content if not rejects.is_async else _all(rejects)).decode()
    assert text.splitlines() == [
        "line,reason,raw", "43,'x' in column 'v' is not a whole number,5555;x",
    ]  # fmt: skip


def _all(response):
    import asyncio

    async def read():
        return [piece async for piece in response.streaming_content]

    return asyncio.run(read())


@pytest.mark.parametrize(
    ("field", "value"),
    [("delimiter", "x"), ("encoding", "utf-99"), ("columns", '{"a": "number"}'), ("columns", "[")],
)
def test_options_that_make_no_sense(post, field, value):
    answer = post(reverse("dataset-upload"), file=a_file(), **{field: value})
    assert answer.status_code == 400
    assert field in answer.json()["errors"]
    assert not Artifact.objects.exists()


# --- Versions ------------------------------------------------------------------------------------


def test_a_new_version_takes_over_and_the_old_one_stays(post, ask, dataset, tmp_path):
    path = reverse("dataset-versions", args=[dataset.pk])
    first = dataset.latest
    answer = post(path, file=a_file(CSV + "100,n1,25,2024-02-01\n"))
    assert answer.status_code == 202
    assert answer.json()["state"] == "ready"  # the old version can be used meanwhile
    assert answer.json()["newest"]["state"] == "ingesting"
    assert post(path, file=a_file()).status_code == 409
    ingest_next(tmp_path)
    found = ask("get", path).json()["results"]
    assert [(v["number"], v["rows"]) for v in found] == [(2, 101), (1, 100)]
    old = ask("get", reverse("dataset-preview", args=[dataset.pk]), {"version": str(first.pk)})
    assert old.json()["total"] == 100
    assert ask("get", reverse("dataset-preview", args=[dataset.pk])).json()["total"] == 101


def test_a_new_version_that_fails_leaves_the_old_one_in_use(post, ask, dataset, tmp_path):
    answer = post(reverse("dataset-versions", args=[dataset.pk]), file=a_file(""))
    assert answer.status_code in (202, 400)
    if answer.status_code == 202:
        ingest_next(tmp_path)
    dataset.refresh_from_db()
    assert dataset.state == "ready"
    assert dataset.latest.number == 1


def test_roles_that_were_said_hold_for_the_next_version(ask, post, dataset, tmp_path):
    path = reverse("dataset-detail", args=[dataset.pk])
    answer = ask("patch", path, {"roles": {"id": "numeric", "name": "text"}})
    assert answer.status_code == 200
    post(reverse("dataset-versions", args=[dataset.pk]), file=a_file())
    ingest_next(tmp_path)
    roles = {c["name"]: c["role"] for c in ask("get", path).json()["columns"]}
    assert roles == {"id": "numeric", "name": "text", "x": "numeric", "when": "datetime"}


def test_a_value_that_does_not_fit_the_type_of_the_version_before(post, dataset, tmp_path):
    content = CSV + "x1,n1,1,2024-01-01\n100,n2,oops,2024-01-01\n"
    post(reverse("dataset-versions", args=[dataset.pk]), file=a_file(content))
    ingest_next(tmp_path)
    version = DatasetVersion.objects.get(number=2)
    assert version.rows == 100
    assert version.rejected == 2
    assert [c["dtype"] for c in version.columns] == ["integer", "string", "float", "date"]


# --- Looking at it -------------------------------------------------------------------------------


def test_preview(ask, dataset):
    path = reverse("dataset-preview", args=[dataset.pk])
    seen = ask("get", path, {"rows": 2, "offset": 97}).json()
    assert seen["columns"] == ["id", "name", "x", "when"]
    assert seen["rows"] == [
        {"id": 97, "name": "n6", "x": 24.25, "when": "2024-01-14"},
        {"id": 98, "name": "n0", "x": 24.5, "when": "2024-01-15"},
    ]
    assert ask("get", path, {"offset": 1000}).json()["rows"] == []
    for bad in ({"rows": 0}, {"rows": 5000}, {"offset": -1}, {"rows": "x"}):
        answer = ask("get", path, bad)
        assert answer.status_code == 400
        assert set(answer.json()["errors"]) == set(bad)


def test_a_preview_is_bounded_in_cells_and_in_each_cell(ask, by):
    wide = make.version(by, pl.DataFrame({f"c{i}": [i] * 1000 for i in range(500)}))
    path = reverse("dataset-preview", args=[wide.dataset_id])
    answer = ask("get", path, {"rows": 1000})
    assert answer.status_code == 400
    assert "400 rows at most" in answer.json()["detail"]
    long = make.version(by, pl.DataFrame({"t": ["x" * 10_000]}))
    [row] = ask("get", reverse("dataset-preview", args=[long.dataset_id])).json()["rows"]
    assert row["t"] == "x" * 2000 + "…"


def test_stats(ask, dataset):
    seen = ask("get", reverse("dataset-stats", args=[dataset.pk])).json()
    assert seen["rows"] == 100
    x = next(c for c in seen["columns"] if c["name"] == "x")
    assert (x["min"], x["max"], x["distinct"], x["missing"]) == (0, 24.75, 100, 0)
    assert sum(x["histogram"]["counts"]) == 100
    name = next(c for c in seen["columns"] if c["name"] == "name")
    assert name["top"][0] == {"value": "n0", "count": 15}
    assert len(name["classes"]) == 7


def test_a_stored_file_that_is_gone_is_told_as_unavailable(ask, dataset):
    Path(dataset.latest.data.file.path).unlink()
    answer = ask("get", reverse("dataset-preview", args=[dataset.pk]))
    assert answer.status_code == 503


@pytest.mark.parametrize("count", [1, 5])
def test_query_counts_do_not_grow(ask, by, dataset, django_assert_num_queries, count):
    for i in range(count):
        make.version(by, name=f"set {i}")
    with django_assert_num_queries(4):  # user, membership, count, data sets with their versions
        assert len(ask("get", reverse("dataset-list")).json()["results"]) == count + 1
    with django_assert_num_queries(4):  # user, membership, data set, newest version
        ask("get", reverse("dataset-detail", args=[dataset.pk]))
    with django_assert_num_queries(5):  # user, membership, data set, count, versions
        ask("get", reverse("dataset-versions", args=[dataset.pk]))
    with django_assert_num_queries(4):  # user, membership, data set, version
        ask("get", reverse("dataset-preview", args=[dataset.pk]))
    with django_assert_num_queries(4):
        ask("get", reverse("dataset-stats", args=[dataset.pk]))


def test_the_list_leaves_the_columns_in_the_database(ask, dataset, django_assert_num_queries):
    with django_assert_num_queries(4) as seen:
        ask("get", reverse("dataset-list"))
    assert not any('"columns"' in query["sql"] for query in seen)


def test_the_list_is_searched_filtered_and_ordered(ask, by, dataset):
    make.version(by, name="apples")
    path = reverse("dataset-list")

    def names(**query):
        return [one["name"] for one in ask("get", path, query).json()["results"]]

    assert names() == ["apples", "table.csv"]
    assert names(ordering="name") == ["apples", "table.csv"]
    assert names(ordering="created_at") == ["table.csv", "apples"]
    assert names(search="APP") == ["apples"]
    assert names(state="failed") == []


# --- Changing and deleting -----------------------------------------------------------------------


def test_renaming(ask, dataset):
    path = reverse("dataset-detail", args=[dataset.pk])
    answer = ask("patch", path, {"name": "new", "description": "what it is"})
    assert (answer.json()["name"], answer.json()["description"]) == ("new", "what it is")
    assert ask("patch", path, {"name": ""}).status_code == 400


def test_roles_that_do_not_fit_are_refused_by_column(ask, dataset):
    path = reverse("dataset-detail", args=[dataset.pk])
    answer = ask("patch", path, {"roles": {"name": "numeric", "no": "text", "x": "categorical"}})
    assert answer.status_code == 400
    assert set(answer.json()["errors"]) == {"roles.name", "roles.no"}
    dataset.latest.refresh_from_db()
    assert dataset.latest.column("x")["role"] == "numeric"


def test_deleting_takes_rows_and_files(ask, dataset, django_capture_on_commit_callbacks):
    stored = dataset.latest.data.file.name
    assert default_storage.exists(stored)
    with django_capture_on_commit_callbacks(execute=True):
        assert ask("delete", reverse("dataset-detail", args=[dataset.pk])).status_code == 204
    assert not Dataset.objects.exists()
    assert not Artifact.objects.exists()
    assert not default_storage.exists(stored)


def test_deleting_what_is_being_read_cancels_the_reading(ask, by):
    made = actions.upload(by, a_file())
    assert ask("delete", reverse("dataset-detail", args=[made.pk])).status_code == 204
    assert Task.objects.get().state == "cancelled"
    assert not Artifact.objects.exists()


def test_a_data_set_in_use_is_not_deleted(ask, by):
    version = make.version(by)
    make.job(by, version)
    answer = ask("delete", reverse("dataset-detail", args=[version.dataset_id]))
    assert answer.status_code == 409
    assert answer.json()["code"] == "dataset-in-use"
    assert len(answer.json()["uses"]) == 1
    assert Dataset.objects.filter(pk=version.dataset_id).exists()


# --- Samples -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "rows", "target"),
    [("penguins", 344, "species"), ("iris", 150, "species"), ("cars", 406, "miles_per_gallon")],
)
def test_samples_are_loaded_with_one_call(ask, tmp_path, key, rows, target):
    listed = {sample["key"]: sample for sample in ask("get", reverse("sample-list")).json()}
    assert listed[key]["target"] == target
    answer = ask("post", reverse("sample-load", args=[key]))
    assert answer.status_code == 202
    ingest_next(tmp_path)
    seen = ask("get", answer["Location"]).json()
    assert seen["latest"]["rows"] == rows
    assert seen["latest"]["rejected"] == 0
    assert target in [column["name"] for column in seen["columns"]]


def test_an_unknown_sample(ask):
    assert ask("post", reverse("sample-load", args=["nothing"])).status_code == 400


def test_an_unknown_data_set(ask):
    assert ask("get", reverse("dataset-detail", args=[uuid4()])).status_code == 404
