"""The six stages as one request: query, train, score, write to a table.

It makes an ordinary pipeline, and a run of it. Training happens in one of these ways:

- as an experiment says, or as an earlier training did, within FlowML. What these endpoints call
  steps are then six parts of what the pipeline's steps do: a query's rows are fetched, then read
  as a data set; so are a prediction's;
- the same, with the files kept at a place (``machine``): what is trained on goes there
  (data_upload), and so do the scored rows (result_download);
- on that machine, by programs of its own: both tables go there, the programs run, and the file
  with the scored rows is fetched.
"""

import shlex
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.db import transaction

from accounts.errors import Invalid, NotFound
from organizations.models import Membership
from organizations.naming import NameTaken
from pipelines import actions, kinds, logs
from pipelines.models import Connection, Experiment, Pipeline, Run, Step
from training.models import TrainingJob

STEPS = ("data_fetch", "data_upload", "train", "infer", "result_download", "hive_upload")
STATUSES = [(word, word) for word in ("pending", "running", "completed", "failed")]
STATUS = {
    Run.State.QUEUED: "pending",
    Run.State.RUNNING: "running",
    Run.State.SUCCEEDED: "completed",
}
_STEP_STATUS = {
    Step.State.PENDING: "pending",
    Step.State.RUNNING: "running",
    Step.State.SUCCEEDED: "completed",
    Step.State.SKIPPED: "completed",
    Step.State.NOT_RUN: "pending",
}
_AS_BEFORE = (
    "target", "preset", "engines", "time_budget", "budget_mode", "task_type", "metric", "exclude",
    "refit", "ensemble",
)  # fmt: skip
# What the keys of a definition can be, and so which pipelines these endpoints may change.
_KEYS = ("data_fetch", "infer_fetch", "train", "infer", "hive_upload")
_KEPT = ("data_fetch", "infer_fetch", "data_upload", "train", "infer", "result_download",
         "hive_upload")  # fmt: skip
_AWAY = ("data_fetch", "infer_fetch", "data_upload", "infer_upload", "train", "infer",
         "result_download", "hive_upload")  # fmt: skip
# The keys of the pipeline's steps behind each step, where they have steps of their own.
_BEHIND = {
    "data_fetch": ("data_fetch", "infer_fetch"),
    "data_upload": ("data_upload", "infer_upload"),
}
_OF = {key: name for name, keys in _BEHIND.items() for key in keys}


@transaction.atomic
def start(
    by: Membership,
    *,
    name: str,
    experiment_id: UUID | None = None,
    sample_sql: str,
    infer_sql: str,
    hive_table: str,
    hdfs_path: str = "",
    connection: str = "",
    machine: str = "",
    train_command: str = "",
    infer_command: str = "",
    result_file: str = "result.csv",
    time_limit_s: int = 3600,
) -> Run:
    """A run of the six stages, of a pipeline of that name. Raises Invalid by field, NotFound."""
    home = by.organization
    away = bool(train_command or infer_command)
    _check(by, hdfs_path, machine, train_command, infer_command, experiment_id)
    before = {} if away else _told(by, experiment_id)
    house = _warehouse(by, connection)
    folder = (hdfs_path or f"workflow/{name}").strip("/")

    def query(key: str, sql: str, what: str) -> dict[str, Any]:
        params = {"connection": house, "sql": sql, "dataset": f"{name} {what}"}
        return {"key": key, "stage": "sql", "params": params}

    def send(key: str, data: str, file: str) -> dict[str, Any]:
        params = {"connection": machine, "data": data, "path": f"{folder}/{file}"}
        return {"key": key, "stage": "upload", "params": params, "retries": 2}

    def run(key: str, command: str, *after: str) -> dict[str, Any]:
        params: dict[str, Any] = {"connection": machine, "command": command, "folder": folder}
        params["time_limit_s"] = time_limit_s
        return {"key": key, "stage": "remote", "params": params, "after": list(after)}

    stages = [
        query("data_fetch", sample_sql, "sample"),
        query("infer_fetch", infer_sql, "to score"),
    ]
    result = "$infer"
    if away:
        # What an earlier run has left must not be taken for what this one made.
        infer = f"rm -f -- {shlex.quote(result_file)}\n{infer_command}"
        fetch = {"connection": machine, "path": f"{folder}/{result_file}"}
        stages += [
            send("data_upload", "$data_fetch", "sample.csv"),
            send("infer_upload", "$infer_fetch", "infer.csv"),
            run("train", train_command, "data_upload", "infer_upload"),
            run("infer", infer, "train"),
            {
                "key": "result_download",
                "stage": "download",
                "params": {**fetch, "dataset": f"{name} scored"},
                "after": ["infer"],
                "retries": 2,
            },
        ]
        result = "$result_download"
    else:
        train = {"data": "$data_fetch", **before}
        score = {"model": "$train", "data": "$infer_fetch", "dataset": f"{name} scored"}
        if machine:
            stages.append(send("data_upload", "$data_fetch", "sample.csv"))
            train["data"] = "$data_upload"
        stages.append({"key": "train", "stage": "train", "params": train})
        stages.append({"key": "infer", "stage": "score", "params": score})
        if machine:
            stages.append(send("result_download", "$infer", "result.csv"))
            result = "$result_download"
    write = {"connection": house, "data": result, "table": hive_table}
    stages.append({"key": "hive_upload", "stage": "write_back", "params": write})
    definition = {"stages": stages}
    there = Pipeline.objects.of(home).filter(name=name).select_related("version").first()
    if there is None:
        there = actions.make(by, name=name, definition=definition)
    elif there.version and tuple(_keys(there.version.definition)) in {_KEYS, _KEPT, _AWAY}:
        there = actions.change(by, there, definition=definition)
    else:
        raise NameTaken("pipeline", name)
    return actions.start_run(by, there, trigger=Run.Trigger.WORKFLOW)


def _check(
    by: Membership, hdfs_path: str, machine: str, train: str, infer: str, experiment: UUID | None
) -> None:
    """Raises Invalid by field for what does not go together."""
    errors: dict[str, list[str]] = {}
    mine = dict(Connection.objects.of(by.organization).values_list("name", "kind"))
    fit = kinds.MACHINES if train or infer else kinds.PLACES
    if machine and machine not in mine:
        errors["machine"] = [f"There is no connection '{machine[:60]}' to a place with files."]
    elif machine and mine[machine] not in fit:
        errors["machine"] = [kinds.unfit(machine, mine, fit)]
    if hdfs_path and not machine:
        sentence = (
            "Say at which place (machine), or leave hdfs_path out: files go through FlowML's own "
            "storage then."
        )
        errors["hdfs_path"] = [sentence]
    if ".." in hdfs_path.split("/"):
        errors["hdfs_path"] = ["Give a folder within the connection's own."]
    if bool(train) != bool(infer):
        missing = "infer_command" if train else "train_command"
        errors[missing] = ["Give both commands, or none: then FlowML trains and scores."]
    if (train or infer) and not machine:
        errors["machine"] = ["Say on which machine the commands run."]
    if not (train or infer) and experiment is None:
        sentence = "Give the id of an experiment or a training, or commands for a machine."
        errors["experiment_id"] = [sentence]
    if errors:
        raise Invalid(" ".join(one for some in errors.values() for one in some), errors=errors)


def _told(by: Membership, experiment: UUID | None) -> dict[str, Any]:
    """An experiment, or the settings of an earlier training. Raises NotFound."""
    if Experiment.objects.of(by.organization).filter(pk=str(experiment)).exists():
        return {"experiment": str(experiment)}
    job = TrainingJob.objects.of(by.organization).filter(pk=str(experiment)).first()
    if job is None:
        sentence = "Give the id of an experiment, or of a training: its settings are used again."
        raise NotFound(
            "There is no experiment and no training with this id.",
            errors={"experiment_id": [sentence]},
        )
    before = {key: job.request.get(key) for key in _AS_BEFORE}
    return {key: value for key, value in before.items() if value not in (None, "", [], "auto")}


def _keys(definition: Mapping[str, Any]) -> list[str]:
    return [stage["key"] for stage in definition["stages"]]


def _warehouse(by: Membership, name: str) -> str:
    mine = Connection.objects.of(by.organization).filter(kind__in=kinds.WAREHOUSES)
    found = list((mine.filter(name=name) if name else mine).values_list("name", flat=True)[:2])
    if len(found) == 1:
        return str(found[0])
    sentence = (
        "Say which connection to use: there are several."
        if found
        else "There is no such connection to a warehouse: make one first."
    )
    raise Invalid(sentence, errors={"connection": [sentence]})


def told(run: Run) -> dict[str, Any]:
    """The run in the words of these endpoints. ``current_step``: 0 to 5."""
    steps = {step.key: step for step in run.steps.all()}
    parts = _parts(steps)
    rows = [
        {
            "step": number,
            "name": name,
            "status": status,
            "started_at": step.started_at if status != "pending" else None,
            "finished_at": step.finished_at if status in {"completed", "failed"} else None,
            "error": step.error if status == "failed" else "",
            "retry_count": step.retry_count,
        }
        for number, (name, (step, status)) in enumerate(zip(STEPS, parts, strict=True))
    ]
    left = [row["step"] for row in rows if row["status"] != "completed"]
    return {
        "task_id": str(run.pk),
        "number": run.number,
        "name": run.pipeline.name,
        "pipeline_id": str(run.pipeline_id),
        "status": STATUS.get(Run.State(run.state), "failed"),
        "current_step": left[0] if left else len(STEPS) - 1,
        "error": run.why if run.state == Run.State.FAILED else "",
        "created_at": run.created_at,
        "finished_at": run.finished_at,
        "steps": rows,
    }


def _parts(steps: Mapping[str, Step]) -> list[tuple[Step, str]]:
    """For each of STEPS the pipeline's step behind it that counts, and how it stands."""
    if "data_upload" in steps:
        made = []
        for name in STEPS:
            behind = [steps[key] for key in _BEHIND.get(name, (name,)) if key in steps]
            made.append(min(((one, _whole(one)) for one in behind), key=lambda it: _WORST[it[1]]))
        return made
    fetch, infer = steps["data_fetch"], steps["infer"]
    return [
        (fetch, _first(fetch)),
        (fetch, _second(fetch)),
        (steps["train"], _whole(steps["train"])),
        (infer, _first(infer)),
        (infer, _second(infer)),
        (steps["hive_upload"], _whole(steps["hive_upload"])),
    ]


_WORST = {"failed": 0, "running": 1, "pending": 2, "completed": 3}


def said(run: Run, after: int, most: int) -> list[dict[str, Any]]:
    """The lines of its log above the number ``after``, oldest first, in the words of these
    endpoints. ``step``: one of STEPS, or "" for the task as a whole."""
    events = logs.events_of(run, after=after)[:most]
    return [
        {
            "seq": line["seq"],
            "task_id": str(run.pk),
            "step": _OF.get(line["step"], line["step"]),
            "message": line["message"],
            "level": line["level"],
            "timestamp": line["at"].isoformat(),
        }
        for line in logs.lines(run, events)
    ]


def _whole(step: Step) -> str:
    return _STEP_STATUS.get(Step.State(step.state), "failed")


def _first(step: Step) -> str:
    """Of a step that makes rows and then reads them as a data set: the making."""
    return "completed" if "version" in step.output else _whole(step)


def _second(step: Step) -> str:
    """And the reading."""
    return _whole(step) if "version" in step.output or step.state in Step.DONE else "pending"
