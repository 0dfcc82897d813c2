"""The Open Inference Protocol: what clients of it send, and what they get."""

from typing import Any

import pytest
from django.test import Client
from hypothesis import given
from hypothesis import strategies as st

from clusters import actions, serving, tensors
from clusters.api import protocol
from organizations import service
from tests.clusters import make
from tests.clusters.make import Node, deploy, settle
from tests.factories import bearer
from tests.training.make import FakeServing
from training import serving as models

NUMBERS = [{"name": "a", "dtype": "float"}, {"name": "b", "dtype": "integer"}]
MIXED = [{"name": "a", "dtype": "float"}, {"name": "colour", "dtype": "string"}]


def tensor(name: str, shape: Any, datatype: str, data: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


@given(
    rows=st.lists(st.tuples(st.floats(-9, 9), st.integers(-9, 9)), min_size=1, max_size=8),
    nested=st.booleans(),
)
def test_one_tensor_and_a_tensor_for_each_column_say_the_same(rows, nested):
    flat = [value for row in rows for value in row]
    table = [list(row) for row in rows] if nested else flat
    one = {"inputs": [tensor("x", [len(rows), 2], "FP64", table)]}
    each = {
        "inputs": [
            tensor("b", [len(rows), 1], "INT64", [[b] for _, b in rows]),
            tensor("a", [len(rows)], "FP32", [a for a, _ in rows]),
        ]
    }
    wanted = [{"a": a, "b": b} for a, b in rows]
    assert tensors.rows_of(NUMBERS, one) == tensors.rows_of(NUMBERS, each) == wanted


GOOD = tensor("a", [2], "FP64", [1.5, None])
REFUSED = [
    ({}, "Send {"),
    ({"inputs": []}, "no inputs"),
    ({"inputs": [7]}, "is no object"),
    ({"inputs": [{**GOOD, "name": ""}]}, "has no name"),
    ({"inputs": [{**GOOD, "shape": [3]}]}, "takes 3 values, and 2 came"),
    ({"inputs": [{**GOOD, "shape": [-1]}]}, "whole numbers"),
    ({"inputs": [{**GOOD, "shape": [True]}]}, "whole numbers"),
    ({"inputs": [{**GOOD, "shape": [10**9]}]}, "more than one request takes"),
    ({"inputs": [{**GOOD, "datatype": "FP128"}]}, "no datatype 'FP128'"),
    ({"inputs": [{**GOOD, "datatype": "INT8"}]}, "value 0, '1.5', is no INT8"),
    ({"inputs": [{**GOOD, "data": "AAAA"}]}, "Binary data is not taken"),
    ({"inputs": [GOOD, GOOD]}, "comes twice"),
    ({"inputs": [GOOD, tensor("colour", [1], "BYTES", ["red"])]}, "'a' 2, 'colour' 1"),
    ({"inputs": [tensor("x", [1, 2], "FP64", [1, 2])]}, "'colour' is no number"),
    ({"inputs": [tensor("a", [1, 3], "FP64", [1, 2, 3])]}, "its shape is [1, 3]"),
    ({"inputs": [tensor("a", [1], "BOOL", [1])]}, "is no BOOL"),
    ({"inputs": [tensor("a", [1], "UINT8", [-1])]}, "is no UINT8"),
    ({"inputs": [tensor("a", [1], "INT8", [True])]}, "is no INT8"),
    ({"inputs": [tensor("a", [1], "BYTES", [1])]}, "is no BYTES"),
]


@pytest.mark.parametrize(("request_", "word"), REFUSED)
def test_tensors_that_make_no_rows_are_refused(request_, word):
    assert tensors.rows_of(MIXED, {"inputs": [GOOD]}) == [{"a": 1.5}, {"a": None}]
    with pytest.raises(tensors.BadTensors) as refused:
        tensors.rows_of(MIXED, request_)
    assert word in str(refused.value)


# --- Over HTTP ---


@pytest.fixture
def by(db):
    return make.member()


@pytest.fixture
def served(by, tmp_path):
    fake = FakeServing(tmp_path)
    fake.answer = {
        "predictions": ["kind 1", "kind 0"],
        "probabilities": [[0.2, 0.8], [0.7, 0.3]],
        "classes": ["kind 0", "kind 1"],
    }
    node = Node(make.node(by, address=fake.address))
    home = make.cluster(by, node.worker)
    one = deploy(by, make.model(by), "flowers")
    settle(home, node)
    yield one, fake
    fake.stop()
    for kept in (serving._places, models._models, protocol._ids):
        kept.clear()
    models._pool = models._Pool()


INPUTS = [
    tensor("petal_cm", [2], "FP64", [1.0, 2.0]),
    tensor("colour", [2], "BYTES", ["red", "blue"]),
    tensor("weight_g", [2, 1], "FP32", [50.0, None]),
]


def ask(by, body, name="flowers", status=200, **headers):
    client = Client(headers={**bearer(by.user), **headers})
    answer = client.post(f"/v2/models/{name}/infer", body, content_type="application/json")
    assert answer.status_code == status, answer.content
    return answer.json()


def test_a_client_reads_what_a_model_takes_and_asks_it(by, served):
    _, fake = served
    client = Client(headers=bearer(by.user))
    assert client.get("/v2/models/flowers/ready").json() == {"name": "flowers", "ready": True}
    told = client.get("/v2/models/flowers").json()
    assert told["name"] == "flowers"
    assert {"name": "petal_cm", "datatype": "FP64", "shape": [-1]} in told["inputs"]
    assert {"name": "colour", "datatype": "BYTES", "shape": [-1]} in told["inputs"]
    assert {one["name"] for one in told["outputs"]} == {"predictions", "probabilities", "classes"}
    answer = ask(by, {"id": "42", "inputs": INPUTS})
    assert fake.asked[0]["rows"] == [[1.0, "red", 50.0], [2.0, "blue", None]]
    assert (answer["id"], answer["model_name"]) == ("42", "flowers")
    assert answer["parameters"]["revision"] == 1
    assert answer["outputs"] == [
        tensor("predictions", [2], "BYTES", ["kind 1", "kind 0"]),
        tensor("probabilities", [2, 2], "FP64", [0.2, 0.8, 0.7, 0.3]),
        tensor("classes", [2], "BYTES", ["kind 0", "kind 1"]),
    ]
    only = ask(by, {"inputs": INPUTS, "outputs": [{"name": "classes"}]})
    assert [output["name"] for output in only["outputs"]] == ["classes"]
    assert len(only["id"]) == 36


def test_errors_have_the_shape_of_the_protocol(by, served):
    stranger = make.member()
    for told, word in (
        (ask(by, {"inputs": []}, status=400), "no inputs"),
        (ask(by, {"inputs": INPUTS[:1]}, status=400), "Column 'colour' is missing"),
        (ask(by, {"inputs": INPUTS, "id": 7}, status=400), "id is a text"),
        (ask(by, {"inputs": INPUTS, "outputs": [{"name": "x"}]}, status=400), "no output 'x'"),
        (ask(by, {"inputs": INPUTS}, name="roses", status=404), "Nothing"),
        (ask(stranger, {"inputs": INPUTS}, status=404), "Nothing"),
        (ask(by, {"inputs": INPUTS}, status=401, Authorization="Bearer no"), ""),
    ):
        assert list(told) == ["error"]
        assert word in told["error"]


def test_a_deployment_that_is_stopped_is_not_ready(by, served):
    one, _ = served
    actions.stop(by, one)
    one.placed.all().delete()
    serving._places.clear()
    client = Client(headers=bearer(by.user))
    answer = client.get("/v2/models/flowers/ready")
    assert (answer.status_code, answer.json()) == (503, {"name": "flowers", "ready": False})
    assert client.get("/v2/models/flowers").status_code == 200
    assert "start it first" in ask(by, {"inputs": INPUTS}, status=503)["error"]


def test_a_token_for_one_deployment_asks_it_alone(by, served):
    one, _ = served
    other = deploy(by, make.model(by), "roses")
    secret = service.make(by, name="app", deployment=one.pk)[1]
    client = Client(headers={"Authorization": f"Bearer {secret}"})
    sent = {"data": {"inputs": INPUTS}, "content_type": "application/json"}
    assert client.get("/v2/models/flowers").status_code == 200
    assert client.post("/v2/models/flowers/infer", **sent).status_code == 200
    refused = client.post(f"/v2/models/{other}/infer", **sent)
    assert (refused.status_code, "not made for this" in refused.json()["error"]) == (403, True)
