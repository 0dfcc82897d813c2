"""What people do with models by their names: train, ask, compare, move an alias."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet

from accounts.errors import Conflict, FlowError, Invalid, NotFound
from datasets.models import Dataset
from organizations.audit import record
from organizations.models import Membership, Organization
from training import actions, offers, serving
from training.checks import nearest
from training.models import TrainedModel, TrainingJob
from training.names import (
    ALIAS,
    CHAMPION,
    LATEST,
    NAME,
    RESERVED,
    NamedAlias,
    NamedModel,
    NamedVersion,
)
from training.rows import BadRows, check_rows

MOST_ASKED = 100  # models of one request to all
MOST_ALIASES = 20


# Training ----------------------------------------------------------------------------------------


@transaction.atomic
def train(
    by: Membership,
    dataset: str,
    *,
    target: str,
    models: Sequence[str] | str = (),
    hyperparameters: Mapping[str, Mapping[str, Any]] | None = None,
    engine: str = "sklearn",
    label: str = "",
    task_type: str = "auto",
    description: str = "",
    time_budget: float | None = None,
    idempotency_key: str | None = None,
    **wish: Any,
) -> tuple[TrainingJob, list[NamedVersion]]:
    """Train models by name on a data set, each in a task of its own: a job, and a version of each.

    A model is called after its class and the data set (or ``label``): RandomForestClassifier_iris.
    ``models`` and ``hyperparameters`` are those of ``offers.choose``; ``wish`` is the rest of what
    ``actions.start_job`` takes, and ``time_budget`` is for each model. Raises what that raises.
    """
    found = find_dataset(by.organization, dataset)
    task = actions.plan_job(
        by, found.pk, target=target, task_type=task_type, engines=[engine]
    ).task  # fmt: skip
    try:
        asks = offers.choose(engine, models, task, hyperparameters or {})
    except offers.Refused as refused:
        raise Invalid(str(refused), errors=refused.errors) from None
    job = actions.start_job(
        by,
        found.pk,
        target=target,
        task_type=task_type,
        name=description[:160],
        time_budget=time_budget,
        budget_mode="per_engine",
        asks=asks,
        ensemble=False,
        refit=False,
        idempotency_key=idempotency_key,
        **wish,
    )
    earlier = list(job.named_versions.select_related("named").order_by("named__name"))
    if earlier:  # the same key once more
        return job, earlier
    suffix = offers.label_of(label or found.name)
    names = {f"{offers.class_of(engine, ask.model, task)}_{suffix}": ask for ask in asks}
    return job, [
        _add_version(by, name, job, names[name].key, model=None) for name in sorted(names)
    ]  # fmt: skip


def find_dataset(home: Organization, called: str) -> Dataset:
    """A data set by its id or its name, penguins.csv or just penguins.

    Raises NotFound, Conflict where the name fits several.
    """
    datasets = Dataset.objects.of(home)
    try:
        wanted = datasets.filter(pk=UUID(called))
    except ValueError:
        wanted = datasets.filter(is_called(called)) if "\x00" not in called else datasets.none()
    found = list(wanted.order_by("-created_at")[:6])
    if len(found) > 1:
        ids = ", ".join(str(one.pk) for one in found[:5])
        raise Conflict(
            f"Several data sets are called '{called}'. Give the id of one: {ids}.",
            code="name-ambiguous",
        )
    if not found:
        raise NotFound(
            f"There is no data set '{called[:120]}'.{_near(called, datasets.values_list('name'))}",
            errors={"dataset": ["There is no such data set."]},
        )
    return found[0]


def is_called(name: str, column: str = "name") -> Q:
    """Called so, but for the ending of the file that it came from."""
    with_ending = f"^{re.escape(name)}{offers.FILE_ENDING}$"
    return Q(**{column: name}) | Q(**{f"{column}__regex": with_ending})


def _add_version(
    by: Membership, name: str, job: TrainingJob, key: str, *, model: TrainedModel | None
) -> NamedVersion:
    """The next version of a name, which is made if it is new. Call it in a transaction."""
    named, new = NamedModel.objects.get_or_create(
        organization=by.organization, name=name, defaults={"created_by": by.author}
    )
    # Numbers are given one after the other.
    named = NamedModel.objects.select_for_update(no_key=True).get(pk=named.pk)
    newest = named.versions.select_related("job").order_by("-number").first()
    if newest is not None and newest.job.target != job.target:
        raise Conflict(
            f"'{name}' predicts '{newest.job.target}', not '{job.target}'. "
            "Give the new models another label, or choose another name.",
            code="name-taken",
            errors={"label": ["Another target has this name."]},
        )
    version = NamedVersion.objects.create(
        organization=by.organization,
        named=named,
        number=(newest.number if newest else 0) + 1,
        job=job,
        key=key,
        model=model,
        created_by=by.author,
    )
    if new:
        record("model-name.made", named, by=by)
    return version


def attach(model: TrainedModel) -> None:
    """A candidate was scored: it is what a name has waited for, or nothing happens. Idempotent."""
    waiting = NamedVersion.objects.filter(job=model.job_id, key=model.key, model=None)
    waiting.update(model=model)


@transaction.atomic
def give_name(
    by: Membership, name: str, model: TrainedModel, *, description: str | None = None
) -> NamedVersion:
    """Make a model of any job the next version of a name, or find it there already.

    Raises Invalid for what is no name, Conflict for a model that can't predict or another target.
    """
    if not NAME.fullmatch(name) or name in RESERVED:
        sentence = "A name is letters, digits, '_', '-' and '.', 120 at most, and not 'all'."
        raise Invalid(sentence, errors={"name": [sentence]})
    if not model.is_usable:
        raise Conflict(f"This model cannot predict: {model.reason}", code="model-invalid")
    there = NamedVersion.objects.of(by.organization).filter(named__name=name, model=model)
    version: NamedVersion = there.select_related("named").first() or _add_version(
        by, name, model.job, model.key, model=model
    )
    if description is not None:
        version.named.description = description
        version.named.save(update_fields=["description"])
    record("model-name.version-added", version.named, by=by, changes={"version": version.number})
    return version


# Finding -----------------------------------------------------------------------------------------


def find(home: Organization, address: str) -> NamedVersion:
    """The version that ``name``, ``name@3``, ``name@champion`` or ``name@latest`` means.

    A bare name means its champion, or the newest version that can be used where there is none.
    Raises NotFound, and Conflict for a version without a model.
    """
    name, at, which = address.partition("@")
    if not NAME.fullmatch(name) or (at and not (which.isdecimal() or ALIAS.fullmatch(which))):
        raise _unknown(home, address)
    versions = NamedVersion.objects.of(home).filter(named__name=name).with_model()
    if which.isdecimal():
        wanted = versions.filter(number=int(which)) if len(which) < 10 else versions.none()
    elif at and which != LATEST:
        wanted = versions.filter(aliases__name=which)
    else:
        champion = NamedAlias.objects.filter(version=OuterRef("pk"), name=CHAMPION)
        order = ["-number"] if at else ["-chosen", "-number"]
        wanted = versions.ready().annotate(chosen=Exists(champion)).order_by(*order)
    version: NamedVersion | None = wanted.first()
    if version is None and (not at or which == LATEST):
        version = versions.order_by("-number").first()
    if version is None:
        raise _unknown(home, address)
    if version.state != NamedVersion.State.READY:
        why = version.reason or "It is being trained."
        raise Conflict(f"{version} can't be used. {why}", code=f"model-{version.state}")
    return version


def _unknown(home: Organization, address: str) -> NotFound:
    name, _, which = address.partition("@")
    names = NamedModel.objects.of(home)
    if which and NAME.fullmatch(name) and names.filter(name=name).exists():
        return NotFound(f"'{name}' has no version or alias '{which[:40]}'.")
    return NotFound(f"There is no model '{name[:120]}'.{_near(name, names.values_list('name'))}")


def _near(called: str, names: QuerySet[Any, Any]) -> str:
    return nearest(called[:120], [name for (name,) in names[:1000]])


def get_named(home: Organization, name: str) -> NamedModel:
    """A name without version. Raises NotFound."""
    found: NamedModel | None = None
    if NAME.fullmatch(name):
        found = NamedModel.objects.of(home).for_list().filter(name=name).first()
    if found is None:
        raise _unknown(home, name)
    return found


@transaction.atomic
def move_alias(by: Membership, name: str, alias: str, number: int) -> NamedModel:
    """Let an alias mean a version that can be used, whichever it meant before."""
    named = get_named(by.organization, name)
    if not ALIAS.fullmatch(alias) or alias == LATEST:
        sentence = "An alias is a lower-case word such as champion; 'latest' is taken."
        raise Invalid(sentence, errors={"alias": [sentence]})
    version = find(by.organization, f"{name}@{number}")
    before = named.aliases.select_related("version").filter(name=alias).first()
    if before is None and named.aliases.count() >= MOST_ALIASES:
        raise Conflict(f"'{name}' has {MOST_ALIASES} aliases already: remove one.")
    NamedAlias.objects.update_or_create(named=named, name=alias, defaults={"version": version})
    changes = {"alias": alias, "version": number, "before": before and before.version.number}
    record("model-name.alias-moved", named, by=by, changes=changes)
    return get_named(by.organization, name)


@transaction.atomic
def remove_alias(by: Membership, name: str, alias: str) -> None:
    """Raises NotFound where there is no such alias."""
    named = get_named(by.organization, name)
    gone, _ = named.aliases.filter(name=alias if ALIAS.fullmatch(alias) else "").delete()
    if not gone:
        raise NotFound(f"'{name}' has no alias '{alias[:40]}'.")
    record("model-name.alias-removed", named, by=by, changes={"alias": alias})


# Predicting --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Said:
    """What one named model answered, or why it did not."""

    version: NamedVersion
    answer: serving.Answer | None
    error: FlowError | None


def predict(by: Membership, address: str, features: object) -> Said:
    """Ask a model by name for rows. Raises what ``actions.predict`` raises."""
    version = find(by.organization, address)
    if by.token is not None and by.token.only_id not in {None, version.model_id}:
        raise FlowError(
            "This service token is made for another model.", code="forbidden", status=403
        )
    model = _servable(by.organization, version)
    rows = _rows(model, features)
    return Said(version, serving.ask(model, [c["name"] for c in model.schema], rows), None)


def predict_all(
    by: Membership, features: object, *, dataset: str | None = None
) -> tuple[list[Said], int]:
    """Ask every named model, or all that were trained on a data set (its id or name), for rows.

    What a bare name means answers. A model that can't is told as such. Returns the answers by name,
    and how many names were left out, being too many for one request.
    """
    versions = answering(by.organization)
    if dataset is not None:
        found = _of_dataset(by.organization, dataset)
        versions = versions.filter(found)
    if by.token is not None and by.token.only_id:
        versions = versions.filter(model=by.token.only_id)
    chosen = list(versions.order_by("named__name")[:MOST_ASKED])
    more = versions.count() - len(chosen) if len(chosen) == MOST_ASKED else 0
    questions: list[serving.Question] = []
    refused: dict[UUID, FlowError] = {}
    for version in chosen:
        try:
            model = _servable(by.organization, version)
            columns = [column["name"] for column in model.schema]
            questions.append(serving.Question(model, columns, _rows(model, features)))
        except FlowError as error:
            refused[version.pk] = error
    answers = iter(serving.ask_all(questions))
    said = []
    for version in chosen:
        reply = refused.get(version.pk) or next(answers)
        if isinstance(reply, FlowError):
            said.append(Said(version, None, reply))
        else:
            said.append(Said(version, reply, None))
    return said, more


def answering(home: Organization) -> QuerySet[NamedVersion]:
    """The version that answers for each name that has one."""
    names: Any = NamedModel.objects.of(home).for_list()
    versions: QuerySet[NamedVersion] = NamedVersion.objects.of(home).with_model()
    return versions.filter(pk__in=names.filter(answers__isnull=False).values("answers"))


def _of_dataset(home: Organization, called: str) -> Q:
    """Versions trained on a data set, by its id or name. Raises NotFound where there is none."""
    try:
        known = Q(job__dataset__id=str(UUID(called)))
    except ValueError:
        if "\x00" in called:
            raise NotFound("There is no such data set.") from None
        known = is_called(called, "job__dataset__name")
    if not NamedVersion.objects.of(home).filter(known).exists():
        find_dataset(home, called)  # says that it isn't there, if so
    return known


def _servable(home: Organization, version: NamedVersion) -> TrainedModel:
    assert version.model_id is not None
    model = serving.servable(home, version.model_id)
    if model is None:
        raise NotFound(f"The model of {version} is gone.")
    return model


def _rows(model: TrainedModel, features: object) -> list[list[Any]]:
    try:
        return check_rows(model.schema, features)
    except BadRows as bad:
        errors = {_as_features(place): texts for place, texts in bad.errors.items()}
        raise actions.RowsRefused(_as_features(str(bad)), errors=errors) from None


def _as_features(text: str) -> str:
    return text.replace("'rows'", "'features'").replace("rows[", "features[", 1)


def names_of(model: TrainedModel) -> list[NamedVersion]:
    """The names that a model has, with the aliases of these versions."""
    found = NamedVersion.objects.filter(model=model).select_related("named")
    return list(found.prefetch_related("aliases").order_by("named__name"))


def versions_of(named: NamedModel) -> QuerySet[NamedVersion]:
    found: QuerySet[NamedVersion] = NamedVersion.objects.filter(named=named).with_model()
    return found.prefetch_related("aliases").order_by("-number")
