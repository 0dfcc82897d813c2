"""What people do with connections. Their secrets go in, and never come out to anybody again."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.conf import settings as site
from django.db import transaction

from accounts import sealing
from accounts.errors import Conflict, Invalid
from organizations.audit import record
from organizations.models import Membership
from organizations.naming import unique
from pipelines import kinds, reach
from pipelines.handing import TEST
from pipelines.models import Connection, Pipeline
from workers.actions import add_task
from workers.models import Stream, Task
from workers.waiting import waits_for

MOST_CONNECTIONS = 200  # of one organization
TEST_TIME_S = 90
TEST_RAM_MIB = 768


class InUse(Conflict):
    code = "connection-in-use"


@dataclass(frozen=True)
class Tested:
    """How a test of a connection stands. ``state``: waiting, running, works or fails."""

    task: UUID
    state: str
    sentence: str
    at: datetime


@transaction.atomic
def make(
    by: Membership,
    *,
    name: str,
    kind: str,
    settings: Mapping[str, Any] | None = None,
    secrets: Mapping[str, Any] | None = None,
) -> Connection:
    """Raises Invalid by field (settings.host, secrets.password), NameTaken."""
    if kind not in kinds.KINDS:
        sentence = f"Use one of: {', '.join(kinds.KINDS)}."
        raise Invalid(sentence, errors={"kind": [sentence]})
    good = _checked(kind, settings or {}, secrets or {})
    if Connection.objects.of(by.organization).count() >= MOST_CONNECTIONS:
        raise Conflict(f"There are {MOST_CONNECTIONS} connections already: delete some first.")
    kept = {key: value for key, value in (secrets or {}).items() if value}
    with unique("connection", name):
        made: Connection = Connection.objects.create(
            organization=by.organization,
            name=name,
            kind=kind,
            settings=good,
            secrets_sealed=sealing.seal(kept) if kept else "",
            sealed_names=sorted(kept),
            created_by=by.author,
        )
    record("connection.made", made, by=by, changes={"kind": kind, "settings": good})
    return made


@transaction.atomic
def change(
    by: Membership,
    connection: Connection,
    *,
    name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    secrets: Mapping[str, Any] | None = None,
) -> Connection:
    """Change what is given and leave the rest. A secret that is null or "" is forgotten.

    Raises Invalid by field, NameTaken, and InUse for another name while a pipeline has this one.
    """
    stored = _locked(connection)
    good = _checked(stored.kind, {**stored.settings, **(settings or {})}, secrets or {})
    kept, told = dict(_secrets(stored)), dict[str, Any]()
    if kinds.leads_elsewhere(stored.settings, good):
        # Else whoever may change a connection could have its secrets sent to a machine of theirs.
        again = [one for one in stored.sealed_names if one not in (secrets or {})]
        if again:
            sentence = "For another host or port, enter this again: it was meant for the old one."
            raise Invalid(sentence, errors={f"secrets.{one}": [sentence] for one in again})
    if name is not None and name != stored.name:
        if used := [one.name for one in users_of(stored)]:
            raise InUse(
                f"Pipelines know it by its name: {_list(used)}. Change them first.",
                errors={"name": ["Pipelines know it by its name."]},
            )
        told["name"] = stored.name = name
    if good != stored.settings:
        told["settings"] = stored.settings = good
    if secrets:
        kept |= secrets
        kept = {key: value for key, value in kept.items() if value}
        stored.secrets_sealed = sealing.seal(kept) if kept else ""
        stored.sealed_names = sorted(kept)
        told["entered"] = sorted(secrets)
    if told:
        with unique("connection", stored.name):
            stored.save()
        record("connection.changed", stored, by=by, changes=told)
    return stored


@transaction.atomic
def delete(by: Membership, connection: Connection) -> None:
    """Forget it, with its secrets. Raises InUse while a pipeline uses it."""
    stored = _locked(connection)
    if used := [one.name for one in users_of(stored)]:
        raise InUse(f"It is used by {_list(used)}. Change or delete that first.", pipelines=used)
    record("connection.deleted", stored, by=by, changes={"kind": stored.kind})
    topic = _topic(stored)
    stored.delete()
    Stream.objects.filter(topic=topic, tasks__isnull=True).delete()


@transaction.atomic
def test(by: Membership, connection: Connection) -> Tested:
    """Let a node reach it. While an earlier test goes on, that one counts."""
    stored = _locked(connection)
    task = _tests([stored]).get(stored.pk)
    if task is None or task.has_ended:
        task = add_task(
            stored.organization,
            kind=TEST,
            subject=stored.pk,
            topic=_topic(stored),
            payload={"connection": {"id": str(stored.pk), "kind": stored.kind}},
            light=True,
            cpu_millis=500,
            ram_mib=TEST_RAM_MIB,
            time_limit_s=TEST_TIME_S,
        )
        record("connection.tested", stored, by=by)
    return _how(task)


def last_tests(connections: Iterable[Connection]) -> dict[UUID, Tested]:
    """The last test of each that had one."""
    return {pk: _how(task) for pk, task in _tests(connections).items()}


def users_of(connection: Connection) -> list[Pipeline]:
    """The pipelines that use it, as they are now."""
    pipelines = Pipeline.objects.of(connection.organization).select_related("version")
    return [
        pipeline
        for pipeline in pipelines.order_by("name")
        if pipeline.version and connection.name in _named(pipeline.version.definition)
    ]


def _named(definition: Mapping[str, Any]) -> set[str]:
    """The connections that a pipeline names."""
    found = {stage.get("params", {}).get("connection") for stage in definition.get("stages", ())}
    return found | set((definition.get("notify") or {}).get("hooks", ()))


def _tests(connections: Iterable[Connection]) -> dict[UUID, Task]:
    last = Task.objects.filter(kind=TEST, subject__in=[one.pk for one in connections])
    newest = last.select_related("organization").order_by("subject", "-queued_at")
    return {task.subject: task for task in newest.distinct("subject")}


def _how(task: Task) -> Tested:
    if not task.has_ended:
        if task.started_at is not None and task.state == Task.State.RUNNING:
            return Tested(task.pk, "running", "A node tries it.", task.queued_at)
        why = waits_for([task], task.organization) or "It waits for a node."
        return Tested(task.pk, "waiting", why, task.queued_at)
    at = task.finished_at or task.queued_at
    if task.state == Task.State.SUCCEEDED:
        said = str((task.result.get("data") or {}).get("sentence") or "It answers.")
        return Tested(task.pk, "works", said, at)
    return Tested(task.pk, "fails", task.error or "The test was cancelled: test it again.", at)


def _topic(connection: Connection) -> str:
    return f"connection:{connection.pk}"


def _list(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{'the pipelines' if len(names) > 1 else 'the pipeline'} {shown}" + (
        f" and {len(names) - 5} more" if len(names) > 5 else ""
    )


def _locked(connection: Connection) -> Connection:
    locked = Connection.objects.select_for_update(no_key=True, of=("self",))
    return locked.select_related("organization").get(pk=connection.pk)


def _secrets(connection: Connection) -> dict[str, Any]:
    try:
        return dict(connection.secrets)
    except sealing.Unreadable:
        return {}  # they are lost: what is entered now counts


def _checked(kind: str, settings: Mapping[str, Any], secrets: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as they are stored. Raises Invalid by field."""
    good, wrong = kinds.check_settings(kind, settings)
    errors = {f"settings.{name}": [said] for name, said in wrong.items()}
    bad = kinds.check_secrets(kind, secrets)
    errors |= {f"secrets.{name}": [said] for name, said in bad.items()}
    if "host" in good and "port" in good:
        try:
            rules = reach.parse(site.REACH)
            if not reach.may_be_allowed(rules, good["host"], good["port"]):
                errors["settings.host"] = [reach.not_allowed(good["host"], good["port"])]
        except reach.Refused as refused:
            errors["settings.host"] = [str(refused)]
    if errors:
        text = " ".join(said for sentences in errors.values() for said in sentences)
        raise Invalid(text, errors=errors)
    return good
