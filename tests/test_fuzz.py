"""The whole API as it describes itself, asked by Schemathesis with what fits and what does not.

No request may end in a 5xx, and every answer must be one that the description names, in its media
type and shape. Each operation is asked by an admin of an organization that has one of everything
(half of the time about things that are there: random ids are only ever not found), and by nobody.

The same requests every time; FLOWML_FUZZ=200 asks 200 times in each way instead of a few.
"""

import json
import os
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import schemathesis
from django.core import cache as stores
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_finished, request_started
from django.db import close_old_connections, transaction
from drf_spectacular.generators import SchemaGenerator
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from accounts import limits
from tests.factories import bearer
from tests.test_access import World, world  # noqa: F401 - a fixture

pytestmark = [pytest.mark.django_db, pytest.mark.timeout(1800)]

EXAMPLES = int(os.environ.get("FLOWML_FUZZ", "5"))
PARTS = 2  # for as many processes
POSITIVE, NEGATIVE = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
# What a path's id names, by the word before it.
THERE = {
    "datasets": "dataset",
    "training": "job",
    "check": "check",
    "job": "job",
    "model": "model",
    "predictions": "batch",
    "organizations": "organization",
    "models": "named",
    "predict": "named",
    "metrics": "named",
    "all": "dataset",
    "aliases": "alias",
    "visualization": "named",
    "jobs": "request",
    "clusters": "cluster",
    "deployments": "deployment",
    "connections": "connection",
    "experiments": "experiment",
    "pipelines": "pipeline",
    "runs": "run",
    "tasks": "workflow",
}


@cache
def described() -> list[Any]:
    """The operations of the API as a client reads them."""
    told = SchemaGenerator().get_schema(request=None, public=True)
    plain = json.loads(json.dumps(told, default=str))
    schema = schemathesis.openapi.from_dict(plain, config=schemathesis.Config())
    return [found.ok() for found in schema.get_all_operations()]


@pytest.fixture
def unlimited(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the fuzz ask as often as it likes, all in the test's one transaction."""
    for name in ("SIGN_UPS", "FAILURES"):
        limit = getattr(limits, name)
        more = dict.fromkeys(limit, 10**9) if isinstance(limit, dict) else 10**9
        monkeypatch.setattr(limits, name, more)
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)  # as Django's own test client does
    yield
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)
    stores.cache.clear()


def about_real_things(case: Any, ids: dict[str, str]) -> None:
    """Put the ids of things that are there into a case, where it has some."""
    words = case.operation.path.strip("/").split("/")
    for name in case.path_parameters or {}:
        known = THERE.get(words[words.index("{" + name + "}") - 1])
        if known:
            case.path_parameters[name] = ids[known]
    if isinstance(case.body, dict):
        case.body.update({name: ids[name] for name in case.body if name in ids})
        if "target" in case.body:
            case.body["target"] = "kind"


def ask(
    operation: Any, ids: dict[str, str], headers: dict[str, str], examples: int
) -> tuple[set[int], list[str]]:
    """The statuses of one operation's answers, and of each kind of fault the first."""
    statuses: set[int] = set()
    by_mode = {mode: operation.as_strategy(generation_mode=mode) for mode in (POSITIVE, NEGATIVE)}
    problems: dict[str, str] = {}

    @seed(1)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def once(data: st.DataObject) -> None:
        mode = data.draw(st.sampled_from([POSITIVE, POSITIVE, NEGATIVE]))
        case = data.draw(by_mode[mode])
        if data.draw(st.integers(0, 2)):
            about_real_things(case, ids)
        with transaction.atomic():
            answer = case.call(app=WSGIHandler(), base_url="http://testserver", headers=headers)
            transaction.set_rollback(True)
        statuses.add(answer.status_code)
        try:
            case.validate_response(answer, checks=CHECKS)
        except FailureGroup as found:
            for fault in found.exceptions:
                said = (
                    f"{operation.label}: {fault.title}\n{fault.message}\n{case.as_curl_command()}"
                )
                problems.setdefault(fault.title, f"{said}\n{answer.content[:600]!r}")

    once()
    return statuses, list(problems.values())


@pytest.mark.parametrize(
    ("who", "part"), [*(("admin", part) for part in range(PARTS)), ("anonymous", None)]
)
def test_no_request_breaks_the_api(
    who: str,
    part: int | None,
    world: World,  # noqa: F811
    unlimited: None,
) -> None:
    headers = {}
    if member := world.people[who]:
        headers = bearer(member.user)
    ids = {name: str(value) for name, value in world.ids.items()}
    examples = EXAMPLES * 2 if member else max(1, EXAMPLES // 3)
    problems, reached = [], 0
    operations = described() if part is None else described()[part::PARTS]
    for operation in operations:
        statuses, faults = ask(operation, ids, headers, examples)
        problems += faults
        reached += any(status < 300 for status in statuses)
    if member:
        assert reached > len(operations) / 2, "most were only refused: this proves little"
    assert not problems, f"{len(problems)} problems\n\n" + "\n\n".join(problems)
