"""Picture classifiers of keras.applications, as a node trains, stores and asks them."""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from tests.engines.conftest import Ran, Warm, payload_for

pytestmark = [pytest.mark.engine, pytest.mark.heavy, pytest.mark.xdist_group("engines")]

SMALL = {"width": 0.25, "size": 64, "batch_size": 8, "epochs": 8, "patience": 8}
SMALL |= {"learning_rate": 3e-3}  # for weights that are random, though they come as pretrained ones
KEY = "tensorflow:mobilenet"
FILE = "mobilenet_2_5_224_tf_no_top.h5"  # as keras.applications calls it


def flags(rows: int) -> pl.DataFrame:
    """Noise with a red square in its middle, or with a blue side."""
    random = np.random.default_rng(0)
    kinds = random.integers(0, 2, rows)
    files = []
    for kind in kinds:
        pixels = random.integers(0, 90, (32, 32, 3)).astype(np.uint8)
        if kind:
            pixels[8:24, 8:24] = (250, 60, 60)
        else:
            pixels[:, :10] = (60, 60, 250)
        target = io.BytesIO()
        Image.fromarray(pixels).save(target, "PNG")
        files.append(target.getvalue())
    return pl.DataFrame({"image": files, "target": np.where(kinds == 1, "red", "blue")})


def payload(table: pl.DataFrame, budget_s: float, given: dict[str, Any], **more: Any) -> Any:
    more = {"model": "mobilenet", "hyperparameters": given} | more
    return payload_for(table, {"image": "image"}, "binary", budget_s=budget_s, **more)


@pytest.fixture(scope="module")
def keras(tmp_path_factory: Any) -> Iterator[Warm]:
    """With a folder of weights, as an operator has one, for MobileNet alone."""
    weights = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWML_WEIGHTS", str(weights))
        parent = Warm("tensorflow", tmp_path_factory.mktemp("pictures"))
    (weights / "mobilenet").mkdir()
    path = str(weights / "mobilenet" / FILE)
    assert parent.run("tests.engines.serving:keras_weights", {"payload": {"path": path}}).result
    yield parent
    parent.close()


@pytest.fixture(scope="module")
def learnt(keras: Warm) -> Ran:
    table = flags(240)
    return keras.train(table, payload(table, 90, SMALL))


def test_it_learns_from_the_operators_weights_and_says_so(learnt: Ran) -> None:
    (one,) = learnt.candidates.values()
    assert one["key"] == KEY
    start = f"pretrained weights ({FILE})"
    assert any(f"starts from {start}" in told["message"] for told in learnt.of("notice"))
    assert one["data"]["params"]["started_from"] == start
    held = learnt.predictions(KEY)
    truth = flags(240)["target"].to_numpy()[held["row"].to_numpy()]
    assert (held["prediction"].to_numpy() == truth).mean() > 0.85
    shares = held.drop("row", "prediction").to_numpy()
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)


def test_each_epoch_is_told_with_its_figures(learnt: Ran) -> None:
    curves = [m["data"]["curve"] for m in learnt.of("progress") if m["data"].get("curve")]
    assert [point["epoch"] for point in curves[-1]] == list(range(1, len(curves[-1]) + 1))
    assert curves[-1][-1]["loss"] < curves[-1][0]["loss"]
    assert len(learnt.of("checkpoint")) >= len(curves[-1])


def test_a_stored_model_says_the_same_in_another_process(learnt: Ran, keras: Warm) -> None:
    """Asked by base64, as in a request; and one row as among many."""
    held = learnt.predictions(KEY).head(5)
    files = flags(240)["image"].to_list()
    asked = [[base64.b64encode(files[row]).decode()] for row in held["row"]]
    calls = [(["image"], asked), (["image"], asked[:1]), (["image"], [["bm8gcGljdHVyZQ=="]])]
    answers = keras.serve(learnt.artifact(KEY), calls).result["data"]["answers"]
    found = np.array(answers[0]["probabilities"])
    np.testing.assert_allclose(found, held.drop("row", "prediction").to_numpy(), atol=1e-5)
    np.testing.assert_allclose(answers[1]["probabilities"], found[:1], atol=1e-5)
    assert "no picture" in str(answers[2])
    with zipfile.ZipFile(learnt.artifact(KEY)) as archive:
        names = [name for name in archive.namelist() if name.startswith("model/")]
    assert {Path(name).suffix for name in names} == {".json", ".npz"}  # arrays and text alone


def test_a_fit_goes_on_from_what_another_node_has_handed_over(learnt: Ran, keras: Warm) -> None:
    kept = learnt.of("checkpoint")[5]["files"]["checkpoint"]
    table = flags(240)
    again = keras.train(
        table, payload(table, 90, SMALL), attempt=2,
        checkpoints={f"{KEY}#0": str(learnt.folder / kept)},
    )  # fmt: skip
    assert any("goes on from epoch 7" in told["message"] for told in again.of("notice"))
    assert len(again.of("checkpoint")) == 2
    np.testing.assert_allclose(
        again.predictions(KEY)["p0"], learnt.predictions(KEY)["p0"], atol=0.01
    )


def test_inception_learns_likewise_from_nothing_and_says_so(keras: Warm) -> None:
    table = flags(30)  # what takes long is to build and to trace so large a network
    given = {"size": 75, "epochs": 1, "batch_size": 8}
    ran = keras.train(table, payload(table, 120, given, model="inception"))
    assert ran.seconds < 120 + 5
    assert any("starts from random weights" in told["message"] for told in ran.of("notice"))
    shares = ran.predictions("tensorflow:inception").drop("row", "prediction").to_numpy()
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
