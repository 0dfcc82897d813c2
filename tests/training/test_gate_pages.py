"""The New training page: what the data says, and the buttons that heed it."""

import html
import json
import re

import pytest
from django.test import Client
from django.urls import reverse

from tests.training import make, real
from tests.training.test_findings import look
from tests.training.test_gate import visits
from training.models import DataCheck, TrainingJob

pytestmark = pytest.mark.django_db


@pytest.fixture
def by():
    return make.member()


@pytest.fixture
def browser(by):
    client = Client()
    client.force_login(by.user)
    return client


@pytest.fixture
def form(by):
    """What the form holds when the target was chosen."""
    table = visits().with_columns(outcome=visits()["sick"].cast(int) * 2)
    version = real.version(by, table)
    return {
        "dataset": str(version.dataset_id),
        "version": str(version.pk),
        "target": "sick",
        "time_budget": "60",
        "task_type": "auto",
    }


def gate(browser, form):
    return browser.post(reverse("training:new-check"), form).content.decode()


def remedies(page):
    """The buttons' values by their words."""
    found = re.findall(r'name="remedy" value="([^"]*)"[^>]*>([^<]*)<', page)
    return {html.unescape(words): html.unescape(value) for value, words in found}


def test_the_page_asks_as_soon_as_it_has_a_target(browser, form):
    page = browser.get(reverse("training:new"), {"dataset": form["dataset"]}).content.decode()
    assert re.search(r'id="gate"[^>]*hx-post="/training/new/check"[^>]*load', page)
    assert gate(browser, {**form, "target": ""}).strip() == ""
    assert not DataCheck.objects.exists()


def test_a_check_is_watched_until_it_is_done_and_never_asked_for_twice(browser, form):
    page = gate(browser, form)
    check = DataCheck.objects.get()
    assert "Looking at the data" in page
    assert f'data-live="check:{check.pk}"' in page
    watch = reverse("training:check", args=[check.pk])
    assert f'hx-get="{watch}"' in page
    node = make.Node()
    look(node)
    done = browser.get(watch).content.decode()
    assert "alone predicts" in done
    assert "data-live" not in done
    assert gate(browser, form) == done
    without = browser.get(watch, {"exclude": "outcome"}).content.decode()
    assert "alone predicts" not in without
    assert "Start in spite" not in without


def test_a_check_that_failed_says_so_and_is_not_asked_for_again_by_watching(browser, form):
    gate(browser, form)
    node = make.Node()
    node.end(node.claim(), "failed", error="The node ran out of memory.")
    watch = reverse("training:check", args=[DataCheck.objects.get().pk])
    page = browser.get(watch).content.decode()
    assert "The node ran out of memory." in page
    assert "Look again" in page
    assert DataCheck.objects.get().state == "failed"


def test_one_click_leaves_out_the_column_and_keeps_all_else(browser, form):
    gate(browser, form)
    look(make.Node())
    buttons = remedies(gate(browser, form))
    assert buttons["Leave out “outcome”"] == json.dumps({"exclude": ["outcome"]})
    form |= {"time_budget": "own", "minutes": "7", "exclude": ["age"]}
    clicked = {**form, "remedy": buttons["Leave out “outcome”"]}
    answer = browser.post(reverse("training:new"), clicked)
    page = answer.content.decode()
    assert answer.status_code == 200
    assert not TrainingJob.objects.exists()
    for name in ("age", "outcome"):
        assert re.search(rf'name="exclude" value="{name}" checked', page)
    assert 'value="7"' in page
    assert re.search(r'<option value="sick" selected', page)


@pytest.mark.parametrize(("words", "kind", "column"), [
    ("Split by group: “patient_id”", "group", "patient_id"),
    ("Split by time: “day”", "time", "day"),
])  # fmt: skip
def test_one_click_splits_by_the_column(browser, form, words, kind, column):
    gate(browser, form)
    look(make.Node())
    buttons = remedies(gate(browser, form))
    page = browser.post(reverse("training:new"), {**form, "remedy": buttons[words]})
    page = page.content.decode()
    assert re.search(rf'<option value="{kind}" selected', page)
    assert re.search(rf'name="split_column".*?<option value="{column}" selected', page, re.DOTALL)
    chosen = {**form, "split_kind": kind, "split_column": column, "exclude": "outcome"}
    assert browser.post(reverse("training:new"), chosen).status_code == 302
    job = TrainingJob.objects.get()
    assert (job.split["kind"], job.split["column"]) == (kind, column)
    again = browser.get(reverse("training:new"), {"again": str(job.pk)}).content.decode()
    assert re.search(rf'<option value="{kind}" selected', again)


@pytest.mark.parametrize("remedy", ["{", "[]", "7", '{"split": 3, "exclude": "x"}', "{}"])
def test_a_remedy_that_is_none_changes_nothing(browser, form, remedy):
    answer = browser.post(reverse("training:new"), {**form, "remedy": remedy})
    assert answer.status_code == 200
    assert "checked" not in re.findall(r'name="exclude"[^>]*>', answer.content.decode())
    assert not TrainingJob.objects.exists()


def test_a_severe_finding_stops_the_form_until_somebody_says_why(browser, form):
    gate(browser, form)
    look(make.Node())
    answer = browser.post(reverse("training:new"), form)
    assert answer.status_code == 422
    assert "for what stands in red below" in answer.content.decode()
    answer = browser.post(reverse("training:new"), {**form, "accept_findings": "1"})
    assert answer.status_code == 422
    assert "Say why the findings are accepted" in answer.content.decode()
    assert not TrainingJob.objects.exists()
    said = {**form, "accept_findings": "1", "reason": "known at admission"}
    assert browser.post(reverse("training:new"), said).status_code == 302
    job = TrainingJob.objects.get()
    assert job.accepted["reason"] == "known at admission"
    page = browser.get(job.get_absolute_url()).content.decode()
    assert "known at admission" in page


def test_a_column_that_cannot_split_is_told_where_it_was_chosen(browser, form):
    wrong = {**form, "split_kind": "time", "split_column": "ward"}
    assert "which are no time" in gate(browser, wrong)
    page = browser.post(reverse("training:new"), wrong).content.decode()
    assert re.search(r'id="split-errors">.*?which are no time', page, re.DOTALL)
    assert re.search(r"<details[^>]* open", page)


def test_watching_costs_few_queries(browser, form, django_assert_max_num_queries):
    gate(browser, form)
    look(make.Node())
    gate(browser, form)
    with django_assert_max_num_queries(10):
        gate(browser, form)
    with django_assert_max_num_queries(7):
        browser.get(reverse("training:check", args=[DataCheck.objects.get().pk]))
