"""Curves of loss and accuracy by epoch: what is kept of a node's word, and where they are drawn."""

import html
import json
import re

import pytest

from tests.factories import WorkerFactory
from tests.training import make
from training import epochs

CURVE = [
    {"epoch": epoch, "loss": 1 / epoch, "validation_loss": abs(epoch - 3) + 0.5, "net": 1}
    for epoch in range(1, 6)
]


def drawn(page: str) -> dict[str, dict]:
    """What charts of epochs a page has, by their id without the task's."""
    texts = {
        chart: text or json_of
        for chart, text, json_of in re.findall(
            r'<div class="chart[^"]*" id="(epochs-[^"]*)"[^>]*?(?:data-values="(.*?)"|'
            r'data-source="(.*?)")',
            page,
        )
    }
    found = {}
    for chart, text in texts.items():
        if text.endswith("-data"):
            (text,) = re.findall(rf'<script id="{text}"[^>]*>(.*?)</script>', page)
        found[chart.rpartition("-")[2]] = json.loads(html.unescape(text))
    return found


def test_only_figures_are_kept_of_what_a_node_says():
    nonsense = [{"epoch": 1, "loss": "x"}, "no", {"loss": 1.0}, {"epoch": 2, "loss": float("nan")}]
    kept = epochs.cleaned([*nonsense, {"epoch": 3, "loss": 0.5, "net": 1, "<b>": 2}])
    assert kept == [{"epoch": 3, "loss": 0.5}]
    assert epochs.cleaned({"epoch": 3, "loss": 0.5}) == epochs.cleaned(None) == []
    many = [{"epoch": at, "loss": 1.0} for at in range(epochs.MOST + 7)]
    assert len(epochs.cleaned(many)) == epochs.MOST


@pytest.mark.django_db
def test_a_network_is_drawn_by_epoch_as_it_learns_and_on_its_page(client):
    by = make.member()
    client.force_login(by.user)
    job = make.job(by, engines=["torch"])
    node = make.Node(
        WorkerFactory(
            concurrency=4,
            queues=["priority", "torch.cpu", "cpu"],
            capabilities={"cpu": 64, "ram_mib": 800_000, "engines": ["torch"], "gpus": []},
        )
    )
    task = node.claim()
    page = f"/training/{job.pk}"
    assert not drawn(client.get(page).content.decode())
    what = "Neural network, epoch 5"
    node.say(task, "progress", data={"fraction": 0.2, "message": what, "curve": CURVE})
    for address in (page, f"{page}/live"):
        text = client.get(address).content.decode()
        (loss,) = drawn(text).values()
        assert [line["points"][-1] for line in loss["series"]] == [[5, 0.2], [5, 2.5]]
        assert loss["mark"] == 3, "the least loss on rows that it does not learn from"
        assert what in text
    assert "charts.js" in client.get(page).content.decode()
    curve = [point | {"validation_accuracy": 0.1 * point["epoch"]} for point in CURVE]
    model = node.candidate(task, "torch:network-1", curve=curve)
    node.end(task)
    shown = drawn(client.get(f"/models/{model.pk}").content.decode())
    assert set(shown) == {"loss", "accuracy"}
    assert shown["accuracy"]["series"][0]["points"][0] == [1, 0.1]
    assert not drawn(client.get(page).content.decode()), "it has ended"


@pytest.mark.django_db
def test_a_model_of_no_epochs_has_no_such_chart(client):
    by = make.member()
    client.force_login(by.user)
    model = make.scored_model(by)
    assert "epochs" not in model.curves
    assert not drawn(client.get(f"/models/{model.pk}").content.decode())
