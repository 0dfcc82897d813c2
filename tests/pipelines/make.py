"""Connections, pipelines and runs for tests."""

import json
from itertools import count
from typing import Any

from django.utils import timezone

from accounts import sealing
from organizations.models import Membership
from pipelines import experimenting, graph, workflow
from pipelines.models import Connection, Experiment, Pipeline, PipelineVersion, Run, Step
from workers.actions import open_stream
from workers.models import emit

TRAINS: list[dict[str, Any]] = [
    {"key": "train", "stage": "train", "params": {"data": "flowers", "target": "kind"}}
]
# What every organization can have: it names nothing but models by name.
TELLS: list[dict[str, Any]] = [
    {"key": "promote", "stage": "promote", "params": {"model": "kinds@3", "name": "kinds"}}
]
# Of a request for the six stages, all but the name and the training.
SIX = {
    "sample_sql": "SELECT * FROM flowers",
    "infer_sql": "SELECT * FROM flowers",
    "hive_table": "predictions",
}
TEXT = json.dumps({"stages": TELLS})
CONFIG = """\
model: DeepFM
target: clicked
features: {categorical: [user, item]}
embedding_dim: 8
"""
_numbers = count(1)


def connection(by: Membership, name: str = "", **fields: Any) -> Connection:
    secrets = fields.pop("secrets", {"password": "pw-1"})
    made: Connection = Connection.objects.create(
        organization=by.organization,
        name=name or f"warehouse-{next(_numbers)}",
        kind=fields.pop("kind", Connection.Kind.DUCKDB),
        secrets_sealed=sealing.seal(secrets),
        sealed_names=sorted(secrets),
        created_by=by.author,
        **fields,
    )
    return made


def experiment(by: Membership, name: str = "", config: str = CONFIG) -> Experiment:
    return experimenting.make(by, name=name or f"clicks-{next(_numbers)}", config=config)


def pipeline(by: Membership, stages: list[dict[str, Any]], name: str = "") -> Pipeline:
    made: Pipeline = Pipeline.objects.create(
        organization=by.organization, name=name or f"nightly-{next(_numbers)}"
    )
    made.version = PipelineVersion.objects.create(
        pipeline=made, number=1, definition=graph.check({"stages": stages}), made_by=by.name
    )
    made.save()
    return made


def run_of(home: Pipeline, state: str = "queued") -> Run:
    """A run as if it had come to that state, with its steps, and a first line in its log."""
    assert home.version is not None
    has_ended = state not in Run.ACTIVE
    made: Run = Run.objects.create(
        organization=home.organization,
        pipeline=home,
        version=home.version,
        number=home.runs.count() + 1,
        state=state,
        finished_at=timezone.now() if has_ended else None,
        told_at=timezone.now(),
    )
    Step.objects.bulk_create(
        Step(
            run=made,
            key=one["key"],
            stage=one["stage"],
            position=n,
            state="failed" if has_ended else "pending",
        )
        for n, one in enumerate(home.version.definition["stages"])
    )
    open_stream(made.topic, home.organization)
    emit(made.topic, "run.running", {"state": state})
    return made


def run(by: Membership, stages: list[dict[str, Any]] | None = None) -> Run:
    """A run that has not begun, with its steps."""
    return run_of(pipeline(by, stages or TRAINS))


def workflow_of(by: Membership, job: Any, name: str) -> Run:
    """The six stages, as the API starts them."""
    house = connection(by, f"{name} house")
    made = workflow.start(by, name=name, experiment_id=job, connection=house.name, **SIX)
    house.delete()  # a world has one connection
    return made
