"""A node dies in the middle of a fit: another one goes on from its last epoch."""

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.conftest import messy, payload_for
from tests.node.conftest import Node
from tests.node.fakeweb import FakeWeb, until


@pytest.fixture
def two() -> Iterator[tuple[Node, Node]]:
    """Two nodes of one web side, neither started yet."""
    with tempfile.TemporaryDirectory(prefix="fn") as folder, FakeWeb() as web:
        nodes = []
        for name in ("a", "b"):
            (Path(folder) / name).mkdir()
            nodes.append(Node(web, Path(folder) / name))
        try:
            yield nodes[0], nodes[1]
        finally:
            for node in nodes:
                if node.process is not None:
                    node.stop()


def epochs(web: FakeWeb, task: str) -> list[int]:
    told = [event["data"]["message"] for event in web.of(task, "notice")]
    return [int(text.removeprefix("epoch ")) for text in told if text.startswith("epoch ")]


def test_another_node_goes_on_from_the_last_epoch(two: tuple[Node, Node]) -> None:
    first, second = two
    web = first.start().web
    task = web.add("toy.epochs", {"epochs": 60, "each_s": 0.1})
    until(lambda: "fit" in web.tasks[task]["checkpoints"], "a checkpoint")
    until(lambda: len(epochs(web, task)) >= 3, "epochs")
    first.kill()
    seen = len(epochs(web, task))
    second.start()
    web.give_again(task)
    end = web.wait_end(task, 30)
    assert end["outcome"] == "succeeded", end
    assert 1 < end["result"]["data"]["first"] <= seen + 1
    assert epochs(web, task)[seen:] == list(range(end["result"]["data"]["first"], 61))


def test_a_child_that_is_killed_goes_on_by_itself(two: tuple[Node, Node]) -> None:
    web = two[0].start().web
    task = web.add("toy.epochs", {"epochs": 5, "each_s": 0.0, "die_after": 3})
    assert web.wait_end(task)["result"]["data"]["first"] == 4
    assert epochs(web, task) == [1, 2, 3, 4, 5]


def test_what_web_has_no_room_for_is_not_missed(two: tuple[Node, Node]) -> None:
    web = two[0].start().web
    web.refuse_checkpoints = True
    task = web.add("toy.epochs", {"epochs": 5, "each_s": 0.05})
    assert web.wait_end(task)["outcome"] == "succeeded"
    assert not web.tasks[task]["checkpoints"]
    gone = {"artifact": "gone", "sha256": "0" * 64, "size": 1}
    again = web.add("toy.epochs", {"epochs": 2, "each_s": 0.0}, checkpoints={"fit": gone})
    assert web.wait_end(again)["result"]["data"]["first"] == 1


@pytest.mark.engine
@pytest.mark.heavy
@pytest.mark.timeout(300)
def test_a_real_fit_goes_on_from_its_last_epoch_on_another_node(two: tuple[Node, Node]) -> None:
    """Two real nodes, with real warm parents of PyTorch; the first one is killed with -9."""
    for node in two:
        (node.folder / "venvs" / "torch").symlink_to(Path(".venvs/torch").absolute())
    first, second = two
    table = messy(2_500, "binary")
    said = table["colour"].fill_null("none") + " and " + table["town"] + " it was"
    given = {"layers": 1, "hidden_size": 32, "heads": 2, "max_length": 16, "batch_size": 8}
    file = io.BytesIO()
    table.with_columns(said.alias("remark")).write_parquet(file)
    more = {"model": "bert", "hyperparameters": given | {"epochs": 15, "patience": 15}}
    payload = payload_for(table, {"remark": "text"}, "binary", budget_s=90, **more)
    web = first.start("--engines", "torch").web
    web.queues = ["cpu", "torch.cpu"]
    task = web.add(
        "training.train", payload, engine="torch", inputs={"data": file.getvalue()},
        limits={"time_s": 200, "ram_mib": 4096},
    )  # fmt: skip
    until(lambda: bool(web.tasks[task]["checkpoints"]), "a checkpoint", 120)
    first.kill()
    heard = len(web.of(task, "progress"))
    second.start("--engines", "torch")
    web.give_again(task)
    end = web.wait_end(task, 200)
    assert end["outcome"] == "succeeded", end
    assert any("goes on from epoch" in one["data"]["message"] for one in web.of(task, "notice"))
    later = points(web, task, heard)
    assert later[0] > 1, later
    assert later == sorted(later)
    (one,) = web.of(task, "candidate")
    assert one["data"]["params"]["epochs_run"] == 15


def points(web: FakeWeb, task: str, after: int = 0) -> list[int]:
    """The epochs that were told of, from this progress message on."""
    curves = [event["data"].get("curve") for event in web.of(task, "progress")[after:]]
    return [curve[-1]["epoch"] for curve in curves if curve]
