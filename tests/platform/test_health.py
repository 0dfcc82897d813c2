"""GET /health: which parts are up, for everybody, quickly, and without saying how they run."""

import json
import time
from types import SimpleNamespace

import pytest

from flowml_site import embedded, health
from tests.factories import WorkerFactory

pytestmark = pytest.mark.django_db


def test_without_a_node_it_is_degraded_and_still_serves(client):
    answer = client.get("/health")
    body = answer.json()
    assert answer.status_code == 200
    assert body["status"] == "degraded"
    assert {name: part["ok"] for name, part in body["parts"].items()} == {
        "database": True,
        "broker": True,
        "channel_layer": True,
        "nodes": False,
    }
    assert all({"ok", "detail", "ms"} <= part.keys() for part in body["parts"].values())


def test_it_counts_the_nodes_that_live(client):
    WorkerFactory()
    body = client.get("/health").json()
    assert body["status"] == "ok"
    assert body["parts"]["nodes"]["alive"] == 1


def test_a_broker_that_is_away_is_named_with_503_and_soon(client, settings):
    port = embedded.processes.free_port()
    settings.CELERY_BROKER_URL = f"redis://:a-secret@127.0.0.1:{port}/0"
    started = time.monotonic()
    answer = client.get("/health")
    assert time.monotonic() - started < 5
    assert answer.status_code == 503
    assert answer.json()["status"] == "down"
    assert not answer.json()["parts"]["broker"]["ok"]
    assert answer.json()["parts"]["database"]["ok"]
    text = json.dumps(answer.json())
    assert "a-secret" not in text
    assert str(port) not in text


def test_a_database_that_is_away_is_named_with_503(client, settings, monkeypatch):
    nowhere = {"dbname": "x", "host": "127.0.0.1", "port": embedded.processes.free_port()}
    broken = SimpleNamespace(get_connection_params=lambda: dict(nowhere))
    monkeypatch.setattr(health, "connection", broken)
    answer = client.get("/health")
    assert answer.status_code == 503
    assert not answer.json()["parts"]["database"]["ok"]
    assert not answer.json()["parts"]["nodes"]["ok"]
    assert "127.0.0.1" not in json.dumps(answer.json())


def test_only_reading_is_allowed(client):
    assert client.post("/health").status_code == 405
    assert client.get("/health/live").json()["status"] == "ok"
