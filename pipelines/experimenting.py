"""What people do with experiments, and what a training takes from one."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Max

from accounts.errors import Conflict, Invalid, NotFound
from organizations.audit import record
from organizations.models import Membership, Organization
from organizations.naming import unique
from pipelines import experiments
from pipelines.models import Experiment, ExperimentVersion, Pipeline
from training import offers
from training.checks import nearest

MOST_EXPERIMENTS = 500  # of one organization
MOST_VERSIONS = 1_000  # of one experiment


class InUse(Conflict):
    code = "experiment-in-use"


@transaction.atomic
def make(by: Membership, *, name: str, config: str) -> Experiment:
    """An experiment and its first version; ``config`` is YAML. Raises Invalid, NameTaken."""
    said = check(config)
    if Experiment.objects.of(by.organization).count() >= MOST_EXPERIMENTS:
        raise Conflict(f"There are {MOST_EXPERIMENTS} experiments already: delete some first.")
    with unique("experiment", name):
        made: Experiment = Experiment.objects.create(
            organization=by.organization, name=name, created_by=by.author
        )
    _add_version(by, made, config, said)
    record("experiment.made", made, by=by, changes=_told(said))
    return made


@transaction.atomic
def change(
    by: Membership, experiment: Experiment, *, name: str | None = None, config: str | None = None
) -> Experiment:
    """Rename it, or give it another text, which makes a new version.

    Raises Invalid, NameTaken, and InUse for another name while a pipeline has this one.
    """
    stored = _locked(experiment)
    changes: dict[str, Any] = {}
    if name is not None and name != stored.name:
        if used := [one.name for one in users_of(stored, by_name=True)]:
            sentence = f"Pipelines know it by its name: {', '.join(used[:5])}. Change them first."
            raise InUse(sentence, errors={"name": [sentence]})
        changes["name"] = stored.name = name
        with unique("experiment", name):
            stored.save(update_fields=["name"])
    if config is not None and (stored.version is None or stored.version.text != config):
        said = check(config)
        if stored.versions.count() >= MOST_VERSIONS:
            raise Conflict(f"It has {MOST_VERSIONS} versions already: begin another experiment.")
        _add_version(by, stored, config, said)
        assert stored.version is not None
        changes |= {"version": stored.version.number, **_told(said)}
    if changes:
        record("experiment.changed", stored, by=by, changes=changes)
    return stored


@transaction.atomic
def delete(by: Membership, experiment: Experiment) -> None:
    """Forget it, with its versions; what was trained stays. Raises InUse."""
    stored = _locked(experiment)
    if used := [one.name for one in users_of(stored)]:
        shown = ", ".join(used[:5]) + (f" and {len(used) - 5} more" if len(used) > 5 else "")
        raise InUse(f"Pipelines train by it: {shown}. Change them first.", pipelines=used)
    record("experiment.deleted", stored, by=by)
    stored.delete()


def check(config: str) -> dict[str, Any]:
    """What the text says. Raises Invalid with every mistake and its line."""
    try:
        return experiments.check(config)
    except experiments.Refused as refused:
        errors = [str(one) for one in refused.mistakes]
        raise Invalid(" ".join(errors), errors={"config": errors}) from None


def find(home: Organization, said: str) -> Experiment:
    """By its name or id. Raises NotFound with the nearest name."""
    mine = Experiment.objects.of(home).select_related("version")
    try:
        found = mine.filter(pk=UUID(said)).first()
    except ValueError:
        found = None
    found = found or mine.filter(name=said).first()
    if found is None or found.version is None:
        near = nearest(said, mine.values_list("name", flat=True))
        raise NotFound(f"There is no experiment '{said[:60]}'.{near}")
    return found


def wish(version: ExperimentVersion, columns: Sequence[str]) -> dict[str, Any]:
    """What ``training.actions.start_job`` is asked for. Raises Conflict: columns are gone."""
    config = version.config
    try:
        asked = experiments.wish(config, columns)
    except experiments.Refused as refused:
        raise Conflict(str(refused), code="columns-gone") from None
    ask = offers.Ask(config["engine"], config["model"], config["hyperparameters"])
    return {**asked, "asks": [ask]}


def users_of(experiment: Experiment, *, by_name: bool = False) -> list[Pipeline]:
    """The pipelines that train by it, as they are now; ``by_name``: that know its name."""
    known = {experiment.name} if by_name else {experiment.name, str(experiment.pk)}
    mine = Pipeline.objects.of(experiment.organization).select_related("version").order_by("name")
    return [
        one
        for one in mine
        if one.version
        and any(
            stage.get("params", {}).get("experiment") in known
            for stage in one.version.definition.get("stages", ())
        )
    ]


def _add_version(
    by: Membership, experiment: Experiment, text: str, config: Mapping[str, Any]
) -> None:
    last = experiment.versions.aggregate(last=Max("number"))["last"] or 0
    experiment.version = ExperimentVersion.objects.create(
        experiment=experiment,
        number=last + 1,
        text=text,
        config=dict(config),
        made_by=by.name[:160],
    )
    experiment.save(update_fields=["version"])


def _told(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in ("engine", "model", "target")}


def _locked(experiment: Experiment) -> Experiment:
    locked = Experiment.objects.select_for_update(no_key=True, of=("self",))
    found = locked.select_related("organization", "version").filter(pk=experiment.pk).first()
    if found is None:
        raise NotFound("There is no such experiment.")
    return found
