"""Errors outside any view have the shape that their reader expects."""

import pytest
from django.test import Client

pytestmark = pytest.mark.django_db


def test_an_unknown_address_is_a_problem_under_api_and_a_page_elsewhere(client):
    answer = client.get("/api/nowhere")
    assert (answer.status_code, answer["Content-Type"]) == (404, "application/problem+json")
    assert answer.json()["code"] == "not-found"
    page = client.get("/nowhere")
    assert (page.status_code, page["Content-Type"]) == (404, "text/html; charset=utf-8")


def test_a_fault_of_ours_tells_nothing_of_its_inside(monkeypatch):
    def broken(*_args, **_kwargs):
        raise RuntimeError("a secret of the inside")

    monkeypatch.setattr("organizations.api.auth.register", broken)
    form = {"username": "ada", "email": "ada@example.org", "password": "difference engine 1"}
    client = Client(raise_request_exception=False)
    answer = client.post("/api/auth/register", form, content_type="application/json")
    assert (answer.status_code, answer["Content-Type"]) == (500, "application/problem+json")
    assert "secret" not in answer.content.decode()
    assert answer["X-Request-ID"]
