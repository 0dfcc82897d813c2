"""Connections, pipelines and runs for tests."""

from itertools import count
from typing import Any

from accounts import sealing
from organizations.models import Membership
from pipelines.models import Connection, Pipeline, PipelineVersion, Run, Step

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


def pipeline(by: Membership, stages: list[dict[str, Any]], name: str = "") -> Pipeline:
    made: Pipeline = Pipeline.objects.create(
        organization=by.organization, name=name or f"nightly-{next(_numbers)}"
    )
    made.version = PipelineVersion.objects.create(
        pipeline=made, number=1, definition={"stages": stages}, made_by=by.name
    )
    made.save()
    return made


def run(by: Membership, stages: list[dict[str, Any]] | None = None) -> Run:
    """A run that has not begun, with its steps."""
    stages = stages or [{"key": "say", "stage": "notify", "params": {"to": ["ann@example.com"]}}]
    home = pipeline(by, stages)
    assert home.version is not None
    made: Run = Run.objects.create(
        organization=by.organization, pipeline=home, version=home.version, number=1
    )
    Step.objects.bulk_create(
        Step(run=made, key=one["key"], stage=one["stage"], position=n)
        for n, one in enumerate(stages)
    )
    return made
