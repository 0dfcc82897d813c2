"""The data gate from asking to an override: a node by hand that really looks at the table."""

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.test import Client

from accounts.errors import Conflict, Invalid, NotFound
from organizations.models import AuditEntry
from tests.training import make, real
from tests.training.test_gate import Quiet, visits
from training import actions, findings, gate
from training.models import DataCheck, TrainingJob
from workers.models import Event, Task

pytestmark = pytest.mark.django_db
JSON = "application/json"


@pytest.fixture
def by():
    return make.member()


@pytest.fixture
def node():
    return make.Node()


@pytest.fixture
def leaky(by):
    """Visits with a column that knows the answer."""
    table = visits().with_columns(outcome=visits()["sick"].cast(int) * 2)
    return real.version(by, table)


def look(node):
    """Do the check that waits, as a node does."""
    task = node.claim()
    assert (task.kind, task.queue, task.light) == ("training.check", "cpu", True)
    version = DataCheck.objects.get(pk=task.subject).dataset_version
    result = gate.run(
        {"payload": task.payload, "inputs": {"data": version.data.file.path}}, Quiet()
    )
    return node.end(task, result=result)


def checked(by, node, version, **wish):
    check = actions.check_data(by, version.dataset_id, **({"target": "sick"} | wish))
    look(node)
    check.refresh_from_db()
    return check


def test_a_check_finds_what_speaks_against_the_data_and_is_kept(by, node, leaky):
    check = actions.check_data(by, leaky.dataset_id, target="sick")
    assert check.state == "running"
    assert check.work.light
    look(node)
    check.refresh_from_db()
    assert (check.state, check.rows, check.sample) == ("succeeded", 2_000, 1_600)
    assert [one["columns"] for one in check.severe()] == [["outcome"]]
    assert check.severe(exclude=["outcome"]) == []
    types = Event.objects.filter(stream=check.topic).values_list("type", flat=True)
    assert "check.succeeded" in types
    assert actions.check_data(by, leaky.dataset_id, target="sick") == check
    assert Task.objects.count() == 1


def test_another_split_target_or_role_is_another_check(by, node, leaky):
    first = checked(by, node, leaky)
    asked = [
        actions.check_data(by, leaky.dataset_id, target="cost"),
        actions.check_data(
            by, leaky.dataset_id, target="sick", split={"kind": "group", "column": "patient_id"}
        ),
        actions.check_data(
            by, leaky.dataset_id, target="sick", column_types={"age": "categorical"}
        ),
    ]
    assert len({check.pk for check in [first, *asked]}) == 4


def test_a_check_that_failed_is_tried_again(by, node, leaky):
    check = actions.check_data(by, leaky.dataset_id, target="sick")
    node.end(node.claim(), "failed", error="The node ran out of memory.")
    check.refresh_from_db()
    assert (check.state, check.error) == ("failed", "The node ran out of memory.")
    again = checked(by, node, leaky)
    assert (again.pk, again.state, again.error) == (check.pk, "succeeded", "")


def test_a_result_that_is_none_is_a_failure(by, node, leaky):
    check = actions.check_data(by, leaky.dataset_id, target="sick")
    node.end(node.claim(), result={"data": {"findings": "many"}, "files": {}})
    check.refresh_from_db()
    assert check.state == "failed"


def test_what_cannot_be_trained_is_not_checked(by, leaky):
    with pytest.raises(Invalid):
        actions.check_data(by, leaky.dataset_id, target="sickness")
    with pytest.raises(NotFound):
        actions.check_data(make.member(), leaky.dataset_id, target="sick")
    assert not DataCheck.objects.exists()


def test_a_start_waits_for_no_check_and_heeds_the_one_there_is(by, node, leaky):
    assert make.job(by, leaky, target="sick").accepted is None
    TrainingJob.objects.all().delete()
    Task.objects.all().delete()
    checked(by, node, leaky)
    with pytest.raises(Conflict) as refused:
        make.job(by, leaky, target="sick")
    assert refused.value.code == "severe-findings"
    assert [one["columns"] for one in refused.value.extra["findings"]] == [["outcome"]]
    assert "accept_findings: true" in refused.value.detail
    assert not TrainingJob.objects.exists()
    # The remedy is taken, or another question asked: nothing stands in the way.
    assert make.job(by, leaky, target="sick", exclude=["outcome"]).accepted is None
    assert make.job(by, leaky, target="cost").accepted is None


def test_an_override_needs_a_reason_and_is_kept_with_who_and_why(by, node, leaky):
    checked(by, node, leaky)
    for reason in ("", "  "):
        with pytest.raises(Invalid) as refused:
            make.job(by, leaky, target="sick", accept_findings=True, reason=reason)
        assert "reason" in refused.value.errors
    job = make.job(by, leaky, target="sick", accept_findings=True, reason="It is known in time.")
    job.refresh_from_db()
    assert (job.accepted["by"], job.accepted["reason"]) == (by.name, "It is known in time.")
    assert [one["columns"] for one in job.accepted["findings"]] == [["outcome"]]
    assert any("in spite of severe findings about 'outcome'" in n["message"] for n in job.notices)
    entry = AuditEntry.objects.get(verb="training.findings-accepted")
    assert entry.object_id == str(job.pk)
    assert entry.changes["reason"] == "It is known in time."
    assert entry.changes["findings"] == ["leak: outcome"]


def test_an_override_that_nothing_needed_leaves_no_trace(by, leaky):
    job = make.job(by, leaky, target="sick", accept_findings=True)
    assert job.accepted is None


def test_older_rules_are_not_believed(by, node, leaky, monkeypatch):
    checked(by, node, leaky)
    monkeypatch.setattr(findings, "RULES", findings.RULES + 1)
    assert make.job(by, leaky, target="sick").accepted is None


def test_a_check_goes_with_its_data_set(by, node, leaky):
    checked(by, node, leaky)
    leaky.dataset.delete()
    assert not DataCheck.objects.exists()


def test_a_check_that_runs_when_its_data_set_goes_ends_unheard(by, node, leaky):
    actions.check_data(by, leaky.dataset_id, target="sick")
    task = node.claim()
    leaky.dataset.delete()
    node.end(task, "failed", error="gone")


def test_there_is_one_check_of_a_kind(by, node, leaky):
    check = checked(by, node, leaky)
    check.pk = None
    check._state.adding = True
    with pytest.raises((IntegrityError, ValidationError)), transaction.atomic():
        check.save()


# Over HTTP


def client(member):
    found = Client()
    found.force_login(member.user)
    return found


def test_programs_ask_watch_and_get_the_answer_at_once_the_second_time(by, node, leaky):
    browser = client(by)
    wish = {"dataset": str(leaky.dataset_id), "target": "sick"}
    answer = browser.post("/api/training/check", wish, content_type=JSON)
    assert answer.status_code == 202
    told = answer.json()
    assert (told["state"], told["findings"], told["topic"]) == (
        "running", [], f"check:{told['id']}",
    )  # fmt: skip
    place = answer.headers["Location"]
    assert browser.get(place).json()["state"] == "running"
    look(node)
    told = browser.get(place).json()
    assert told["state"] == "succeeded"
    severities = [one["severity"] for one in told["findings"]]
    assert severities == sorted(severities, key=["severe", "warning", "info"].index)
    again = browser.post("/api/training/check", wish, content_type=JSON)
    assert again.status_code == 200
    assert again.json()["findings"][0]["remedy"] == {"exclude": ["outcome"]}
    without = wish | {"exclude": ["outcome"]}
    again = browser.post("/api/training/check", without, content_type=JSON)
    assert "severe" not in {one["severity"] for one in again.json()["findings"]}


def test_programs_get_the_findings_as_a_problem_and_send_their_reason(by, node, leaky):
    checked(by, node, leaky)
    browser = client(by)
    wish = {"dataset": str(leaky.dataset_id), "target": "sick"}
    answer = browser.post("/api/training/start", wish, content_type=JSON)
    assert answer.status_code == 409
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["code"], problem["findings"][0]["code"]) == ("severe-findings", "leak")
    wish |= {"accept_findings": True}
    assert browser.post("/api/training/start", wish, content_type=JSON).status_code == 400
    wish |= {"reason": "known at admission"}
    answer = browser.post("/api/training/start", wish, content_type=JSON)
    assert answer.status_code == 202
    job = browser.get(answer.headers["Location"]).json()
    assert job["accepted"]["reason"] == "known at admission"


def test_asking_for_a_check_that_is_there_costs_few_queries(
    by, node, leaky, django_assert_max_num_queries
):
    checked(by, node, leaky)
    browser = client(by)
    wish = {"dataset": str(leaky.dataset_id), "target": "sick"}
    browser.post("/api/training/check", wish, content_type=JSON)
    with django_assert_max_num_queries(9):
        answer = browser.post("/api/training/check", wish, content_type=JSON)
    assert answer.status_code == 200
    with django_assert_max_num_queries(8):
        browser.get(answer.headers["Location"])
