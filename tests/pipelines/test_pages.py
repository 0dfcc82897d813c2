"""The pages of pipelines and runs."""

import json
from typing import Any

import pytest
from django.test import Client

from organizations.models import Membership, Role
from pipelines import drawing, gallery, graph, schedules
from pipelines.models import NAME, Pipeline, Run
from tests.factories import MembershipFactory
from tests.pipelines import make as piping
from tests.pipelines.test_runs import PROMOTE, TRAIN, begun, look, step, trained
from tests.training import make

pytestmark = pytest.mark.django_db


@pytest.fixture
def by() -> Membership:
    return make.member()


@pytest.fixture
def page(by: Membership) -> Any:
    client = Client()
    client.force_login(by.user)

    def ask(path: str, data: dict[str, Any] | None = None, status: int = 200) -> str:
        answer = client.get(path) if data is None else client.post(path, data)
        assert answer.status_code == status, answer.content.decode()[:2000]
        return answer["Location"] if status == 302 else answer.content.decode()

    return ask


@pytest.mark.parametrize("template", gallery.TEMPLATES, ids=lambda one: one.key)
def test_what_the_gallery_has_is_a_pipeline(template: gallery.Template) -> None:
    graph.check(template.definition)
    schedules.check(template.schedule)
    NAME(template.name)


def test_the_list_shows_what_to_begin_with_and_then_what_there_is(page: Any, by: Any) -> None:
    empty = page("/pipelines")
    assert "No pipelines yet" in empty
    assert "/pipelines/new?template=retrain" in empty
    make.version(by)
    run = begun(by, TRAIN, PROMOTE)
    listed = page("/pipelines")
    assert "train → promote" in listed
    assert f"/pipelines/runs/{run.pk}" in listed
    assert "every 3s" in listed, "something runs: it looks again soon"


def test_who_only_looks_is_offered_nothing_else(by: Membership) -> None:
    run = piping.run(by)
    viewer = MembershipFactory(organization=by.organization, role=Role.VIEWER)
    client = Client()
    client.force_login(viewer.user)
    for path in ("/pipelines", run.pipeline.get_absolute_url(), run.get_absolute_url()):
        text = client.get(path).content.decode()
        assert "/pipelines/new" not in text
        assert f'action="/pipelines/{run.pipeline_id}' not in text
        assert f'action="/pipelines/runs/{run.pk}' not in text
    assert client.get("/pipelines/new").status_code == 403


def test_making_and_editing_by_the_form(page: Any) -> None:
    form = page("/pipelines/new?template=retrain")
    assert "nightly retrain" in form
    sent = {
        "name": "nightly",
        "definition": json.dumps({"stages": [TRAIN, PROMOTE]}),
        "when": "cron",
        "cron": "0 3 * * *",
        "time_zone": "Europe/Berlin",
        "overlap": "queue",
    }
    there = page("/pipelines/new", sent, 302)
    made = Pipeline.objects.get()
    assert there == made.get_absolute_url()
    assert made.schedule["time_zone"] == "Europe/Berlin"
    shown = page(there)
    assert "0 3 * * * in Europe/Berlin" in shown
    assert "It has not run yet" in shown
    form = page(f"{there}/edit")
    assert "&quot;after&quot;: []" not in form, "what is as usual is not in the way"
    page(f"{there}/edit", sent | {"name": "weekly", "when": ""}, 302)
    made.refresh_from_db()
    assert (made.name, made.schedule, made.versions.count()) == ("weekly", {}, 1)


def test_what_is_wrong_stands_at_its_field_and_nothing_typed_is_lost(page: Any) -> None:
    sent = {"name": "n", "definition": '{"stages": [\n oops]}', "when": "cron", "cron": "x"}
    told = page("/pipelines/new", sent, 400)
    assert "This is no JSON. Line 2, column 2" in told
    assert "oops" in told
    definition = json.dumps({"stages": [TRAIN | {"params": {"data": "$gone"}}]})
    told = page("/pipelines/new", {"name": "n", "definition": definition}, 400)
    assert "stages[0].params.target" in told
    assert "There is no stage &#x27;gone&#x27;." in told
    told = page("/pipelines/new", sent | {"definition": definition, "time_zone": "Mars"}, 400)
    assert "Give five fields" in told
    assert "Give a time zone" in told


def test_a_run_is_watched_cancelled_and_goes_on(page: Any, by: Any) -> None:
    make.version(by)
    run = begun(by, TRAIN, PROMOTE | {"params": {"model": "$train", "name": "bad name"}})
    shown = page(run.get_absolute_url())
    assert f'data-live="pipeline-run:{run.pk}"' in shown
    assert "train (Train): Running; promote (Promote if better): Waiting" in shown
    assert "Cancel this run?" in shown
    trained(make.Node(), run)
    live = page(f"{run.get_absolute_url()}/live")
    assert "A name is letters" in live
    assert f"/training/{step(run, 'train').output['job']}" in live
    assert "Go on from where it stopped" in live
    only = page(f"{run.get_absolute_url()}/live?step=promote")
    assert "Log of promote" in only
    page(f"{run.get_absolute_url()}/retry", {"step": "train"}, 302)
    look(run)
    assert step(run, "train").state == "running"
    page(f"{run.get_absolute_url()}/cancel", {}, 302)
    run.refresh_from_db()
    assert run.cancel_requested_at is not None
    assert "Cancelling" in page(f"{run.get_absolute_url()}/live")


def test_running_pausing_and_deleting(page: Any, by: Any) -> None:
    home = piping.pipeline(by, piping.TELLS)
    there = page(f"{home.get_absolute_url()}/run", {}, 302)
    run = Run.objects.get()
    assert there == run.get_absolute_url()
    page(f"{home.get_absolute_url()}/delete", {}, 302)
    assert "cancel it first" in page(home.get_absolute_url())
    look(run)
    assert run.state == "failed"
    page(f"{home.get_absolute_url()}/delete", {}, 302)
    assert not Pipeline.objects.exists()


def test_the_drawing_has_a_box_for_each_stage_and_a_line_for_each_wait() -> None:
    stages = graph.check(gallery.TEMPLATES[2].definition)["stages"]
    drawn = drawing.drawn(stages, {"fetch": "succeeded"})
    assert [box["full"] for box in drawn["boxes"]] == [
        "fetch", "train", "promote", "score", "write",
    ]  # fmt: skip
    assert len(drawn["lines"]) == 5
    assert all(0 <= box["y"] <= drawn["height"] - drawn["box_h"] for box in drawn["boxes"])
    assert drawn["boxes"][0]["word"] == "Succeeded"
