"""What each type of stage does when it starts, how its end is seen, and how it is cancelled.

Everything here runs in control, under the lock of the run's row (see driving.py), and calls the
actions of other apps as a person would: a training job, a batch prediction, a name's alias. What
takes long is theirs, or a node's task; ``step.subject`` remembers which.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import F, Q
from django.utils import timezone

from accounts.errors import Conflict, FlowError, Invalid, NotFound
from clusters import actions as deployments
from clusters.models import Deployment
from datasets import actions as data_actions
from datasets.models import Dataset, DatasetVersion
from organizations.models import Membership, Organization, Role, ServiceToken
from pipelines import chunks, experimenting, experiments, graph
from pipelines.models import Connection, ExperimentVersion, Run, Step
from training import actions as training
from training import named, offers
from training.models import BatchPrediction, TrainedModel, TrainingJob
from training.names import CHAMPION, NamedAlias
from workers import bells
from workers.actions import add_task, cancel_task
from workers.models import Artifact, Task
from workers.waiting import waits_for

SQL, WRITE_BACK = "pipeline.sql", "pipeline.write-back"
UPLOAD, DOWNLOAD = "pipeline.upload", "pipeline.download"
REMOTE, REMOTE_END = "pipeline.remote", "pipeline.remote-end"
NODE_TIME_S = 3600
NODE_RAM_MIB = 2048
# Files in pieces need little of a machine, and a program elsewhere nothing but somebody who looks.
MOVES: Mapping[str, Any] = {"light": True, "ram_mib": 1024, "time_limit_s": 6 * 3600}
LOOKS: Mapping[str, Any] = {"cpu_millis": 100, "ram_mib": 512}
# A message that control did not send by then is asked for once more, and given up at last.
TELL_AGAIN_S, TELL_WITHIN_S = 60, 300
State = Step.State


@dataclass(frozen=True)
class Said:
    """How a stage has ended."""

    state: State
    output: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass
class Work:
    """A step, with what it needs to know of its run."""

    run: Run
    step: Step
    stage: Mapping[str, Any]
    steps: Mapping[str, Step]
    by: Membership

    @property
    def home(self) -> Organization:
        return self.run.organization

    @property
    def subject(self) -> UUID:
        """What a step that has begun waits for."""
        assert self.step.subject is not None
        return self.step.subject

    def param(self, name: str, default: Any = None) -> Any:
        return self.stage["params"].get(name, default)

    def data(self) -> DatasetVersion:
        """The version that comes in. Raises FlowError."""
        said = self.param("data")
        versions = DatasetVersion.objects.of(self.home).select_related("dataset", "data")
        if said.startswith("$"):
            found = versions.filter(pk=self.steps[said[1:]].output["version"]).first()
            if found is None:
                raise NotFound(f"The data that '{said[1:]}' gave were deleted.")
        else:
            dataset = named.find_dataset(self.home, said)
            found = versions.filter(dataset=dataset, dataset__latest=F("pk")).first()
            if found is None:
                raise Conflict(f"The data set '{dataset}' has no version that can be used yet.")
        if found.data is None:
            raise Conflict(f"The data set '{found.dataset}' can't be used: it is {found.state}.")
        return found

    def model(self) -> TrainedModel:
        """The model that comes in. Raises FlowError."""
        said = self.param("model")
        models = TrainedModel.objects.of(self.home).select_related("job", "origin", "artifact")
        if said.startswith("$"):
            pk: Any = self.steps[said[1:]].output["model"]
        else:
            try:
                pk = UUID(said)
            except ValueError:
                pk = named.find(self.home, said).model_id
        found = models.filter(pk=pk).first()
        if found is None:
            raise NotFound(f"The model '{said[:120]}' is not there.")
        training.check_usable(found)
        return found

    def connection(self) -> Connection:
        name = self.param("connection")
        found = Connection.objects.of(self.home).filter(name=name).first()
        if found is None:
            raise NotFound(f"There is no connection '{name[:60]}'.")
        return found

    def inputs(self) -> dict[str, str]:
        """A digest of what comes in, by parameter. Raises FlowError where it isn't there."""
        kinds = graph.STAGES[self.step.stage].params
        found = {}
        for name in self.stage["params"]:
            if kinds[name].kind == "data":
                found[name] = self.data().sha256
            elif kinds[name].kind == "model":
                found[name] = str(self.model().pk)
            elif kinds[name].kind == "experiment":
                found[name] = experiments.digest(self.experiment().config)
        return found

    def experiment(self) -> ExperimentVersion:
        """The version that trains now. Raises NotFound."""
        found = experimenting.find(self.home, self.param("experiment")).version
        assert found is not None
        return found


def is_there(work: Work, earlier: Step) -> bool:
    """Whether what an earlier step gave can still be used."""
    models, versions = TrainedModel.objects.of(work.home), DatasetVersion.objects.of(work.home)
    model, version = earlier.output.get("model"), earlier.output.get("version")
    if version:
        return bool(versions.filter(pk=version, state=DatasetVersion.State.READY).exists())
    return bool(model and models.filter(pk=model).exists())


def on_behalf(run: Run) -> Membership:
    """Who started the run, in control, where nobody is signed in: it was looked at then whether
    they may. A schedule, a service token and somebody who has left since are the pipeline."""
    home, person = run.organization, run.started_by
    member = home.memberships.filter(user=person).first() if person else None
    if member is None:
        member = Membership(organization=home, role=Role.DEVELOPER)
        member.token = ServiceToken(organization=home, name=f"pipeline {run.pipeline}"[:80])
    return member


# --- Starting ------------------------------------------------------------------------------------


def start(work: Work) -> None:
    """Begin a step: it waits for ``step.subject`` then. Raises FlowError for what can't be."""
    _START[work.step.stage](work)


def _train(work: Work) -> None:
    version = work.data()
    names = (
        "preset", "engines", "time_budget", "budget_mode", "task_type", "metric", "exclude",
        "refit", "ensemble",
    )  # fmt: skip
    wish = {name: work.param(name) for name in names if work.param(name) is not None}
    told: dict[str, Any] = {}
    if work.param("experiment"):
        experiment = work.experiment()
        wish = experimenting.wish(experiment, version.column_names)
        told["by"] = f"{experiment.experiment}, version {experiment.number}"
    else:
        wish["target"] = work.param("target")
    job = training.start_job(
        work.by,
        version.dataset_id,
        version=version.number,
        name=f"{work.run}: {work.step.key}"[:160],
        idempotency_key=f"pipeline-step:{work.step.pk}:{work.step.attempt}",
        **wish,
    )
    work.step.subject = job.pk
    work.step.output = {"job": str(job.pk), **told}


def _score(work: Work) -> None:
    version, model = work.data(), work.model()
    assert version.data is not None
    gone = [one["name"] for one in model.schema if version.column(one["name"]) is None]
    if gone:
        raise Conflict(
            f"'{version.dataset}' (version {version.number}) lacks columns that the model was "
            f"trained with: {', '.join(gone[:20])}.",
            code="columns-gone",
        )
    stem = offers.label_of(version.dataset.name)
    batch = training.queue_file(work.by, model, version.data, f"{stem}.parquet", keep=True)
    work.step.subject = batch.pk
    work.step.output = {"batch": str(batch.pk), "model": str(model.pk)}


def _check(work: Work) -> None:
    """By what is known of the data already: their rows and columns, and what is missing there."""
    version = work.data()
    problems = []
    least = work.param("min_rows")
    if least is not None and version.rows < least:
        problems.append(f"There are {version.rows:,} rows, and {least:,.0f} at least are expected.")
    wanted = work.param("columns") or version.column_names
    gone = [name for name in wanted if version.column(name) is None]
    if gone:
        problems.append(f"These columns are not there: {', '.join(gone[:20])}.")
    most = work.param("max_missing")
    for name in wanted if most is not None else ():
        missing = (version.column(name) or {}).get("missing") or 0
        if missing > most * version.rows:
            share = missing / version.rows
            problems.append(f"Of {name}, {share:.1%} are missing, and {most:.1%} at most expected.")
    if problems:
        raise Conflict(" ".join(problems), code="data-unexpected")
    work.step.output = {
        "dataset": str(version.dataset_id),
        "version": str(version.pk),
        "name": version.dataset.name,
        "number": version.number,
        "rows": version.rows,
    }


def _deploy(work: Work) -> None:
    """Its replicas come up beside the old ones by themselves: nothing is waited for."""
    model, name = work.model(), work.param("deployment")
    found = Deployment.objects.of(work.home).there().filter(name=name).select_related("revision")
    one = found.first()
    if one is None:
        raise NotFound(f"There is no deployment '{name[:63]}'.")
    changed = one.revision is None or one.revision.model_id != model.pk
    if changed:
        deployments.change(work.by, one, model=model.pk)
    why = "Its replicas are being replaced." if changed else "It runs this model already."
    work.step.output = {"model": str(model.pk), "deployed": changed, "why": why, "name": name}


def _promote(work: Work) -> None:
    """All of it is done at once: what it says is its output already."""
    model, name = work.model(), work.param("name")
    alias = work.param("alias", CHAMPION)
    now = NamedAlias.objects.filter(
        named__organization=work.home, named__name=name, name=alias
    ).select_related("version__model__job", "version__model__origin")
    before = now.first()
    champion = before.version.model if before else None
    if champion is not None and champion.pk == model.pk:
        better, why = False, f"It is {name}@{alias} already."
    else:
        better, why = _is_better(model, champion, float(work.param("min_gain", 0)))
    if better:
        version = named.give_name(work.by, name, model)
        named.move_alias(work.by, name, alias, version.number)
    else:
        assert before is not None
        version = before.version
    work.step.output = {
        "promoted": better,
        "why": why,
        "model": str(version.model_id),
        "name": name,
        "alias": alias,
        "number": version.number,
    }


def _is_better(
    model: TrainedModel, champion: TrainedModel | None, min_gain: float
) -> tuple[bool, str]:
    """Whether ``model`` takes the champion's place, by the metric of its own job, and why."""
    metric = model.job.metric_info
    score = model.ranked_score
    if champion is None:
        return True, f"There was no champion. {metric.title}: {_shown(score)}."
    if champion.job.metric == metric.name:
        other = champion.ranked_score
    else:
        other = ((champion.origin or champion).metrics or {}).get(metric.name)
    if score is None or other is None:
        raise Conflict(f"The model and the champion can't be compared by {metric.title}.")
    gain = score - other if metric.greater_is_better else other - score
    told = f"{metric.title}: {_shown(score)}, the champion {_shown(other)}."
    return gain > min_gain or (min_gain > 0 and gain == min_gain), told


def _shown(score: float | None) -> str:
    return "unknown" if score is None else f"{score:.4g}"


def _notify(work: Work) -> None:
    members(work.home, work.param("to"))  # raises for somebody else
    step = str(work.step.pk)
    transaction.on_commit(lambda: bells.send("pipelines.tasks.tell", args=[step], queue="control"))


def members(home: Organization, addresses: list[str]) -> list[str]:
    """The addresses. Raises Invalid for those of no member: messages go to colleagues alone."""
    people = home.memberships.filter(user__is_active=True)
    known = {one.lower() for one in people.values_list("user__email", flat=True)}
    strangers = [one for one in addresses if one.lower() not in known]
    if strangers:
        sentence = (
            f"{', '.join(strangers)}: messages go to members of your organization alone. Invite "
            "them, or leave them out."
        )
        raise Invalid(sentence, errors={"to": [sentence]})
    return addresses


def _sql(work: Work) -> None:
    connection = work.connection()
    payload: dict[str, Any] = {"sql": work.param("sql")}
    inputs: dict[str, Artifact] = {}
    if connection.kind == Connection.Kind.DUCKDB:
        tables = _tables(work.home, work.param("sql"))
        inputs = {f"table{n}": one for n, one in enumerate(tables.values())}
        payload["tables"] = dict(zip(tables, inputs, strict=True))
    _on_node(work, SQL, connection, payload, inputs)


def _tables(home: Organization, sql: str) -> dict[str, Artifact]:
    """The organization's data sets that a query for DuckDB names, by the name that they have there.

    A data set penguins.csv is the table penguins; other signs than letters and digits are "_".
    """
    words = set(re.findall(r"[a-z0-9_.-]+", sql.lower()))
    words |= {part for word in words for part in word.split(".")}
    found: dict[str, Artifact] = {}
    ready = Dataset.objects.of(home).filter(latest__data__isnull=False)
    for dataset in ready.select_related("latest__data").order_by("created_at"):
        label = offers.label_of(dataset.name)
        if label.lower() not in words:
            continue
        if label in found:
            raise Conflict(f"Two data sets are the table {label}: give one another name.")
        assert dataset.latest is not None
        assert dataset.latest.data is not None
        found[label] = dataset.latest.data
    return found


def _write_back(work: Work) -> None:
    version = work.data()
    assert version.data is not None
    connection, mode = work.connection(), work.param("mode", "replace")
    began = int(timezone.now().timestamp() * 1000)
    payload: dict[str, Any] = {"table": work.param("table"), "mode": mode, "began": began}
    inputs = {"data": version.data}
    base: DatasetVersion | None = None
    if connection.kind == Connection.Kind.DUCKDB and mode == "append":
        dataset = _dataset(work, work.param("table"))
        done = dataset and dataset.versions.filter(origin__write=_run_id(work)).first()
        if dataset and done:  # by an earlier attempt of this very step
            work.step.subject, work.step.output = done.pk, _is_version(dataset, done)
            return
        base = dataset.latest if dataset else None
        if base is not None and base.data is not None:
            inputs["before"], payload["tables"] = base.data, {"before": "before"}
    _on_node(work, WRITE_BACK, connection, payload, inputs)
    work.step.output["base"] = str(base.pk) if base else ""


def _dataset(work: Work, name: str) -> Dataset | None:
    try:
        return named.find_dataset(work.home, name)
    except NotFound:
        return None


def _run_id(work: Work) -> str:
    """Of one write: the same rows by the same step are the same, however often it is tried."""
    told = f"{work.run.pk} {work.step.key} {work.step.inputs_digest}"
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def _on_node(
    work: Work,
    kind: str,
    connection: Connection,
    payload: Mapping[str, Any],
    inputs: Mapping[str, Artifact],
    **needs: Any,
) -> None:
    """A task of a node. What the connection says, secrets too, comes with its claim: handing.py."""
    task = add_task(
        work.home,
        kind=kind,
        subject=work.run.pk,
        topic=work.run.topic,
        payload={
            "connection": {"id": str(connection.pk)},
            "run_id": _run_id(work),
            **payload,
        },
        inputs=inputs,
        **{"ram_mib": NODE_RAM_MIB, "time_limit_s": NODE_TIME_S, **needs},
    )
    work.step.task, work.step.subject = task, task.pk
    work.step.output = {"task": str(task.pk)}


def _upload(work: Work) -> None:
    version, payload = work.data(), {"path": work.param("path")}
    assert version.data is not None
    _on_node(work, UPLOAD, work.connection(), payload, {"data": version.data}, **MOVES)
    # What it gives is what it was given: a later stage can wait for the file to be there.
    work.step.output["sent"] = {
        "dataset": str(version.dataset_id),
        "version": str(version.pk),
        "name": version.dataset.name,
        "number": version.number,
        "rows": version.rows,
    }


def _download(work: Work) -> None:
    _on_node(work, DOWNLOAD, work.connection(), {"path": work.param("path")}, {}, **MOVES)


def _remote(work: Work) -> None:
    payload = {"command": work.param("command"), "folder": work.param("folder", "")}
    limit_s = int(work.param("time_limit_s", NODE_TIME_S))
    _on_node(work, REMOTE, work.connection(), payload, {}, **LOOKS, time_limit_s=limit_s)


_START: Mapping[str, Callable[[Work], None]] = {
    "upload": _upload,
    "download": _download,
    "remote": _remote,
    "sql": _sql,
    "train": _train,
    "check": _check,
    "promote": _promote,
    "deploy": _deploy,
    "score": _score,
    "write_back": _write_back,
    "notify": _notify,
}


# --- How it stands -------------------------------------------------------------------------------


def look(work: Work) -> Said | None:
    """How a running step has ended; None while it goes on. May take the next part of it up."""
    if "version" in work.step.output:
        return _read(work)
    return _LOOK[work.step.stage](work)


def _train_ended(work: Work) -> Said | None:
    job = TrainingJob.objects.filter(pk=work.subject).select_related("best_model").first()
    if job is None:
        return Said(State.FAILED, error="The training job was deleted.")
    if not job.has_ended:
        return None
    if job.state == TrainingJob.State.CANCELLED:
        return Said(State.CANCELLED, error=job.error or "The training was cancelled.")
    if job.state != TrainingJob.State.SUCCEEDED or job.best_model is None:
        return Said(State.FAILED, error=job.error or "The training gave no model.")
    best = TrainedModel.objects.select_related("origin").get(pk=job.best_model.pk)
    return Said(
        State.SUCCEEDED,
        {
            "job": str(job.pk),
            "model": str(best.pk),
            "name": best.name,
            "metric": job.metric,
            "score": best.ranked_score,
            **({"by": said} if (said := work.step.output.get("by")) else {}),
        },
    )


def _score_ended(work: Work) -> Said | None:
    batch = BatchPrediction.objects.filter(pk=work.subject).select_related("parquet").first()
    if batch is None:
        return Said(State.FAILED, error="The batch prediction was deleted.")
    if not batch.has_ended:
        return None
    if batch.state == BatchPrediction.State.CANCELLED:
        return Said(State.CANCELLED, error=batch.error or "The prediction was cancelled.")
    if batch.state != BatchPrediction.State.SUCCEEDED or batch.parquet is None:
        return Said(State.FAILED, error=batch.error or "The prediction failed.")
    return _take_in(work, batch.parquet, work.param("dataset"), lent=True)


def _done_at_once(work: Work) -> Said:
    return Said(State.SUCCEEDED, work.step.output)


def _notify_ended(work: Work) -> Said | None:
    if "told" in work.step.output:
        return Said(State.SUCCEEDED, work.step.output)
    if problem := work.step.output.get("problem"):
        return Said(State.FAILED, error=problem)
    asked, now = work.step.started_at or timezone.now(), timezone.now()
    if asked < now - timedelta(seconds=TELL_WITHIN_S):
        return Said(State.FAILED, error="The message was not sent in time.")
    if asked < now - timedelta(seconds=TELL_AGAIN_S):
        _notify(work)
    return None


def _node_ended(work: Work) -> Said | None:
    task = work.step.task
    if task is None:
        return Said(State.FAILED, error="Its task was deleted.")
    if not task.has_ended:
        return None
    told = task.result.get("data") or {}
    if "transfer" in told:
        chunks.note(work.step, told["transfer"])
    if task.state == Task.State.CANCELLED:
        return Said(State.CANCELLED, error=task.error or "It was cancelled.")
    if task.state != Task.State.SUCCEEDED:
        return Said(State.FAILED, error=task.error or "It failed.")
    sent = {str(one.pk): one for one in task.artifacts.all()}
    data = sent.get(str((task.result.get("files") or {}).get("data")))
    if work.step.stage in {"sql", "download"} and data is None:
        return Said(State.FAILED, error="The node sent no table.")
    if work.step.stage in {"upload", "remote"}:
        kept = {key: told[key] for key in ("path", "bytes", "seconds", "status") if key in told}
        return Said(State.SUCCEEDED, {**work.step.output.get("sent", {}), **kept})
    if data is None:
        return Said(State.SUCCEEDED, {**work.step.output, "rows": told.get("rows")})
    # A warehouse that is the organization's own data sets: the table is one of them.
    return _take_in(work, data, work.param("dataset") or work.param("table"))


_LOOK: Mapping[str, Callable[[Work], Said | None]] = {
    "upload": _node_ended,
    "download": _node_ended,
    "remote": _node_ended,
    "sql": _node_ended,
    "train": _train_ended,
    "check": _done_at_once,
    "promote": _done_at_once,
    "deploy": _done_at_once,
    "score": _score_ended,
    "write_back": _node_ended,
    "notify": _notify_ended,
}


def _take_in(work: Work, rows: Artifact, name: str, *, lent: bool = False) -> Said | None:
    """Make a stored file the next version of a data set, which is made if it is new; then wait.

    Nothing is copied: this happens under the run's lock. ``lent``: somebody else keeps the file.
    """
    dataset = _dataset(work, name)
    if dataset is not None and dataset.versions.filter(state="ingesting").exists():
        return None  # another version of it is being read: the sweep comes back
    if "base" in work.step.output and work.param("mode") == "append":
        latest = str(dataset.latest_id) if dataset and dataset.latest_id else ""
        if work.step.output["base"] != latest:  # others were quicker: their rows are not lost
            _write_back(work)
            return None
    with transaction.atomic():
        version = data_actions.take_over(
            work.by,
            rows,
            dataset,
            name=name,
            filename=f"{offers.label_of(name)}{_suffix(work)}",
            origin=_origin(work),
            lent=lent,
        )
    work.step.subject = version.pk
    work.step.output = work.step.output | _is_version(version.dataset, version)
    return None


def _is_version(dataset: Dataset, version: DatasetVersion) -> dict[str, Any]:
    return {
        "dataset": str(dataset.pk),
        "version": str(version.pk),
        "name": dataset.name,
        "number": version.number,
    }


def _suffix(work: Work) -> str:
    """Of the file that the step made: by it, it is told how to read it."""
    if work.step.stage == "download":
        return PurePosixPath(work.param("path")).suffix.lower() or ".csv"
    return ".parquet"


def _origin(work: Work) -> dict[str, Any]:
    """Where the version of a data set comes from: the step, and what it was made of."""
    made_of = {key: work.param(key) for key in ("connection", "sql", "path") if work.param(key)}
    if work.step.stage == "write_back":
        made_of["write"] = _run_id(work)
    for name, what in (("data", "version"), ("model", "model")):
        if said := work.param(name):
            by_step = said.startswith("$")
            made_of[name] = work.steps[said[1:]].output[what] if by_step else said
    return {
        "text": f"the run {work.run}, step {work.step.key}"[:200],
        "url": work.run.get_absolute_url(),
        "run": str(work.run.pk),
        "step": work.step.key,
        **made_of,
    }


def _read(work: Work) -> Said | None:
    """Whether the data set's version that the step made can be used yet."""
    version = DatasetVersion.objects.filter(pk=work.step.output["version"]).first()
    if version is None:
        return Said(State.FAILED, error="The data set that it made was deleted.")
    if version.state == DatasetVersion.State.INGESTING:
        return None
    if version.state == DatasetVersion.State.FAILED:
        why = (version.error or {}).get("detail", "")
        return Said(State.FAILED, error=f"What it made could not be read. {why}".strip())
    return Said(State.SUCCEEDED, {**work.step.output, "rows": version.rows})


def waits(run: Run, steps: Iterable[Step]) -> str:
    """Why what runs of it does not get on, in a sentence; "" where it does."""
    subjects = [one.subject for one in steps if one.state == State.RUNNING and one.subject]
    if not subjects or run.has_ended:
        return ""
    tasks = Task.objects.filter(Q(subject__in=subjects) | Q(pk__in=subjects))
    return waits_for(list(tasks.filter(organization=run.organization)), run.organization)


# --- Cancelling ----------------------------------------------------------------------------------


def cancel(step: Step, by: str) -> None:
    """Let what the step waits for end; the step ends with it, or at once where it can't."""
    if step.stage == "train":
        job = TrainingJob.objects.filter(pk=str(step.subject)).first()
        if job is not None and not job.has_ended and job.cancel_requested_at is None:
            training.cancel_job(by, job)
        return
    if step.stage == "score":
        tasks = list(Task.objects.filter(subject=step.output.get("batch")).order_by("pk"))
    else:
        tasks = [step.task] if step.task else []
    for task in tasks:
        cancel_task(task, by=by)
        if step.stage == "remote" and not task.has_ended:
            _end_program(task)


def _end_program(task: Task) -> None:
    """Else it would go on: its machine knows nothing of the task that has looked after it."""
    add_task(
        task.organization,
        kind=REMOTE_END,
        subject=task.subject,
        topic=task.stream_id,
        payload={key: task.payload[key] for key in ("connection", "run_id")},
        light=True,
        **LOOKS,
        time_limit_s=300,
    )


def waits_for_others(step: Step) -> bool:
    """Whether a cancelled step has to wait until what it started has ended."""
    if step.stage == "train":
        return True
    by_tasks = {"sql", "write_back", "score", "upload", "download", "remote"}
    return step.stage in by_tasks and "version" not in step.output


def refused(error: Exception) -> str:
    """What is told of a stage that could not start or end."""
    if isinstance(error, FlowError):
        return str(error.detail)
    return f"The platform could not do it ({type(error).__name__}). Tell its operator."
