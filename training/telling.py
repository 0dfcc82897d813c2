"""A mail to who started a training, when it has ended after as long as they want to be told of."""

import logging
from collections.abc import Callable
from datetime import timedelta
from uuid import UUID

from django.db import transaction

from accounts import mail
from organizations.models import Membership
from training.models import TrainingJob
from workers import bells

log = logging.getLogger(__name__)
# Apps to the right that tell of trainings in other ways put a function here.
LISTENERS: list[Callable[[TrainingJob], None]] = []


def ended(job: TrainingJob) -> None:
    """Have control write, once this transaction is through. Called once: as the job ends."""
    if job.state != TrainingJob.State.CANCELLED:  # who did that knows
        transaction.on_commit(
            lambda: bells.send("training.tasks.tell", args=[str(job.pk)], queue="control")
        )


def tell(pk: UUID) -> None:
    """Write to who started it, if they want that and are still a member; tell all who listen."""
    job = TrainingJob.objects.for_list().filter(pk=pk).first()
    if job is None or job.finished_at is None:
        return
    for listener in LISTENERS:
        try:
            listener(job)
        except Exception:  # the mail goes out all the same
            log.exception("an end was not told", extra={"job": str(pk)})
    if job.created_by is None:
        return
    person = job.created_by
    least = person.mail_after_min
    took = job.finished_at - (job.started_at or job.created_at)
    if least is None or took < timedelta(minutes=least) or person.awaits_verification:
        return
    home = Membership.objects.filter(user=person, organization=job.organization_id)
    if not (person.is_active and home.exists()):
        return
    data, best = job.dataset["name"], job.best_model
    if best is None:
        subject = f"The training for {job.target} has failed"
        text = f"The training for {job.target} on {data} has failed:\n\n{job.error}"
    else:
        subject = f"The training for {job.target} is done"
        score = "" if best.ranked_score is None else f" with {best.ranked_score:.4g}"
        text = (
            f"The training for {job.target} on {data} is done, in {_words(took)}. The best model "
            f"is {best.name}{score} ({job.metric_info.title})."
        )
    where = mail.address(job.get_absolute_url())
    change = mail.link("accounts:profile")
    mail.send_text(
        person.email, subject, f"{text}\n\n{where}\n\nWhat is written to you you choose at {change}"
    )


def _words(took: timedelta) -> str:
    minutes = round(took.total_seconds() / 60)
    if minutes < 1:
        return "less than a minute"
    if minutes < 60:
        return f"{minutes} minute{'s' if minutes > 1 else ''}"
    return f"{minutes // 60} h {minutes % 60} min"
