"""Who started a training is written to when it ends, as they chose."""

from datetime import timedelta
from typing import Any

import pytest
from django.core import mail as outgoing

from organizations.models import Membership
from tests.training import make
from training import actions, telling
from training.models import TrainingJob
from workers import bells

pytestmark = pytest.mark.django_db


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> None:
    """What control is asked to do is done where it is asked."""

    def send(name: str, args: Any = (), **_: Any) -> bool:
        if name == "training.tasks.tell":
            telling.tell(*args)
        return True

    monkeypatch.setattr(bells, "send", send)


def run(by: Membership, capture: Any, *, minutes: float, outcome: str = "succeeded") -> TrainingJob:
    """A training that took so long, seen through to its end."""
    node, job = make.Node(), make.job(by)
    task = node.claim()
    if outcome == "succeeded":
        node.candidate(task)
    with capture(execute=True):
        job.refresh_from_db()
        began = job.tasks.get().started_at - timedelta(minutes=minutes)
        job.tasks.update(started_at=began)
        said = {} if outcome == "succeeded" else {"error": "Column 'kind' has one value."}
        node.end(task, outcome, **said)
    job.refresh_from_db()
    assert job.has_ended
    return job


@pytest.fixture
def wait(control: None, django_capture_on_commit_callbacks: Any) -> Any:
    return django_capture_on_commit_callbacks


def test_a_long_training_is_told_once_with_its_best_model_and_where_it_is(wait: Any) -> None:
    by = make.member()
    job = run(by, wait, minutes=75)
    [message] = outgoing.outbox
    assert message.to == [by.user.email]
    assert message.subject.endswith("The training for kind is done")
    for piece in ("1 h 15 min", "Tree", job.metric_info.title, f"/training/{job.pk}", "/account"):
        assert piece in message.body, piece
    for task in job.tasks.all():  # control may react twice
        from training import finish

        with wait(execute=True):
            finish.finish_job(task)
    assert len(outgoing.outbox) == 1


def test_one_that_failed_is_told_with_the_reason(wait: Any) -> None:
    run(make.member(), wait, minutes=11, outcome="failed")
    [message] = outgoing.outbox
    assert "has failed" in message.subject
    assert "has one value" in message.body


@pytest.mark.parametrize(
    ("chosen", "minutes", "told"), [(10, 9, 0), (10, 11, 1), (0, 0, 1), (None, 600, 0)]
)
def test_who_does_not_want_it_is_not_written_to(
    wait: Any, chosen: int | None, minutes: float, told: int
) -> None:
    by = make.member()
    by.user.mail_after_min = chosen
    by.user.save()
    run(by, wait, minutes=minutes)
    assert len(outgoing.outbox) == told


def test_nobody_is_told_of_what_they_cancelled_themselves(wait: Any) -> None:
    by = make.member()
    job = make.job(by)
    with wait(execute=True):
        actions.cancel_job(by, job)
    assert not outgoing.outbox


def test_who_has_left_the_organization_reads_nothing_of_it(wait: Any) -> None:
    by = make.member()
    node, job = make.Node(), make.job(by)
    task = node.claim()
    node.candidate(task)
    by.user.mail_after_min = 0
    by.user.save()
    by.delete()
    with wait(execute=True):
        node.end(task)
    job.refresh_from_db()
    assert job.has_ended
    assert not outgoing.outbox
