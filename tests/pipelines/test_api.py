"""What programs say of pipelines and runs, and what is refused at once, with the reason."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django_celery_beat.models import PeriodicTask

from organizations.models import AuditEntry, Membership, Role
from pipelines import kinds, schedules, tasks
from pipelines.models import Pipeline, Run
from tests.factories import MembershipFactory, bearer
from tests.pipelines import make as piping
from tests.pipelines.test_runs import PROMOTE, TRAIN
from tests.training import make

pytestmark = pytest.mark.django_db
CHAIN = {"stages": [TRAIN, PROMOTE]}


class Api:
    def __init__(self, member: Any) -> None:
        self.client = Client(headers=bearer(member.user))

    def __call__(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        more = {} if body is None else {"data": body, "content_type": "application/json"}
        answer = getattr(self.client, method)(f"/api/{path}", **more)
        assert answer.status_code == status, answer.content
        return answer.json() if answer.content else None


@pytest.fixture
def by() -> Membership:
    return make.member()


@pytest.fixture
def api(by: Membership) -> Api:
    return Api(by)


def test_make_it_run_it_watch_it_and_let_it_go(api: Api, by: Membership) -> None:
    make.version(by)
    made = api("post", "pipelines/", {"name": "nightly", "definition": CHAIN}, 201)
    assert (made["version"], made["stages"]) == (1, ["train", "promote"])
    runs = f"pipelines/{made['id']}/runs"
    run = api("post", runs, {}, 202)
    assert (run["state"], run["number"], run["topic"]) == (
        "running", 1, f"pipeline-run:{run['id']}",
    )  # fmt: skip
    tasks.sweep()
    one = f"{runs}/{run['id']}"
    make.Task.objects.update(queued_at="2020-01-01T00:00:00Z")
    waiting = api("get", one)
    assert "Waits for a node" in waiting["waits"]
    steps = waiting["steps"]
    assert [step["state"] for step in steps] == ["running", "pending"]
    assert steps[1]["after"] == ["train"]
    assert api("get", "pipelines")["results"][0]["last_run"]["state"] == "running"
    refusal = api("delete", f"pipelines/{made['id']}", status=409)
    assert refusal["code"] == "pipeline-runs"
    api("post", f"{one}/retry", {}, 409)
    api("post", f"{one}/cancel", status=202)
    tasks.sweep()
    node = make.Node()
    node.react(make.Task.objects.get(kind="training.train"))
    tasks.sweep()
    assert api("get", one)["state"] == "cancelled"
    lines = api("get", f"{one}/logs")["results"]
    assert lines[0]["message"] == "Begins."
    assert [one["step"] for one in lines if one["message"] == "Does not run."] == ["promote"]
    assert lines[-1] | {"at": ""} == {
        "seq": len(lines), "at": "", "step": "", "level": "warning", "message": "Cancelled.",
    }  # fmt: skip
    file = api.client.get(f"/api/{one}/log.txt")
    text = file.content.decode()
    assert "run-1.log" in file["Content-Disposition"]
    assert len(text.splitlines()) == len(lines)
    assert "WARNING promote      Does not run." in text
    mine = api("get", f"{one}/logs?step=train&after=1")["results"]
    assert {line["step"] for line in mine} == {"train"}
    assert api("post", f"{one}/retry", {"step": "train"}, 202)["state"] == "running"
    api("post", f"{one}/cancel", status=202)
    tasks.sweep()
    make.Node().react(make.Task.objects.filter(kind="training.train").latest("queued_at"))
    tasks.sweep()
    api("delete", f"pipelines/{made['id']}", status=204)
    assert not Run.objects.exists()
    verbs = set(AuditEntry.objects.values_list("verb", flat=True))
    told = {"pipeline.made", "pipeline-run.started", "pipeline-run.cancelled", "pipeline.deleted"}
    assert told <= verbs


def test_what_is_wrong_is_told_by_field(api: Api) -> None:
    definition = {"stages": [TRAIN | {"params": {"data": "$gone"}}, PROMOTE]}
    body = {"name": "bad", "definition": definition, "schedule": {"cron": "x", "time_zone": "Mars"}}
    errors = api("post", "pipelines", body, 400)["errors"]
    assert set(errors) == {"schedule.cron", "schedule.time_zone"}
    errors = api("post", "pipelines", {"name": "bad", "definition": definition}, 400)["errors"]
    assert set(errors) == {"stages[0].params.data", "stages[0].params.target"}
    fetch = {"connection": "none", "sql": "SELECT 1", "dataset": "x"}
    definition = {"stages": [{"key": "a", "stage": "sql", "params": fetch}]}
    errors = api("post", "pipelines", {"name": "bad", "definition": definition}, 400)["errors"]
    assert errors == {"stages[0].params.connection": ["There is no connection 'none'."]}
    assert not Pipeline.objects.exists()


@pytest.mark.parametrize(
    ("stage", "params", "fit", "unfit"),
    [
        ("sql", {"sql": "SELECT 1", "dataset": "x"}, "duckdb postgres hive", "ssh webhook"),
        ("write_back", {"data": "x", "table": "t"}, "duckdb postgres hive", "s3 local"),
        ("upload", {"data": "x", "path": "p"}, "ssh s3 hdfs local", "postgres webhook"),
        ("download", {"dataset": "x", "path": "p"}, "ssh s3 hdfs local", "duckdb hive"),
        ("remote", {"command": "true"}, "ssh local", "s3 hdfs postgres"),
    ],
)
def test_a_connection_of_the_wrong_kind_is_refused_before_anything_runs(
    api: Api, by: Membership, stage: str, params: dict[str, Any], fit: str, unfit: str
) -> None:
    def definition(kind: str) -> dict[str, Any]:
        return {"stages": [
            {"key": "a", "stage": stage, "params": params | {"connection": f"my {kind}"}}
        ]}  # fmt: skip

    for kind in (*fit.split(), *unfit.split()):
        piping.connection(by, f"my {kind}", kind=kind)
    first = definition(fit.split(maxsplit=1)[0])
    made = api("post", "pipelines", {"name": "p", "definition": first}, 201)
    for kind in fit.split():
        api("patch", f"pipelines/{made['id']}", {"definition": definition(kind)})
    for kind in unfit.split():
        body = {"definition": definition(kind)}
        errors = api("patch", f"pipelines/{made['id']}", body, 400)["errors"]
        (said,) = errors["stages[0].params.connection"]
        assert f"'my {kind}' is of the kind {kinds.KINDS[kind].title}." in said
        assert all(kinds.KINDS[one].title in said for one in fit.split())
        assert ", ".join(sorted(f"my {one}" for one in fit.split())) in said, "which to take"


def test_roles_and_organizations_are_kept_apart(api: Api, by: Membership) -> None:
    made = api("post", "pipelines", {"name": "nightly", "definition": CHAIN}, 201)
    viewer = Api(MembershipFactory(organization=by.organization, role=Role.VIEWER))
    viewer("get", f"pipelines/{made['id']}")
    viewer("post", f"pipelines/{made['id']}/runs", {}, 403)
    viewer("patch", f"pipelines/{made['id']}", {"name": "x"}, 403)
    stranger = Api(make.member())
    stranger("get", f"pipelines/{made['id']}", status=404)
    stranger("get", f"pipelines/{made['id']}/runs", status=404)
    stranger("post", f"pipelines/{made['id']}/runs", {}, 404)
    assert stranger("get", "pipelines")["count"] == 0


def test_a_run_is_asked_for_at_its_own_pipeline(api: Api) -> None:
    first = api("post", "pipelines", {"name": "first", "definition": CHAIN}, 201)
    other = api("post", "pipelines", {"name": "other", "definition": CHAIN}, 201)
    run = api("post", f"pipelines/{first['id']}/runs", {}, 202)
    api("get", f"pipelines/{other['id']}/runs/{run['id']}", status=404)


def test_a_longer_list_asks_no_more_questions(api: Api) -> None:
    def more(n: int) -> None:
        for number in range(n):
            body = {"name": f"p{number} of {n}", "definition": CHAIN, "schedule": {"every_s": 60}}
            made = api("post", "pipelines", body, 201)
            api("post", f"pipelines/{made['id']}/runs", {}, 202)

    more(1)
    api("get", "pipelines")
    with CaptureQueriesContext(connection) as few:
        api("get", "pipelines")
    more(4)
    with CaptureQueriesContext(connection) as many:
        api("get", "pipelines")
    assert len(many) == len(few)


# --- Schedules -----------------------------------------------------------------------------------


def test_a_schedule_is_what_beat_knows(api: Api, by: Membership) -> None:
    make.version(by)
    cron = {"cron": "30  3 * * 1-5", "time_zone": "Europe/Berlin"}
    made = api("post", "pipelines", {"name": "n", "definition": CHAIN, "schedule": cron}, 201)
    assert made["schedule"] == {
        "cron": "30 3 * * 1-5", "time_zone": "Europe/Berlin", "overlap": "skip",
    }  # fmt: skip
    beat = PeriodicTask.objects.get(task="pipelines.tasks.scheduled")
    assert (beat.crontab.hour, str(beat.crontab.timezone)) == ("3", "Europe/Berlin")
    assert (json.loads(beat.args), beat.enabled, beat.queue) == ([made["id"]], True, "control")
    at = datetime.fromisoformat(made["next_run_at"])
    assert (at.astimezone(UTC).minute, at.astimezone(UTC).hour in {1, 2}) == (30, True)

    tasks.scheduled(made["id"])
    tasks.scheduled(made["id"])
    runs = api("get", f"pipelines/{made['id']}/runs")["results"]
    assert [(run["state"], run["trigger"]) for run in runs] == [
        ("skipped", "schedule"), ("running", "schedule"),
    ]  # fmt: skip
    api("patch", f"pipelines/{made['id']}", {"is_enabled": False})
    beat.refresh_from_db()
    assert beat.enabled is False
    tasks.scheduled(made["id"])
    assert Run.objects.count() == 2
    told = api("patch", f"pipelines/{made['id']}", {"schedule": {"every_s": 7200}})
    assert told["next_run_at"] is None
    told = api("patch", f"pipelines/{made['id']}", {"is_enabled": True})
    assert told["next_run_at"] is not None
    beat.refresh_from_db()
    assert (beat.interval.every, beat.crontab) == (7200, None)
    assert schedules.in_words(told["schedule"]) == "every 2 h"
    api("patch", f"pipelines/{made['id']}", {"schedule": None})
    assert not PeriodicTask.objects.filter(task="pipelines.tasks.scheduled").exists()


@pytest.mark.parametrize(
    "schedule",
    [
        {"cron": "61 3 * * *"},
        {"cron": "0 3 * *"},
        {"every_s": 1},
        {"every_s": 60, "cron": "0 3 * * *"},
        {"time_zone": "UTC"},
        {"every_s": 60, "overlap": "fight"},
        {"every_s": 60, "days": 3},
        [1],
    ],
)
def test_a_schedule_that_can_not_be_is_refused(api: Api, schedule: Any) -> None:
    body = {"name": "n", "definition": CHAIN, "schedule": schedule}
    errors = api("post", "pipelines", body, 400)["errors"]
    assert all(field.startswith("schedule") for field in errors)
