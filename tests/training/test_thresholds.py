"""What a binary model does at each threshold, from stored points, and the page that shows it."""

import re
from typing import Any

import numpy as np
import polars as pl
import pytest
from django.test import Client

from tests.training import make
from training import pages, thresholds
from training.evaluation import evaluate


def curves(n: int = 120, seed: int = 1, ties: bool = False) -> tuple[Any, Any, dict[str, Any]]:
    """True codes, probabilities of "yes", and what the scorer stores of them."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, 2, n)
    said = np.clip(0.5 + (truth - 0.5) * 0.4 + random.normal(0, 0.2, n), 0, 1)
    said = said.round(1 if ties else 3)
    shares = np.stack([1 - said, said], axis=1)
    names = np.array(["no", "yes"])[(said >= 0.5).astype(int)]
    scored = evaluate(
        "binary", truth, names, shares, metric="roc_auc", classes=["no", "yes"],
        positive_class="yes",
    )  # fmt: skip
    return truth, said, scored.curves


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.4999, 0.5, 0.8, 1.0])
def test_counts_at_a_threshold_are_those_of_the_rows(threshold: float, ties: bool) -> None:
    truth, said, stored = curves(ties=ties)
    told = thresholds.of(stored)
    assert told is not None
    now = thresholds.at(told, threshold)
    named = said >= threshold
    assert now["tp"] == int((named & (truth == 1)).sum())
    assert now["fp"] == int((named & (truth == 0)).sum())
    assert now["fn"] == int((~named & (truth == 1)).sum())
    assert now["tn"] == int((~named & (truth == 0)).sum())
    if named.any():
        assert now["precision"] == pytest.approx(truth[named].mean())
        assert now["lift"] == pytest.approx(truth[named].mean() / truth.mean())
    assert now["recall"] == pytest.approx(named[truth == 1].mean())


def test_where_nothing_is_named_there_is_no_precision() -> None:
    _, _, stored = curves()
    told = thresholds.of(stored)
    assert told is not None
    told["points"] = [[None, 0.0, 0.0], [0.7, 0.5, 1.0]]
    now = thresholds.at(told, 0.9)
    assert (now["precision"], now["lift"], now["recall"]) == (None, None, 0.0)


def test_the_threshold_of_most_f1_is_found() -> None:
    truth, said, stored = curves(400)
    told = thresholds.of(stored)
    assert told is not None
    best = thresholds.at(told, thresholds.best_f1(told))["f1"]
    every = []
    for threshold in np.unique(said):
        named = said >= threshold
        every.append(2 * (named & (truth == 1)).sum() / (named.sum() + truth.sum()))
    assert best == pytest.approx(max(every), abs=0.01)


def test_gains_begin_at_nothing_and_end_with_all() -> None:
    truth, said, stored = curves()
    (told,) = thresholds.gains(stored)
    assert (told["name"], told["share"]) == ("yes", pytest.approx(truth.mean()))
    assert (told["looked"][0], told["found"][0], told["lift"][0]) == (0, 0, None)
    assert (told["looked"][-1], told["found"][-1]) == (pytest.approx(1), pytest.approx(1))
    assert told["lift"][-1] == pytest.approx(1)
    tenth = np.argsort(-said, kind="stable")[: len(said) // 10]
    near = int(np.argmin(np.abs(np.array(told["looked"]) - 0.1)))
    assert told["lift"][near] == pytest.approx(truth[tenth].mean() / truth.mean(), rel=0.15)
    kinds = [chart.id for chart in pages.charts(stored, "y")]
    assert kinds[-2:] == ["gains", "lift"]


def test_of_several_classes_or_without_probabilities_there_is_no_threshold() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, 60)
    shares = random.dirichlet([1, 1, 1], 60)
    names = ["a", "b", "c"]
    said = np.array(names)[shares.argmax(axis=1)]
    many = evaluate("multiclass", truth, said, shares, metric="log_loss", classes=names).curves
    assert thresholds.of(many) is None
    assert [one["name"] for one in thresholds.gains(many)] == names
    bare = evaluate("multiclass", truth, said, None, metric="accuracy", classes=names).curves
    assert (thresholds.of(bare), thresholds.gains(bare)) == (None, [])


@pytest.mark.parametrize("text", ["", "much", "nan", "-1", "2", "1e9"])
def test_what_is_no_threshold_is_the_usual_one(text: str) -> None:
    assert thresholds.chosen(text) == 0.5


@pytest.mark.django_db
def test_the_page_shows_the_threshold_in_its_address() -> None:
    by = make.member()
    table = make.flowers().with_columns(
        pl.when(pl.col("kind") == "kind 0")
        .then(pl.lit("yes"))
        .otherwise(pl.lit("no"))
        .alias("kind")
    )
    model = make.scored_model(by, of=make.version(by, table))
    assert model.job.task == "binary"
    client = Client()
    client.force_login(by.user)

    def shown(address: str) -> dict[str, int]:
        page = client.get(address).content.decode()
        assert "threshold.js" in page
        cells = re.findall(r'data-cell="(..)">([\d,]+)<', page)
        return {name: int(count.replace(",", "")) for name, count in cells}

    address = f"/models/{model.pk}"
    usual, never = shown(address), shown(f"{address}?threshold=0.99")
    assert usual == shown(f"{address}?threshold=0.5")
    assert usual["tp"] > 0
    assert (never["tp"], never["fp"]) == (0, 0)
    assert sum(usual.values()) == sum(never.values())
    other = make.scored_model(by)
    assert "threshold.js" not in client.get(f"/models/{other.pk}").content.decode()
