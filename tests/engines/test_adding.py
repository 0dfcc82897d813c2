"""The engine in docs/adding-an-engine.md is one: taken from the page, it keeps the contract."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.engines import test_contract as contract
from tests.engines.conftest import REPO, ROLES, Ran, Warm, messy, payload_for, python_of
from training import catalog

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("engines")]
PAGE = REPO / "docs" / "adding-an-engine.md"


@pytest.fixture(scope="module")
def home(tmp_path_factory: Any) -> Path:
    """A copy of the training package with the page's engine in it."""
    home = tmp_path_factory.mktemp("adding")
    (home / "training").mkdir()
    for name in ("__init__.py", "splits.py"):
        shutil.copy(REPO / "training" / name, home / "training")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPO / "training" / "engines", home / "training" / "engines", ignore=ignored)
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (home / "training" / "engines" / "forest.py").write_text(code)
    return home


@pytest.fixture(scope="module")
def forest(home: Path) -> Iterator[Warm]:
    # PyCaret's virtualenv has all that the page's requirements name.
    parent = Warm("forest", home, python=python_of("pycaret"), first=home)
    yield parent
    parent.close()


def trained(forest: Warm, kind: str, **more: Any) -> tuple[pl.DataFrame, Ran]:
    table = messy(300, kind)
    ran = forest.train(table, payload_for(table, ROLES, kind, budget_s=10, **more))
    assert list(ran.candidates) == ["forest:20", "forest:100"], ran.messages
    return table, ran


def test_the_pages_engine_is_offered(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "FOLDER", home / "training" / "engines")
    found = catalog.engines.__wrapped__()["forest"]
    assert (found.title, found.tasks) == ("Forest", ("binary", "multiclass", "regression"))


def test_the_pages_engine_keeps_the_contract(forest: Warm, tmp_path: Path) -> None:
    both = trained(forest, "multiclass")
    contract.test_predictions_cover_each_held_out_row_once(both)
    contract.test_progress_only_grows_and_ends_at_one(both)
    contract.test_model_server_gives_the_stored_predictions_whatever_the_column_order(forest, both)
    contract.test_gaps_unseen_categories_and_texts_for_numbers_are_taken(forest, both)
    contract.test_wrong_rows_are_refused_by_column(forest, both)
    contract.test_train_py_fits_the_same_model_again(forest, both, tmp_path)
    done = contract.refitted(forest, both, tmp_path, "forest:100")
    assert done.result["data"]["train_rows"] == 240


def test_the_pages_engine_predicts_out_of_fold_and_goes_on_where_it_was(forest: Warm) -> None:
    table, ran = trained(forest, "regression", folds=3)
    assert sorted(ran.predictions("forest:20")["row"].to_list()) == list(range(300))
    again = forest.train(table, ran.payload, done=["forest:20"], attempt=2)
    assert list(again.candidates) == ["forest:100"]
