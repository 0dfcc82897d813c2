"""Quotas and the usage ledger: exact, and told in words that help."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import transaction
from django.utils import timezone

from datasets import actions as data
from datasets.models import Dataset
from organizations import quotas, usage
from organizations.models import Organization, Role, UsageEntry, UsageMonth
from organizations.quotas import QuotaReached
from tests.clusters import make as deploying
from tests.factories import WorkerFactory
from tests.organizations.threads import at_once
from tests.training import make
from training import actions as training
from training.models import TrainingJob
from workers.models import Artifact
from workers.tasks import handle_end

pytestmark = pytest.mark.django_db


@pytest.fixture
def ada():
    return make.member(Role.ADMIN)


def limit(membership, **limits):
    Organization.objects.filter(pk=membership.organization_id).update(**limits)
    membership.organization.refresh_from_db()


def a_file(size=1000):
    return SimpleUploadedFile("t.csv", b"a\n" + b"1\n" * (size // 2 - 1))


def note(organization, task=None, attempt=1, **used):
    fields = {"cpu_s": 10.0, "gpu_s": 0.0, "wall_s": 5.0, "ended_at": timezone.now()} | used
    return usage.note(organization.pk, task=task or uuid4(), attempt=attempt, kind="x", **fields)


# --- The ledger ----------------------------------------------------------------------------------


def test_what_a_task_used_is_metered_once_however_often_its_end_is_handled(ada):
    make.job(ada)
    node = make.Node()
    task = node.claim()
    type(task).objects.filter(pk=task.pk).update(
        gpus=2, started_at=timezone.now() - timedelta(seconds=100)
    )
    node.end(task, usage={"cpu_s": 30.5, "wall_s": 20.0})
    type(task).objects.filter(pk=task.pk).update(handled_at=None)
    handle_end(str(task.pk))
    month = UsageMonth.objects.get(organization=ada.organization)
    assert (month.cpu_s, month.gpu_s, month.tasks) == (30.5, 40.0, 1)
    assert UsageEntry.objects.get().wall_s == 20.0


@pytest.mark.parametrize("said", [{}, {"cpu_s": "many"}, {"cpu_s": -4}, {"cpu_s": None}])
def test_what_makes_no_sense_counts_as_nothing(ada, said):
    make.job(ada)
    node = make.Node()
    node.end(node.claim(), usage=said)
    assert UsageMonth.objects.get().cpu_s == 0


def test_work_on_ones_own_node_is_not_counted(ada):
    make.job(ada)
    node = make.Node(WorkerFactory())
    task = node.claim()
    node.worker.organization = ada.organization
    node.worker.save()
    node.end(task, usage={"cpu_s": 30, "wall_s": 20})
    assert not UsageEntry.objects.exists()


def test_each_attempt_counts_once_and_months_are_kept_apart(ada):
    task = uuid4()
    old = datetime(2025, 1, 31, 23, 59, tzinfo=UTC)
    assert note(ada.organization, task, 1)
    assert not note(ada.organization, task, 1, cpu_s=99.0)
    assert note(ada.organization, task, 2)
    note(ada.organization, ended_at=old)
    sums = UsageMonth.objects.order_by("month").values_list("month", "cpu_s", "tasks")
    assert [(f"{month:%Y-%m}", *rest) for month, *rest in sums] == [
        ("2025-01", 10.0, 1), (f"{timezone.now():%Y-%m}", 20.0, 2),
    ]  # fmt: skip


@pytest.mark.django_db(transaction=True)
def test_the_same_report_from_many_sides_at_once_is_entered_once():
    home = make.member().organization
    task = uuid4()
    answers = at_once(*(lambda: note(home, task) for _ in range(4)))
    assert sorted(answers) == [False, False, False, True]
    others = at_once(*(lambda: note(home) for _ in range(4)))
    assert others == [True] * 4
    assert UsageMonth.objects.get().cpu_s == 50


def test_the_most_that_was_stored_in_a_month_is_kept(ada):
    data.upload(ada, a_file(3000))
    usage.note_storage()
    Artifact.objects.update(size=10)
    usage.note_storage()
    assert UsageMonth.objects.get().storage_bytes == 3000


# --- Reaching a quota ----------------------------------------------------------------------------


def test_storage_that_is_full_refuses_an_upload_and_says_what_frees_it(ada, client):
    data.upload(ada, a_file(600))
    limit(ada, max_storage_bytes=1000)
    client.force_login(ada.user)
    answer = client.post("/api/datasets/upload", {"file": a_file(600)})
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["quota"]) == (
        429, "quota-reached", "storage_bytes",
    )  # fmt: skip
    assert (problem["used"], problem["limit"]) == (600, 1000)
    assert "Delete data sets" in problem["detail"]
    assert "600 bytes of 1 kB are used, and this needs 600 bytes more" in problem["detail"]
    assert Artifact.objects.count() == 1
    Artifact.objects.update(size=100)
    assert client.post("/api/datasets/upload", {"file": a_file(600)}).status_code == 202


def test_a_file_past_the_organizations_own_limit_is_refused(ada, settings):
    limit(ada, max_upload_bytes=500)
    with pytest.raises(QuotaReached) as refused:
        data.upload(ada, a_file(600))
    assert refused.value.status == 413
    assert refused.value.extra["quota"] == "upload_bytes"
    # More than the installation takes, nobody can be given.
    limit(ada, max_upload_bytes=10**15)
    most = settings.MAX_UPLOAD_SIZE_MB * 2**20
    assert quotas.limit_of(ada.organization, "upload_bytes") == most


def test_only_so_many_trainings_wait(ada):
    version = make.version(ada)
    limit(ada, max_queued_jobs=2)
    jobs = [make.job(ada, of=version) for _ in range(2)]
    with pytest.raises(QuotaReached, match="2 of 2 are used"):
        make.job(ada, of=version)
    training.cancel_job(ada, jobs[0])
    TrainingJob.objects.filter(pk=jobs[0].pk).update(state="cancelled", finished_at=timezone.now())
    make.job(ada, of=version)


def test_hours_that_are_used_up_start_anew_with_the_month(ada):
    version = make.version(ada)
    limit(ada, max_cpu_hours=1)
    note(ada.organization, cpu_s=3600 * 1.5, ended_at=timezone.now() - timedelta(days=40))
    make.job(ada, of=version)
    note(ada.organization, cpu_s=3600 * 1.5)
    with pytest.raises(QuotaReached) as refused:
        make.job(ada, of=version)
    assert "1.5 hours of 1 hours are used. It starts anew on 1 " in refused.value.detail
    assert refused.value.extra["resets_at"] == quotas.resets_at().isoformat()


def test_nothing_allowed_is_a_limit_too(ada):
    limit(ada, max_cpu_hours=0)
    with pytest.raises(QuotaReached):
        make.job(ada)


def test_deployments_are_limited_and_stopping_one_frees_its_place(ada, client):
    limit(ada, max_deployments=2)
    deploying.cluster(ada, deploying.node(ada))
    model = deploying.model(ada)
    client.force_login(ada.user)

    def deploy(name, **more):
        wish = {"name": name, "model": str(model.pk), **more}
        return client.post("/api/deployments", wish, content_type="application/json")

    first = deploy("a")
    assert first.status_code == 201, first.content
    refused = deploy("b", preemptible=False)
    assert refused.status_code == 429, "one that nothing may evict counts twice"
    told = refused.json()
    assert (told["code"], told["quota"], told["used"], told["limit"]) == (
        "quota-reached", "deployments", 1, 2,
    )  # fmt: skip
    assert "Stop a deployment" in told["frees"]
    assert deploy("c").status_code == 201
    assert deploy("d").status_code == 429
    place = f"/api/deployments/{first.json()['id']}"
    kept = client.patch(place, {"preemptible": False}, content_type="application/json")
    assert kept.status_code == 429
    assert client.post(f"{place}/stop").status_code == 202
    assert deploy("d").status_code == 201
    assert client.post(f"{place}/start").status_code == 429
    assert quotas.used(ada.organization, "deployments") == 2


def test_what_has_no_limit_yet_can_be_asked(ada):
    quotas.check(ada.organization, deployments=1)
    limit(ada, max_deployments=0)
    with pytest.raises(QuotaReached, match="Deployments"), transaction.atomic():
        quotas.reserve(ada.organization, deployments=1)


@pytest.mark.django_db(transaction=True)
def test_two_uploads_at_once_share_the_last_room_fairly():
    ada = make.member()
    limit(ada, max_storage_bytes=1000)
    answers = at_once(*(lambda: data.upload(ada, a_file(600)) for _ in range(3)))
    assert sum(isinstance(answer, Dataset) for answer in answers) == 1, answers
    assert sum(isinstance(answer, QuotaReached) for answer in answers) == 2
    assert sum(Artifact.objects.values_list("size", flat=True)) == 600


@pytest.mark.django_db(transaction=True)
def test_two_trainings_at_once_for_the_last_place_in_the_line():
    ada = make.member()
    limit(ada, max_queued_jobs=1)
    version = make.version(ada)
    answers = at_once(*(lambda: make.job(ada, of=version) for _ in range(3)))
    assert sum(isinstance(answer, TrainingJob) for answer in answers) == 1, answers
    assert TrainingJob.objects.count() == 1


# --- Reading -------------------------------------------------------------------------------------


def test_usage_tells_quotas_and_history(ada, client, django_assert_max_num_queries):
    limit(ada, max_cpu_hours=10)
    note(ada.organization, cpu_s=7200, gpu_s=3600)
    note(make.member().organization, cpu_s=99999)
    data.upload(ada, a_file(800))
    client.force_login(ada.user)
    address = f"/api/organizations/{ada.organization_id}/usage"
    client.get(address)
    with django_assert_max_num_queries(11):
        said = client.get(address).json()
    rows = {row["quota"]: row for row in said["quotas"]}
    assert set(rows) == set(quotas.QUOTAS)
    assert (rows["cpu_hours"]["used"], rows["cpu_hours"]["share"]) == (2.0, 0.2)
    assert rows["storage_bytes"]["used"] == 800
    assert rows["storage_bytes"]["limit"] is None
    assert len(said["months"]) == 12
    assert (said["months"][-1]["cpu_hours"], said["months"][-1]["gpu_hours"]) == (2.0, 1.0)
    assert len(said["days"]) == 30
    assert said["days"][-1]["tasks"] == 1


def test_members_read_limits_and_nobody_but_the_operator_sets_them(ada, client):
    client.force_login(ada.user)
    address = f"/api/organizations/{ada.organization_id}"
    wish = {"name": "x", "max_storage_bytes": 1, "max_cpu_hours": 1, "max_queued_jobs": 1}
    client.patch(address, wish, content_type="application/json")
    ada.organization.refresh_from_db()
    assert {getattr(ada.organization, quota.column) for quota in quotas.QUOTAS.values()} == {None}
