"""Each request has an id, and its log lines say it."""

import io
import json
import logging
import sys

import pytest
import structlog
from django.http import HttpResponse
from django.test import RequestFactory

from flowml_site.logs import RequestIdMiddleware, configure


def respond(request):
    structlog.get_logger("test").info("inside", thing=7)
    logging.getLogger("test.old").warning("old %s", "style")
    return HttpResponse("x")


@pytest.fixture
def lines(monkeypatch):
    """Make one request; gives its response and its log lines, as objects."""
    written = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setenv("LOG_FORMAT", "json")
        patch.setattr(sys, "stderr", written)
        configure()

    def of(**headers):
        written.truncate(0)
        written.seek(0)
        request = RequestFactory().get("/some/where", headers=headers)
        response = RequestIdMiddleware(respond)(request)
        return response, [json.loads(line) for line in written.getvalue().splitlines()]

    yield of
    configure()


def test_every_line_of_a_request_has_its_id(lines):
    response, written = lines()
    assert len(written) == 3
    assert {line["request_id"] for line in written} == {response["X-Request-ID"]}
    assert [line["message"] for line in written] == ["inside", "old style", "request"]
    assert written[0]["thing"] == 7
    assert (written[2]["path"], written[2]["status"]) == ("/some/where", 200)


def test_a_callers_id_is_kept_and_sent_back(lines):
    response, written = lines(x_request_id="caller-0001")
    assert response["X-Request-ID"] == "caller-0001"
    assert written[0]["request_id"] == "caller-0001"


@pytest.mark.parametrize("bad", ["short", "a" * 65, 'quo"ted-and-long', "with blanks in it"])
def test_an_id_that_could_do_harm_is_replaced(lines, bad):
    response, _ = lines(x_request_id=bad)
    assert response["X-Request-ID"] != bad
    assert len(response["X-Request-ID"]) == 32


def test_one_request_does_not_get_anothers_id(lines):
    first, _ = lines()
    second, written = lines()
    assert first["X-Request-ID"] != second["X-Request-ID"]
    assert {line["request_id"] for line in written} == {second["X-Request-ID"]}
    assert structlog.contextvars.get_contextvars() == {}


@pytest.mark.django_db
def test_the_site_sends_the_id_back(client):
    answer = client.get("/health/live", headers={"x-request-id": "caller-0002"})
    assert answer["X-Request-ID"] == "caller-0002"
