"""Text classifiers: fine-tuned transformers, as a node trains, stores and asks them."""

from __future__ import annotations

import json
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.engines.conftest import Ran, Warm, payload_for

pytestmark = [pytest.mark.engine, pytest.mark.heavy, pytest.mark.xdist_group("engines")]

GOOD = ["a joy to watch", "warm and funny", "the best of the year", "moving, clever, great"]
BAD = ["a waste of time", "dull and long", "the worst of the year", "boring, silly, bad"]
SMALL = {"layers": 1, "hidden_size": 32, "heads": 2, "batch_size": 8, "max_length": 16}


def reviews(rows: int) -> pl.DataFrame:
    random = np.random.default_rng(0)
    kinds = random.integers(0, 2, rows)
    said = [str(random.choice(GOOD if kind else BAD)) for kind in kinds]
    return pl.DataFrame(
        {
            "said": [f"{text}, said {row % 7}" for row, text in enumerate(said)],
            "stars": kinds * 3 + 1,
            "target": np.where(kinds == 1, "good", "bad"),
        }
    )


def payload(table: pl.DataFrame, budget_s: float, given: dict[str, Any], **more: Any) -> Any:
    roles = {"said": "text", "stars": "numeric"}
    more = {"model": "bert", "hyperparameters": given} | more
    return payload_for(table, roles, "binary", budget_s=budget_s, **more)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: Any) -> Path:
    """The operator's folder of pretrained weights; a test puts some there."""
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def torch(tmp_path_factory: Any, weights: Path) -> Iterator[Warm]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWML_WEIGHTS", str(weights))
        parent = Warm("torch", tmp_path_factory.mktemp("texts"))
    yield parent
    parent.close()


@pytest.fixture(scope="module")
def tuned(torch: Warm) -> Ran:
    """Fine-tuned from MiniLM's weights, which come as a package."""
    table = reviews(110)
    given = {"epochs": 3, "patience": 1, "max_length": 16, "learning_rate": 3e-4}
    return torch.train(table, payload(table, 60, given))


def test_pretrained_weights_learn_from_few_texts(tuned: Ran) -> None:
    (one,) = tuned.candidates.values()
    assert one["key"] == "torch:bert"
    assert any("pretrained weights (MiniLM)" in told["message"] for told in tuned.of("notice"))
    held = tuned.predictions("torch:bert")
    truth = reviews(110)["target"].to_numpy()[held["row"].to_numpy()]
    assert (held["prediction"].to_numpy() == truth).mean() > 0.9
    shares = held.drop("row", "prediction").to_numpy()
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)


def test_each_epoch_is_told_with_its_figures(tuned: Ran) -> None:
    curves = [m["data"]["curve"] for m in tuned.of("progress") if m["data"].get("curve")]
    assert [point["epoch"] for point in curves[-1]] == list(range(1, len(curves[-1]) + 1))
    figures = {"epoch", "loss", "validation_loss", "validation_accuracy"}
    assert all(point.keys() == figures for point in curves[-1])
    assert curves[-1][-1]["loss"] < curves[-1][0]["loss"]
    names = [message["key"] for message in tuned.of("checkpoint")]
    assert names == ["torch:bert#0"] * len(curves[-1])


def test_a_stored_model_says_the_same_in_another_process(tuned: Ran, torch: Warm) -> None:
    held = tuned.predictions("torch:bert").head(5)
    texts = reviews(110)["said"].to_list()
    asked = [[texts[row]] for row in held["row"]]
    answers = torch.serve(tuned.artifact("torch:bert"), [(["said"], asked), (["said"], [["x"]])])
    first, other = answers.result["data"]["answers"]
    found = np.array(first["probabilities"])
    np.testing.assert_allclose(found, held.drop("row", "prediction").to_numpy(), atol=1e-5)
    assert len(other["predictions"]) == 1


def test_an_artifact_holds_arrays_and_text_alone_and_runs_by_itself(
    tuned: Ran, torch: Warm, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tuned.artifact("torch:bert")) as archive:
        names = [name for name in archive.namelist() if name.startswith("model/")]
        archive.extractall(tmp_path / "zip")
    assert {Path(name).suffix for name in names} == {".json", ".safetensors"}
    (tmp_path / "rows.csv").write_text('said\n"a joy to watch, said 3"\n', encoding="utf-8")
    ran = subprocess.run(
        [torch.python, "-I", tmp_path / "zip" / "predict.py", tmp_path / "rows.csv", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(ran.stdout)["predictions"] == ["good"]


def test_without_weights_it_starts_from_nothing_and_with_some_from_those(
    torch: Warm, weights: Path
) -> None:
    table = reviews(200)
    given = SMALL | {"epochs": 30, "patience": 30}
    ran = torch.train(table, payload(table, 30, given, model="transformer"))
    told = " ".join(message["message"] for message in ran.of("notice"))
    assert "starts from random weights" in told
    assert "layers and hidden_size and heads of its own were asked for" in told
    assert "Column 'stars' is left out: this model reads texts" in told
    held = ran.predictions("torch:transformer")
    truth = table["target"].to_numpy()[held["row"].to_numpy()]
    assert (held["prediction"].to_numpy() == truth).mean() > 0.9
    # What was learnt is put into the operator's folder, in the hub's layout.
    folder = weights / "transformer"
    folder.mkdir()
    with zipfile.ZipFile(ran.artifact("torch:transformer")) as archive:
        for name, called in [("weights", "model.safetensors"), ("config", "config.json"),
                             ("tokenizer", "tokenizer.json")]:  # fmt: skip
            stored = archive.read(f"model/{name}.{called.partition('.')[2]}")
            (folder / called).write_bytes(stored)
    given = {"epochs": 1, "batch_size": 8, "max_length": 16}
    again = torch.train(table, payload(table, 30, given, model="transformer"))
    told = " ".join(message["message"] for message in again.of("notice"))
    assert "starts from pretrained weights (transformer)" in told
    first, then = (
        next(iter(one.candidates.values()))["data"]["curve"][0]["loss"] for one in (ran, again)
    )
    assert then < first / 2


def test_small_tables_are_ranked_out_of_fold(torch: Warm) -> None:
    table = reviews(90)
    given = SMALL | {"epochs": 8, "patience": 8}
    ran = torch.train(table, payload_of_folds(table, given))
    found = ran.predictions("torch:bert")
    assert ran.parts is not None
    assert sorted(found["row"].to_list()) == np.flatnonzero(ran.parts != -3).tolist()


def payload_of_folds(table: pl.DataFrame, given: dict[str, Any]) -> Any:
    return payload_for(
        table, {"said": "text"}, "binary", budget_s=40, folds=3, model="bert", hyperparameters=given
    )


def test_the_budget_is_kept_by_an_epoch_that_is_longer(torch: Warm) -> None:
    table = reviews(20_000)
    ran = torch.train(table, payload(table, 12, SMALL | {"epochs": 50}))
    assert ran.seconds < 12 + 5
    assert ran.candidates["torch:bert"]["data"]["params"]["epochs_run"] < 50


def test_a_fit_goes_on_from_what_another_node_has_handed_over(torch: Warm) -> None:
    table = reviews(200)
    given = SMALL | {"epochs": 6, "patience": 6}
    whole = torch.train(table, payload(table, 40, given))
    kept = whole.of("checkpoint")[2]["files"]["checkpoint"]
    again = torch.train(
        table, payload(table, 40, given), attempt=2,
        checkpoints={"torch:bert#0": str(whole.folder / kept)},
    )  # fmt: skip
    assert any("goes on from epoch 4" in told["message"] for told in again.of("notice"))
    assert len(again.of("checkpoint")) == 3
    for column in ("p0", "p1"):
        np.testing.assert_allclose(
            again.predictions("torch:bert")[column], whole.predictions("torch:bert")[column],
            atol=1e-6,
        )  # fmt: skip
