"""Routing by kind of model, and the pure parts of an inference."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import inference, jobtypes

LOCKS = {
    "sklearn", "sklearn-1.4", "torch", "torch-gpu", "pytorch-2.0", "pytorch-2.1", "pytorch-2.1-gpu",
    "tensorflow", "tensorflow-gpu", "pycaret",
}  # fmt: skip
MODELS = {
    "sklearn": {"random_forest": 1, "svm": 1},
    "torch": {"bert": 1, "resnet": 1, "vgg": 1, "transformer": 1, "tabular_network": 1},
    "tensorflow": {"inception": 1, "mobilenet": 1, "tabular_network": 1},
}


@pytest.mark.parametrize(
    ("model_type", "override", "gpu", "engine", "device"),
    [
        ("bert", "", False, "torch", "cpu"),
        ("transformer", "", True, "torch-gpu", "gpu"),
        ("resnet", "pytorch", False, "torch", "cpu"),
        ("vgg", "pytorch-2.1", False, "pytorch-2.1", "cpu"),
        ("vgg", "pytorch-2.1", True, "pytorch-2.1-gpu", "gpu"),
        ("vgg", "pytorch-2.1-gpu", False, "pytorch-2.1-gpu", "gpu"),
        ("inception", "", False, "tensorflow", "cpu"),
        ("mobilenet", "tensorflow", True, "tensorflow-gpu", "gpu"),
        ("random_forest", "", False, "sklearn", "cpu"),
        ("svm", "sklearn-1.4", False, "sklearn-1.4", "cpu"),
        ("tabular_network", "tensorflow", False, "tensorflow", "cpu"),
    ],
)
def test_the_table_says_where_a_request_goes(model_type, override, gpu, engine, device):
    found = jobtypes.route(model_type, override, gpu, locks=LOCKS, models=MODELS)
    assert found == jobtypes.Route(engine, model_type, device)


@pytest.mark.parametrize(
    ("model_type", "override", "gpu", "field"),
    [
        ("bert", "sklearn", False, "framework_override"),
        ("bert", "tensorflow", False, "framework_override"),
        ("bert", "pytorch-1.0", False, "framework_override"),
        ("vgg", "pytorch-2.0", True, "requires_gpu"),
        ("svm", "", True, "requires_gpu"),
        ("gpt", "", False, "model_type"),
        ("knn", "", False, "model_type"),
    ],
)
def test_what_has_no_route_names_the_field_and_what_there_is(model_type, override, gpu, field):
    with pytest.raises(jobtypes.NoRoute) as refusal:
        jobtypes.route(model_type, override, gpu, locks=LOCKS, models=MODELS)
    assert refusal.value.field == field


def test_an_engine_that_is_not_installed_is_told_with_those_that_are():
    with pytest.raises(jobtypes.NoRoute, match=r"does not have.*random_forest"):
        jobtypes.route("bert", "", False, locks={"sklearn"}, models=MODELS)


def test_the_docs_show_the_table_as_it_is():
    docs = Path(__file__).resolve().parents[2] / "docs/api.md"
    assert jobtypes.table() in docs.read_text(), "python -m training.jobtypes prints it"


shares = st.lists(st.floats(0.001, 1), min_size=2, max_size=6).map(
    lambda one: [share / sum(one) for share in one]
)


@given(shares, st.floats(0.05, 50))
def test_softening_keeps_the_order_and_sums_to_one(given_shares, temperature):
    soft = inference.soften(given_shares, temperature)
    assert sum(soft) == pytest.approx(1)
    for a, b in pairwise(given_shares):
        left, right = soft[given_shares.index(a)], soft[given_shares.index(b)]
        assert (left >= right) if a >= b else (left <= right)


def test_a_high_temperature_brings_shares_together_and_a_low_one_apart():
    assert max(inference.soften([0.7, 0.3], 10)) < 0.6
    assert max(inference.soften([0.7, 0.3], 0.1)) > 0.99
    assert inference.soften([1.0, 0.0], 2)[0] > 0.99


def test_below_the_threshold_no_class_is_named():
    told = inference.shape(["a"], [[0.6, 0.4]], ["a", "b"], {"confidence_threshold": 0.7})
    assert told == [{"prediction": None, "confidence": 0.6}]
    assert inference.shape([1.5], None, None, {}) == [{"prediction": 1.5}]


def test_of_texts_so_many_words_are_read():
    columns = [{"name": "review", "role": "text"}]
    for given_input in ("one two three", {"text": "one two three"}, ["one two three"]):
        asked = inference.read_input(given_input, columns, 2)
        assert asked.rows == [{"review": "one two"}]


def columns(**roles):
    return [
        {"name": name, "role": role, "dtype": "float" if role == "numeric" else "string"}
        for name, role in roles.items()
    ]


def test_what_reads_texts_takes_them_alone_and_a_table_is_taken_whole():
    given = columns(said="text", size="numeric", town="categorical", label="categorical")
    found = jobtypes.choice("bert", given, "label")
    assert found["exclude"] == ["size", "town"]
    assert found["column_types"] == {"said": "text"}
    assert jobtypes.choice("random_forest", given, "label") == {}
    short = columns(size="numeric", town="categorical", label="categorical")
    assert jobtypes.choice("transformer", short, "label")["column_types"] == {"town": "text"}
    with pytest.raises(jobtypes.NoRoute, match="learns from texts, and the data set has none"):
        jobtypes.choice("bert", columns(size="numeric", label="categorical"), "label")
    with pytest.raises(jobtypes.NoRoute, match="pictures"):
        jobtypes.choice("resnet", given, "label")
