"""Models by name: what named.py declares is what the libraries have, and is checked before use."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.engines.conftest import REPO, ROLES, Warm, messy, payload_for, python_of
from training.engines import named

SKLEARN = ["sklearn", "sklearn-1.4", "sklearn-1.9"]
LOOK = """
import importlib, inspect, json, sys
found = {}
for path in json.load(sys.stdin):
    module, _, name = path.rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    found[path] = {
        n: p.default for n, p in inspect.signature(kind).parameters.items()
        if p.default is None or isinstance(p.default, (bool, int, float, str, tuple))
    }
print(json.dumps(found))
"""


@pytest.mark.engine
@pytest.mark.parametrize("engine", SKLEARN)
def test_every_declared_hyperparameter_is_the_librarys_with_its_default(engine: str) -> None:
    models = named.models_of(engine).values()
    paths = [path for m in models for path in (m.classifier, m.regressor) if path]
    done = subprocess.run(
        [python_of(engine), "-c", LOOK],
        input=json.dumps(paths),
        capture_output=True,
        text=True,
        check=True,
        cwd=REPO,
    )
    real = json.loads(done.stdout)
    for model in models:
        for task in ("binary", "regression"):
            path = model.class_for(task)
            for name, parameter in model.parameters_for(task).items() if path else ():
                assert name in real[str(path)], f"{path} has no {name}"
                default = real[str(path)][name]
                unlike = (name == "early_stopping" and default == "auto") or parameter.default == (
                    None if name == "class_weight" else object()
                )
                assert unlike or parameter.default == default, (path, name)
                assert unlike or parameter.problem(default) is None, (path, name)


@pytest.mark.parametrize(
    ("model", "given", "told"),
    [
        ("random_forrest", {}, {"model": "Did you mean 'random_forest'?"}),
        ("linear", {}, {"model": "does no binary"}),
        ("random_forest", {"n_estimator": 10}, {"n_estimator": "Did you mean 'n_estimators'?"}),
        ("random_forest", {"n_estimators": 0}, {"n_estimators": "from 1 to 5000, not 0"}),
        ("random_forest", {"n_estimators": 10.5}, {"n_estimators": "a whole number"}),
        ("random_forest", {"n_estimators": True}, {"n_estimators": "a whole number"}),
        ("random_forest", {"n_estimators": None}, {"n_estimators": "not null"}),
        ("random_forest", {"criterion": "squared_error"}, {"criterion": "one of 'gini'"}),
        ("random_forest", {"max_features": True}, {"max_features": "one of"}),
        ("svm", {"kernel": "rfb"}, {"kernel": "Did you mean 'rbf'?"}),
        ("svm", {"epsilon": 0.1}, {"epsilon": "no hyperparameter"}),
        ("mlp", {"hidden_layer_sizes": []}, {"hidden_layer_sizes": "a list"}),
        ("mlp", {"hidden_layer_sizes": [50, 0]}, {"hidden_layer_sizes": "not 0"}),
        ("mlp", {"alpha": float("nan")}, {"alpha": "a number"}),
    ],
)
def test_what_a_model_does_not_take_is_told_with_the_nearest_name(
    model: str, given: dict[str, Any], told: dict[str, str]
) -> None:
    found = named.problems("sklearn", model, "binary", given)
    assert found.keys() == told.keys()
    for name, text in told.items():
        assert text in found[name]


def test_what_it_takes_comes_out_as_the_library_wants_it() -> None:
    given = {"hidden_layer_sizes": [50.0, 20], "alpha": 0.1, "early_stopping": True}
    assert named.problems("sklearn-1.4", "mlp", "regression", given) == {}
    assert named.cleaned("sklearn-1.4", "mlp", "regression", given) == {
        "hidden_layer_sizes": [50, 20],
        "alpha": 0.1,
        "early_stopping": True,
    }
    assert named.problems("sklearn", "random_forest", "binary", {"max_depth": None}) == {}


@pytest.mark.parametrize("name", sorted(named.MODELS["sklearn"]))
def test_what_is_searched_and_what_is_told_lies_within_the_limits(name: str) -> None:
    model = named.MODELS["sklearn"][name]
    for parameter in model.parameters:
        for value in parameter.search or ():
            assert parameter.problem(value) is None, (name, parameter.name)
        told = parameter.as_json()
        assert ":" not in told["name"]
        assert json.loads(json.dumps(told)) == told


# In the engine


@pytest.mark.engine
@pytest.mark.xdist_group("engines")
def test_a_model_by_name_is_the_only_candidate_and_has_exactly_these_hyperparameters(
    warm: Warm, tmp_path: Path
) -> None:
    """``warm`` runs through the engines; those that have models by name do this."""
    chosen = {"sklearn": ("svm", {"C": 3.0, "kernel": "linear"}), "sklearn-1.4": ("knn", {"p": 1})}
    if warm.engine not in chosen:
        pytest.skip("it has no models by name")
    model, given = chosen[warm.engine]
    table = messy(400, "multiclass")
    payload = payload_for(table, ROLES, "multiclass", budget_s=10, folds=3)
    ran = warm.train(table, payload | {"model": model, "hyperparameters": given})
    assert list(ran.candidates) == [f"{warm.engine}:{model}"]
    (told,) = [found["data"] for found in ran.candidates.values()]
    assert (told["engine"], told["params"]) == (warm.engine, given)
    assert sorted(ran.predictions(f"{warm.engine}:{model}")["row"].to_list()) == list(range(400))


@pytest.mark.engine
@pytest.mark.xdist_group("engines")
def test_wrong_hyperparameters_fail_with_a_sentence(warm: Warm) -> None:
    table = messy(100, "binary")
    payload = payload_for(table, ROLES, "binary", budget_s=5)
    ran = warm.train(table, payload | {"model": "knn", "hyperparameters": {"neighbours": 3}})
    (error,) = ran.of("error")
    assert error["code"] == "hyperparameters"
    assert error["data"]["hyperparameters"]
