"""Image classifiers on PyTorch, as a node trains, stores and asks them."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from tests.engines.conftest import Warm, payload_for

pytestmark = [pytest.mark.engine, pytest.mark.heavy, pytest.mark.xdist_group("engines")]


def picture(random: np.random.Generator, kind: str) -> bytes:
    """A noisy picture of 32 x 32, darker on the left or at the top."""
    slope = np.linspace(0, 180, 32)
    grey = slope[None, :] if kind == "left" else slope[:, None]
    seen = grey[..., None] + random.normal(0, 20, (32, 32, 3)) + random.integers(0, 40, 3)
    file = io.BytesIO()
    Image.fromarray(np.clip(seen, 0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: Any) -> Path:
    """The operator's folder of pretrained weights; the tests put some there."""
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def torch(tmp_path_factory: Any, weights: Path) -> Iterator[Warm]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWML_WEIGHTS", str(weights))
        parent = Warm("torch", tmp_path_factory.mktemp("pictures"))
    yield parent
    parent.close()


@pytest.mark.parametrize(
    ("model", "given"),
    [("resnet", {"depth": 10, "width": 0.125}), ("vgg", {"depth": 11, "width": 0.125})],
)
def test_a_picture_classifier_learns_is_stored_and_says_the_same_again(
    torch: Warm, weights: Path, model: str, given: dict[str, Any]
) -> None:
    random = np.random.default_rng(0)
    kinds = [("left", "top")[row % 2] for row in range(120)]
    shown = [picture(random, kind) for kind in kinds]
    table = pl.DataFrame({"image": shown, "target": kinds})
    given |= {"epochs": 10, "patience": 10, "batch_size": 8, "shift": False}
    payload = payload_for(
        table, {"image": "image"}, "binary", budget_s=60, model=model, hyperparameters=given
    )
    ran = torch.train(table, payload)
    (one,) = ran.candidates.values()
    assert one["data"]["params"]["started_from"] == "random weights"
    told = " ".join(message["message"] for message in ran.of("notice"))
    assert "starts from random weights: there are no pretrained weights here" in told
    held = ran.predictions(f"torch:{model}")
    truth = np.array(kinds)[held["row"].to_numpy()]
    assert (held["prediction"].to_numpy() == truth).mean() > 0.8
    rows = held["row"].to_list()[:4]
    asked = [[base64.b64encode(shown[row]).decode()] for row in rows]
    answer = torch.serve(ran.artifact(f"torch:{model}"), [(["image"], asked)])
    found = np.array(answer.result["data"]["answers"][0]["probabilities"])
    np.testing.assert_allclose(found, held.drop("row", "prediction").to_numpy()[:4], atol=1e-4)
    with zipfile.ZipFile(ran.artifact(f"torch:{model}")) as archive:
        names = [name for name in archive.namelist() if name.startswith("model/")]
        as_the_hub_has_it(archive, weights / model)
    assert {Path(name).suffix for name in names} == {".json", ".safetensors"}
    # What was learnt lies in the operator's folder now, as pretrained weights do.
    again = torch.train(table, payload | {"hyperparameters": given | {"epochs": 1}})
    told = " ".join(message["message"] for message in again.of("notice"))
    assert f"starts from pretrained weights ({model})" in told
    (other,) = again.candidates.values()
    assert other["data"]["params"]["started_from"] == f"pretrained weights ({model})"
    assert other["data"]["curve"][0]["loss"] < one["data"]["curve"][0]["loss"]


def as_the_hub_has_it(archive: zipfile.ZipFile, folder: Path) -> None:
    """A model of transformers, or one of plain torch, as it would be fetched."""
    folder.mkdir()
    stored = archive.read("model/weights.safetensors")
    (folder / "model.safetensors").write_bytes(stored)
    config = json.loads(archive.read("model/network.json")).get("config")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
