"""The six stages as one request: query, train as an earlier training did, score, write to a table.

It makes an ordinary pipeline, and a run of it. What these endpoints call steps are six parts of
what its steps do: a query's rows are fetched, then read as a data set; so are a prediction's.
"""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.db import transaction

from accounts.errors import Invalid, NotFound
from organizations.models import Membership
from organizations.naming import NameTaken
from pipelines import actions, logs
from pipelines.models import Connection, Pipeline, Run, Step
from training.models import TrainingJob

STEPS = ("data_fetch", "data_upload", "train", "infer", "result_download", "hive_upload")
STATUSES = [(word, word) for word in ("pending", "running", "completed", "failed")]
WAREHOUSES = (Connection.Kind.DUCKDB, Connection.Kind.POSTGRES, Connection.Kind.HIVE)
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
_KEYS = ("data_fetch", "infer_fetch", "train", "infer", "hive_upload")


@transaction.atomic
def start(
    by: Membership,
    *,
    name: str,
    experiment_id: UUID,
    sample_sql: str,
    infer_sql: str,
    hive_table: str,
    hdfs_path: str = "",
    connection: str = "",
) -> Run:
    """A run of the six stages, of a pipeline of that name. Raises Invalid by field, NotFound."""
    if hdfs_path:
        sentence = "Files go through FlowML's own storage: leave hdfs_path out."
        raise Invalid(sentence, errors={"hdfs_path": [sentence]})
    home = by.organization
    job = TrainingJob.objects.of(home).filter(pk=experiment_id).first()
    if job is None:
        raise NotFound(
            "There is no training with this id.",
            errors={"experiment_id": ["Give the id of a training: its settings are used again."]},
        )
    house = _warehouse(by, connection)
    before = {key: job.request.get(key) for key in _AS_BEFORE}
    train = {key: value for key, value in before.items() if value not in (None, "", [], "auto")}

    def query(key: str, sql: str, what: str) -> dict[str, Any]:
        params = {"connection": house, "sql": sql, "dataset": f"{name} {what}"}
        return {"key": key, "stage": "sql", "params": params}

    score = {"model": "$train", "data": "$infer_fetch", "dataset": f"{name} scored"}
    write = {"connection": house, "data": "$infer", "table": hive_table}
    definition = {
        "stages": [
            query("data_fetch", sample_sql, "sample"),
            query("infer_fetch", infer_sql, "to score"),
            {"key": "train", "stage": "train", "params": {"data": "$data_fetch", **train}},
            {"key": "infer", "stage": "score", "params": score},
            {"key": "hive_upload", "stage": "write_back", "params": write},
        ]
    }
    there = Pipeline.objects.of(home).filter(name=name).select_related("version").first()
    if there is None:
        there = actions.make(by, name=name, definition=definition)
    elif there.version and tuple(_keys(there.version.definition)) == _KEYS:
        there = actions.change(by, there, definition=definition)
    else:
        raise NameTaken("pipeline", name)
    return actions.start_run(by, there, trigger=Run.Trigger.WORKFLOW)


def _keys(definition: Mapping[str, Any]) -> list[str]:
    return [stage["key"] for stage in definition["stages"]]


def _warehouse(by: Membership, name: str) -> str:
    mine = Connection.objects.of(by.organization).filter(kind__in=WAREHOUSES)
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
    fetch, infer = steps["data_fetch"], steps["infer"]
    parts = (
        (fetch, _first(fetch)),
        (fetch, _second(fetch)),
        (steps["train"], _whole(steps["train"])),
        (infer, _first(infer)),
        (infer, _second(infer)),
        (steps["hive_upload"], _whole(steps["hive_upload"])),
    )
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


def said(run: Run, after: int, most: int) -> list[dict[str, Any]]:
    """The lines of its log above the number ``after``, oldest first, in the words of these
    endpoints. ``step``: one of STEPS, or "" for the task as a whole."""
    events = logs.events_of(run, after=after)[:most]
    return [
        {
            "seq": line["seq"],
            "task_id": str(run.pk),
            "step": "data_fetch" if line["step"] == "infer_fetch" else line["step"],
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
