"""What a node that an organization runs itself can't do to the others: fill disk and database."""

import pytest

from tests.factories import OrganizationFactory, make_task
from tests.workers.test_joining import claim, joined
from workers import files
from workers.models import Artifact, Task, Worker

pytestmark = pytest.mark.django_db


@pytest.fixture
def home():
    return OrganizationFactory(max_storage_bytes=1000)


@pytest.fixture
def held(client, home):
    """An attempt that a node of the organization's own holds."""
    make_task(home)
    return claim(client, joined(client, home)).json()


def put(client, held, name, data, **headers):
    return client.put(
        f"/api/workers/tasks/{held['task']}/artifacts/{name}",
        data,
        content_type="application/octet-stream",
        headers={"Authorization": f"Task {held['token']}", **headers},
    )


def test_what_an_own_node_sends_counts_before_it_is_kept(client, home, held):
    assert put(client, held, "a", b"x" * 600).status_code == 201
    refused = put(client, held, "b", b"x" * 600)
    problem = refused.json()
    # A node takes 429 for "later" and would send the file for ever.
    assert (refused.status_code, problem["code"], problem["quota"]) == (
        413, "quota-reached", "storage_bytes",
    )  # fmt: skip
    assert "600 bytes of 1 kB are used" in problem["detail"]
    assert Artifact.objects.count() == 1
    assert put(client, held, "b", b"x" * 400).status_code == 201
    assert put(client, held, "a", b"x" * 600).status_code == 201, "again, since its answer was lost"
    assert Artifact.objects.count() == 2


def test_what_is_too_large_is_refused_before_it_is_read(client, held, monkeypatch):
    def read(*_, **__):
        raise AssertionError("it was read")

    monkeypatch.setattr(files._Hashing, "chunks", read)
    assert put(client, held, "a", b"x" * 1001).status_code == 413


def test_the_platforms_node_keeps_what_it_has_done_past_the_quota(client, home):
    make_task(home)
    held = claim(client, joined(client)).json()
    assert put(client, held, "model", b"x" * 5000).status_code == 201


def test_a_task_keeps_only_so_many_files(client, held, monkeypatch):
    monkeypatch.setattr(files, "MOST_FILES", 3)
    Worker.objects.update(organization=None)  # whoever's node it is
    assert [put(client, held, str(n), b"x").status_code for n in range(3)] == [201] * 3
    refused = put(client, held, "one more", b"x")
    assert (refused.status_code, refused.json()["code"]) == (413, "too-many-files")
    assert "at most 3 files" in refused.json()["detail"]
    assert put(client, held, "0", b"x").status_code == 201, "it is there already"
    assert put(client, held, "0", b"y").status_code == 413, "another file of the same name"
    assert Artifact.objects.count() == 3


def test_an_empty_file_is_a_file(client, held):
    assert put(client, held, "empty", b"").status_code == 201
    assert Artifact.objects.get().size == 0
    assert Task.objects.get().state == "running"
