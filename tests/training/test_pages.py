"""Pages of trainings and models: what they show, to whom, with how many queries."""

import re
from typing import Any
from uuid import UUID

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from organizations.models import Membership, Role
from tests.training import make
from training import catalog
from training.models import TrainedModel, TrainingJob
from workers.models import Task, Worker

pytestmark = pytest.mark.django_db
HTMX = {"HX-Request": "true"}


def as_(member: Membership) -> Client:
    client = Client()
    client.force_login(member.user)
    return client


@pytest.fixture
def developer() -> Membership:
    return make.member()


@pytest.fixture
def model(developer: Membership) -> TrainedModel:
    return make.scored_model(developer)


def pages_of(model: TrainedModel) -> dict[str, str]:
    job = model.job_id
    return {
        "list": reverse("training:list"),
        "models": reverse("training:models"),
        "job": reverse("training:job", args=[job]),
        "job-live": reverse("training:job-live", args=[job]),
        "leaderboard": reverse("training:leaderboard", args=[job]),
        "job-log": reverse("training:job-log", args=[job]),
        "model": reverse("training:model", args=[model.pk]),
        "try": reverse("training:model", args=[model.pk]) + "?tab=try",
        "use": reverse("training:model", args=[model.pk]) + "?tab=use",
        "details": reverse("training:model", args=[model.pk]) + "?tab=details",
        "download": reverse("training:download", args=[model.pk]),
    }


def acts_on(model: TrainedModel) -> dict[str, str]:
    return {
        "cancel": reverse("training:cancel", args=[model.job_id]),
        "stop": reverse("training:stop", args=[model.job_id]),
        "predict": reverse("training:predict", args=[model.pk]),
        "predict-file": reverse("training:predict-file", args=[model.pk]),
    }


def test_members_see_every_page(model: TrainedModel) -> None:
    viewer = make.member(Role.VIEWER, organization=model.organization)
    for name, url in pages_of(model).items():
        assert as_(viewer).get(url).status_code == 200, name


def test_anonymous_people_are_sent_to_the_sign_in_page(model: TrainedModel) -> None:
    for url in pages_of(model).values():
        response = Client().get(url)
        assert response.status_code == 302
        assert response["Location"].startswith(reverse("accounts:sign-in") + "?next=")
    for url in acts_on(model).values():
        assert Client().post(url)["Location"].startswith(reverse("accounts:sign-in"))


def test_another_organizations_rows_are_not_there(model: TrainedModel) -> None:
    stranger = as_(make.member(Role.ADMIN))
    of_no_one = {"list", "models"}
    for name, url in pages_of(model).items():
        assert stranger.get(url).status_code == (200 if name in of_no_one else 404), name
    for name, url in acts_on(model).items():
        assert stranger.post(url).status_code == 404, name
    assert "kind" not in stranger.get(reverse("training:list")).content.decode()
    version = model.job.dataset_version
    assert version is not None
    start = {"dataset": str(version.dataset_id), "target": "kind"}
    assert stranger.get(reverse("training:new"), start).status_code == 404
    assert stranger.post(reverse("training:new"), start).status_code == 404
    assert stranger.get(reverse("training:finding"), start).status_code == 404


def test_a_viewer_may_not_act(model: TrainedModel) -> None:
    viewer = as_(make.member(Role.VIEWER, organization=model.organization))
    for name, url in acts_on(model).items():
        assert viewer.post(url).status_code == 403, name
    assert viewer.get(reverse("training:new")).status_code == 403
    page = viewer.get(reverse("training:job", args=[model.job_id])).content.decode()
    assert "Train again" not in page


@pytest.mark.parametrize("name", ["list", "models"])
def test_a_longer_list_takes_no_more_queries(
    developer: Membership, name: str, django_assert_num_queries: Any
) -> None:
    version = make.version(developer)
    for _ in range(2):
        make.job(developer, version)
    client = as_(developer)
    # Session, user, membership, count, rows. The list of models is empty: it needs no rows.
    for more in (0, 4):
        for _ in range(more):
            make.job(developer, version)
        with django_assert_num_queries(5 if name == "list" else 4):
            assert client.get(reverse(f"training:{name}")).status_code == 200


def test_a_longer_leaderboard_takes_no_more_queries(
    developer: Membership, django_assert_num_queries: Any
) -> None:
    job, node = make.job(developer), make.Node()
    task = node.claim()
    client = as_(developer)
    url = reverse("training:leaderboard", args=[job.pk])
    for i in range(4):
        node.candidate(task, f"pycaret:tree{i}")
        with django_assert_num_queries(5):
            client.get(url)
        with django_assert_num_queries(6):
            client.get(reverse("training:job-live", args=[job.pk]))


def test_what_the_list_adds_to_a_training_is_worked_out_for_its_own_page_alone(
    developer: Membership, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ten thousand trainings, the last page took half a second otherwise."""
    monkeypatch.setattr("training.views.jobs.PER_PAGE", 2)
    first = make.job(developer)
    for _ in range(4):
        make.job(developer, first.dataset_version)
    newest = list(TrainingJob.objects.order_by("-created_at").values_list("pk", flat=True))
    with CaptureQueriesContext(connection) as queries:
        shown = as_(developer).get("/training?page=3").content.decode()
    assert [pk for pk in newest if str(pk) in shown] == [first.pk]
    (rows,) = (one["sql"] for one in queries if "OFFSET 4" in one["sql"])
    skipped = rows[rows.rindex("IN (SELECT") :]
    assert "OFFSET 4" in skipped
    assert "workers_task" not in skipped


def test_the_list_filters_by_state(developer: Membership, model: TrainedModel) -> None:
    make.job(developer, name="waits")
    client, url = as_(developer), reverse("training:list")
    shown = {
        state: client.get(url, {"state": state}).content.decode().count('class="row-link"')
        for state in ("", "active", "succeeded", "failed", "nonsense")
    }
    assert shown == {"": 2, "active": 1, "succeeded": 1, "failed": 0, "nonsense": 2}


def test_lists_are_sorted_and_filtered_by_their_address(
    developer: Membership, model: TrainedModel, django_assert_num_queries: Any
) -> None:
    colleague = make.member(Role.DEVELOPER, organization=developer.organization)
    second = make.scored_model(colleague)
    TrainingJob.objects.filter(pk=second.job_id).update(target="weight_g")
    client, who = as_(developer), colleague.user.username

    def shown(list_: str, **query: str) -> list[str]:
        with django_assert_num_queries(5):  # session, user, membership, count, rows
            page = client.get(reverse(f"training:{list_}"), query).content.decode()
        return re.findall(r'href="/training/[0-9a-f-]{36}"[^>]*>([^<]+)<', page)

    for list_ in ("list", "models"):
        assert shown(list_) == ["weight_g", "kind"]
        assert shown(list_, sort="predicts") == ["kind", "weight_g"]
        assert shown(list_, sort="-owner", owner=who) == ["weight_g"]
        assert client.get(reverse(f"training:{list_}"), {"owner": "nobody"}).status_code == 200


# --- New training --------------------------------------------------------------------------------


def test_new_without_a_data_set_offers_those_that_are_ready(developer: Membership) -> None:
    version = make.version(developer)
    page = as_(developer).get(reverse("training:new")).content.decode()
    assert f"dataset={version.dataset_id}" in page


def test_the_target_is_explained_before_anything_starts(developer: Membership) -> None:
    version = make.version(developer)
    client, url = as_(developer), reverse("training:finding")
    start = {"dataset": str(version.dataset_id), "version": str(version.pk)}
    kind = client.get(url, start | {"target": "kind"}).content.decode()
    assert "Multiclass classification" in kind
    assert "Log loss, lower is better" in kind
    weight = client.get(url, start | {"target": "weight_g"}).content.decode()
    assert "Regression" in weight
    assert "RMSE" in weight
    assert client.get(url, start | {"target": "nothing"}).content.strip() == b""


def test_starting_leads_to_the_job(developer: Membership) -> None:
    version = make.version(developer)
    form = {
        "dataset": str(version.dataset_id),
        "version": str(version.pk),
        "target": "kind",
        "preset": "own",
        "minutes": "0.5",
        "metric": "accuracy",
        "exclude": ["colour", "kind"],
        "engines": ["pycaret"],
        "task_type": "auto",
    }
    response = as_(developer).post(reverse("training:new"), form)
    job = TrainingJob.objects.get()
    assert response.status_code == 302
    assert response["Location"] == reverse("training:job", args=[job.pk])
    assert (job.metric, job.budget_s) == ("accuracy", 30.0)
    assert [column["name"] for column in job.columns] == ["petal_cm", "weight_g"]


def test_a_refused_form_keeps_what_was_entered_and_says_why_by_field(
    developer: Membership,
) -> None:
    version = make.version(developer)
    form = {
        "dataset": str(version.dataset_id),
        "target": "kind",
        "preset": "own",
        "minutes": "many",
        "metric": "rmse",
        "task_type": "classification",
        "exclude": ["colour"],
    }
    response = as_(developer).post(reverse("training:new"), form)
    page = response.content.decode()
    assert response.status_code == 422
    assert not TrainingJob.objects.exists()
    assert 'value="many"' in page
    assert re.search(r'value="colour" checked', page)
    assert re.search(r'<option value="kind" selected', page)
    assert re.search(r'id="budget-errors">.*?at least 5', page, re.DOTALL)
    assert re.search(r'id="metric-errors">.*?does not fit', page, re.DOTALL)


def test_training_again_starts_from_what_was_asked_before(
    developer: Membership,
) -> None:
    job = make.job(developer, time_budget=45.0, exclude=["colour"], metric="f1")
    page = as_(developer).get(reverse("training:new"), {"again": str(job.pk)}).content.decode()
    assert re.search(r'<option value="kind" selected', page)
    assert re.search(r'value="colour" checked', page)
    assert re.search(r'<option value="f1" selected', page)
    assert 'value="0.75"' in page


@pytest.mark.parametrize("bad", ["dataset=nonsense", f"dataset={UUID(int=7)}", "again=7"])
def test_a_broken_address_is_not_there(developer: Membership, bad: str) -> None:
    assert as_(developer).get(f"{reverse('training:new')}?{bad}").status_code == 404


# --- A job ---------------------------------------------------------------------------------------


def test_a_job_page_listens_from_the_last_event(developer: Membership) -> None:
    job = make.job(developer)
    page = as_(developer).get(reverse("training:job", args=[job.pk])).content.decode()
    stream = Task.objects.get(subject=job.pk).stream
    assert f'data-live="job:{job.pk}" data-after="{stream.last_seq}"' in page


def test_a_fragment_of_a_job_that_has_ended_starts_the_page_anew(model: TrainedModel) -> None:
    viewer = as_(make.member(Role.VIEWER, organization=model.organization))
    url = reverse("training:job-live", args=[model.job_id])
    assert viewer.get(url, headers=HTMX)["HX-Refresh"] == "true"


def test_a_job_with_no_node_says_what_it_waits_for(developer: Membership) -> None:
    job = make.job(developer)
    old = Task.objects.get(subject=job.pk)
    Task.objects.update(queued_at=old.queued_at.replace(year=2020))
    page = as_(developer).get(reverse("training:job-live", args=[job.pk])).content.decode()
    assert "no node is connected" in page


def test_of_several_engines_the_one_that_waits_is_named(
    developer: Membership, engines: None
) -> None:
    job, node = make.job(developer, engines=["pycaret", "other"]), make.Node()
    assert node.claim().engine == "pycaret"
    Task.objects.update(queued_at="2026-01-01T00:00Z")
    page = as_(developer).get(reverse("training:job-live", args=[job.pk])).content.decode()
    assert "Other engine: Waits for a node with the engine other" in page


def test_the_form_says_which_engines_no_node_has(developer: Membership, engines: None) -> None:
    version = make.version(developer)
    make.Node()
    page = (
        as_(developer)
        .get(reverse("training:new"), {"dataset": str(version.dataset_id)})
        .content.decode()
    )
    assert re.search(r"Other engine <span[^>]*>no node has it now", page)
    assert not re.search(r"PyCaret <span[^>]*>no node has it now", page)


def test_cancel_ends_a_waiting_job_and_says_so(developer: Membership) -> None:
    job = make.job(developer)
    response = as_(developer).post(reverse("training:cancel", args=[job.pk]), follow=True)
    assert "is being cancelled" in response.content.decode()
    assert Task.objects.get(subject=job.pk).state == Task.State.CANCELLED


def test_stopping_an_ended_job_tells_why_not(developer: Membership, model: TrainedModel) -> None:
    response = as_(developer).post(reverse("training:stop", args=[model.job_id]), follow=True)
    assert response.status_code == 200
    assert "has ended already" in response.content.decode()


def test_an_unscorable_model_stands_last_with_its_reason(developer: Membership) -> None:
    job, node = make.job(developer), make.Node()
    task = node.claim()
    node.candidate(task, "pycaret:broken", change=lambda table: table.head(3))
    node.candidate(task, "pycaret:good")
    page = as_(developer).get(reverse("training:leaderboard", args=[job.pk])).content.decode()
    assert page.index("Good") < page.index("Broken") < page.index("Predictions are missing")
    assert page.count("?tab=try") == 1


@pytest.mark.parametrize("test", [0.2, 0])
def test_a_refit_stands_below_its_origin_with_both_sealed_figures(
    developer: Membership, test: float
) -> None:
    version = make.version(developer, make.flowers(400))
    split = {"validation": 0.25, "test": test}
    job, node = make.job(developer, version, refit=True, split=split), make.Node()
    task = node.claim()
    node.candidate(task, "pycaret:good", skill=0.6)
    node.end(task)
    client = as_(developer)
    page = client.get(reverse("training:job", args=[job.pk])).content.decode()
    assert "the winner again" in page
    twin = node.refit(node.claim())
    assert twin is not None
    for name, url in pages_of(twin).items():
        assert client.get(url).status_code == 200, name
    page = client.get(reverse("training:leaderboard", args=[job.pk])).content.decode()
    assert page.count("?tab=try") == 2
    assert page.index("Good</a>") < page.index("Good, refitted</a>")
    measured = "before it was" in page
    best = page[page.index('class="is-best"') :][:200]
    assert (measured, "refitted" in best) == (bool(test), bool(test))
    page = client.get(reverse("training:model", args=[twin.pk])).content.decode()
    assert "refit of Good" in page
    assert ("both are measured on 79 sealed rows" in page) is bool(test)
    assert ("no sealed ones are left" in page) is not bool(test)


def test_the_form_asks_for_a_refit_and_remembers_it(developer: Membership) -> None:
    version = make.version(developer)
    client, url = as_(developer), reverse("training:new")
    form = {"dataset": str(version.dataset_id), "target": "kind", "preset": "quick"}
    client.post(url, form)
    client.post(url, form | {"refit": "1"})
    client.post(url, form | {"preset": "best", "refit": "0"})
    best, asked, plain = TrainingJob.objects.all()
    assert (plain.refit, asked.refit, best.refit) == (False, True, False)
    assert (best.preset, best.budget_s) == ("best", 1800)
    page = client.get(url, {"again": str(asked.pk)}).content.decode()
    assert re.search(r'name="refit".*?value="1" selected', page)
    assert re.search(r'name="preset" value="quick" checked', page)


def test_engines_and_how_the_time_is_shared_can_be_chosen(
    developer: Membership, engines: None
) -> None:
    version = make.version(developer)
    client, url = as_(developer), reverse("training:new")
    form = {"dataset": str(version.dataset_id), "target": "kind", "preset": "quick"}
    client.post(url, form | {"engines": ["pycaret", "other"], "budget_mode": "per_engine"})
    job = TrainingJob.objects.get()
    assert job.budgets == {"pycaret": 60.0, "other": 60.0}
    page = client.get(url, {"again": str(job.pk)}).content.decode()
    assert re.search(r'value="other" checked', page)
    assert re.search(r'value="per_engine" selected', page)
    assert re.search(r"<details[^>]* open", page), "what was chosen shows"
    page = client.get(reverse("training:job", args=[job.pk])).content.decode()
    assert "up to 1 min for each of 2 engines" in page
    client.post(url, form | {"engines": ["all"], "ensemble": "0"})
    every = TrainingJob.objects.first()
    assert every is not None
    assert {"pycaret", "other"} <= set(every.engines)
    assert every.ensemble is False
    page = client.get(url, {"again": str(every.pk)}).content.decode()
    assert re.search(r'value="all" checked', page)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation with a second engine."""
    info = catalog.EngineInfo("other", "Other engine", ("multiclass",))
    both = {**catalog.engines(), "other": info}
    monkeypatch.setattr(catalog, "engines", lambda: both)


@pytest.fixture
def race(developer: Membership, engines: None) -> TrainingJob:
    """Two engines whose models were blended."""
    version = make.version(developer, make.flowers(400))
    split = {"validation": 0.4, "test": 0.3}
    job = make.job(developer, version, engines=["pycaret", "other"], ensemble=True, split=split)
    node = make.Node()
    Worker.objects.update(queues=["pycaret.cpu", "other.cpu"])
    node.worker.refresh_from_db()
    for task in sorted((node.claim(), node.claim()), key=lambda task: task.engine):
        node.candidate(task, f"{task.engine}:tree", skill=0.8)
        node.end(task)
    job.refresh_from_db()
    return job


def test_one_leaderboard_shows_all_engines_and_can_be_narrowed_to_one(
    developer: Membership, race: TrainingJob
) -> None:
    client, url = as_(developer), reverse("training:leaderboard", args=[race.pk])
    page = client.get(url).content.decode()
    assert page.count("data-row=") == 3
    assert re.findall(r'<span class="tag">(\w+)</span>', page)[0] == "ensemble"
    narrowed = client.get(url, {"engine": "other"}).content.decode()
    assert narrowed.count("data-row=") == 1
    assert re.search(r'<span class="rank">[23]</span>', narrowed), "its place among all"
    whole = client.get(
        reverse("training:job", args=[race.pk]), {"engine": "other"}
    ).content.decode()
    assert f"{url}?engine=other" in whole, "what comes live is narrowed, too"
    assert whole.count("data-row=") == 1
    nothing = client.get(url, {"engine": "nonsense"})
    assert "No model of this engine" in nothing.content.decode()


def test_each_engine_has_a_lane_with_its_models_and_its_time(
    developer: Membership, race: TrainingJob
) -> None:
    page = as_(developer).get(reverse("training:job-live", args=[race.pk])).content.decode()
    assert page.count('class="lane"') == 2
    assert "Other engine" in page
    assert page.count("1 model, best 0.") == 2
    assert page.count("2 min 30 s") == 2, "of the usual five minutes in all"


def test_an_ensemble_has_every_page_that_a_model_has(
    developer: Membership, race: TrainingJob
) -> None:
    model = race.best_model
    assert model is not None
    assert model.is_ensemble
    client = as_(developer)
    shown = {name: client.get(url).content.decode() for name, url in pages_of(model).items()
             if name != "download"}  # fmt: skip
    assert "chosen without it" in shown["model"]
    assert 'data-chart="roc"' in shown["model"]
    assert "Blends 2 models" in shown["details"]
    assert reverse("training:model", args=[model.parts()[0].model_id]) in shown["details"]
    assert client.get(pages_of(model)["download"]).status_code == 200


# --- A model -------------------------------------------------------------------------------------


def test_a_model_says_how_good_it_is_in_words(developer: Membership, model: TrainedModel) -> None:
    page = as_(developer).get(reverse("training:model", args=[model.pk])).content.decode()
    assert re.search(r"right for \d+ of 1?,?0?0?0? ?unseen rows|right for \d+ of 100 unseen", page)
    assert "kept sealed until the end" in page
    assert 'data-chart="roc"' in page
    assert "Right and wrong, by class" in page


def test_the_form_is_made_from_the_schema(developer: Membership, model: TrainedModel) -> None:
    url = reverse("training:model", args=[model.pk]) + "?tab=try"
    page = as_(developer).get(url).content.decode()
    labels = re.findall(r'<label class="form-label" for="field-\d+">(.*?)</label>', page)
    assert labels == ["petal_cm", "colour", "weight_g"]
    assert re.search(r'<select[^>]*name="column-1".*?<option selected>', page, re.DOTALL)


def test_a_prediction_shows_probabilities_likeliest_first(
    developer: Membership, serving_node: make.FakeServing
) -> None:
    model = make.scored_model(developer)
    Worker.objects.update(address=serving_node.address)
    serving_node.answer = {
        "predictions": ["kind 1"],
        "probabilities": [[0.2, 0.7, 0.1]],
        "classes": ["kind 0", "kind 1", "kind 2"],
        "ms": {"model": 2.0},
    }
    url = reverse("training:predict", args=[model.pk])
    row = {"column-0": "1.5", "column-1": "red", "column-2": ""}
    fragment = as_(developer).post(url, row, headers=HTMX).content.decode()
    assert serving_node.asked[-1]["rows"] == [[1.5, "red", None]]
    assert "<html" not in fragment
    assert re.findall(r'<dt title="(.*?)"', fragment) == ["kind 1", "kind 0", "kind 2"]
    assert "70%" in fragment
    page = as_(developer).post(url, row).content.decode()
    assert "<html" in page
    assert 'value="1.5"' in page  # what was entered is still there
    assert "70%" in page


def test_a_value_that_does_not_fit_is_told_at_its_field(
    developer: Membership, model: TrainedModel
) -> None:
    url = reverse("training:predict", args=[model.pk])
    response = as_(developer).post(url, {"column-0": "long", "column-1": "red"})
    page = response.content.decode()
    assert response.status_code == 422
    assert re.search(r'id="field-0-errors">.*?takes a number', page, re.DOTALL)
    assert 'value="long"' in page


def test_without_a_node_the_answer_says_what_to_do(
    developer: Membership, model: TrainedModel
) -> None:
    url = reverse("training:predict", args=[model.pk])
    fragment = as_(developer).post(url, {"column-0": "1"}, headers=HTMX).content.decode()
    assert "No node" in fragment


def test_code_snippets_name_the_real_address(
    developer: Membership, model: TrainedModel, settings: Any
) -> None:
    settings.PUBLIC_URL = "https://ml.example.org"
    url = reverse("training:model", args=[model.pk]) + "?tab=use"
    page = as_(developer).get(url).content.decode()
    assert f"https://ml.example.org/api/results/model/{model.pk}/predict" in page


def test_a_file_that_is_no_table_is_refused_in_place(
    developer: Membership, model: TrainedModel
) -> None:
    from django.core.files.uploadedfile import SimpleUploadedFile

    url = reverse("training:predict-file", args=[model.pk])
    client = as_(developer)
    refused = client.post(url, {"file": SimpleUploadedFile("rows.txt", b"x")})
    assert refused.status_code == 422
    assert "neither CSV nor Parquet" in refused.content.decode()
    assert "Choose a file first" in client.post(url).content.decode()
    taken = client.post(url, {"file": SimpleUploadedFile("rows.csv", b"petal_cm\n1\n")})
    assert taken.status_code == 302
    page = client.get(taken["Location"])
    assert page.status_code == 200
    stranger = as_(make.member(Role.ADMIN))
    assert stranger.get(taken["Location"]).status_code == 404


def test_other_values_of_a_column_are_tried_with_the_row_of_the_form(
    developer: Membership, serving_node: make.FakeServing
) -> None:
    table = make.flowers()
    version = make.version(developer, table)
    for column in version.columns:
        if column["name"] == "petal_cm":
            column["max"] = float(table["petal_cm"].max())  # type: ignore[arg-type]
    version.save()
    model = make.scored_model(developer, of=version)
    Worker.objects.update(address=serving_node.address)
    url = reverse("training:sensitivity", args=[model.pk])
    form = {"column-0": "2.5", "column-1": "blue", "column-2": "50", "of": "kind 1"}

    def tell(rows: int) -> None:
        classes = ["kind 0", "kind 1", "kind 2"]
        shares = [[0.5 - i / 100, 0.1 + i / 100, 0.4] for i in range(rows)]
        serving_node.answer = {
            "predictions": ["kind 0"] * rows, "probabilities": shares, "classes": classes,
        }  # fmt: skip

    tell(25)
    page = as_(developer).post(url, form | {"column": "0"}, headers=HTMX).content.decode()
    asked = serving_node.asked[-1]["rows"]
    assert len(asked) == 25, "24 even steps, and what the form has"
    assert 2.5 in [row[0] for row in asked]
    assert {tuple(row[1:]) for row in asked} == {("blue", 50.0)}
    assert "Probability of kind 1" in page
    assert "&quot;mark&quot;: 2.5" in page
    assert '<option value="0" selected>petal_cm</option>' in page
    tell(3)
    page = as_(developer).post(url, form | {"column": "1"}, headers=HTMX).content.decode()
    assert {row[1] for row in serving_node.asked[-1]["rows"]} == {"red", "blue", "white"}
    assert "&quot;categories&quot;" in page
    wrong = as_(developer).post(url, form | {"column": "1", "column-0": "much"}, headers=HTMX)
    assert wrong.status_code == 200
    assert "data-chart" not in wrong.content.decode()
