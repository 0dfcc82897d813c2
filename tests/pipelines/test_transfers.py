"""Files and programs elsewhere: what control makes of the stages, and the rules of transfers."""

import asyncio
import hashlib
import io
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from django.test import Client
from hypothesis import given
from hypothesis import strategies as st

from organizations.models import Membership
from pipelines import actions, handing, tasks, transfers
from pipelines.models import Run, Step
from pipelines.stages import places
from tests.datasets.nodes import ingest_next
from tests.pipelines import make as piping
from tests.training import make
from workers.actions import record_events
from workers.files import store_artifact
from workers.models import Task

# --- Pure ---


@given(size=st.integers(0, 2**42), wanted=st.integers(1, 64).map(lambda mib: mib << 20))
def test_the_chunks_are_the_file_from_end_to_end(size, wanted):
    chunks = transfers.cut(size, wanted)
    assert sum(one.size for one in chunks) == size
    assert all(one.size > 0 and one.offset % transfers.BLOCK == 0 for one in chunks)
    assert len(chunks) <= transfers.MOST_CHUNKS
    ends = [0, *(one.offset + one.size for one in chunks)]
    assert [one.offset for one in chunks] == ends[:-1]


class Shaky:
    """A far side in memory that fails as the test says: {(chunk, how often asked): what}."""

    most_lanes = 3
    compares = True

    def __init__(self, trouble: dict[tuple[int, int], str], before: bytes = b"") -> None:
        self.part, self.final = bytearray(before), None
        self.trouble, self.asked = trouble, dict[int, int]()

    async def lane(self):
        return self

    async def close(self):
        pass

    async def leave(self):
        self.was_left = True

    async def size(self):
        return None if self.final is None else len(self.final)

    async def digest(self, *, partial):
        return hashlib.sha256(self.part if partial else self.final).hexdigest()

    async def begin(self, size, sha256):
        self.part = self.part[:size]
        return len(self.part)

    async def has(self, chunk, data):
        return self.part[chunk.offset : chunk.offset + chunk.size] == data

    async def write(self, chunk, data):
        self.asked[chunk.id] = self.asked.get(chunk.id, 0) + 1
        what = self.trouble.get((chunk.id, self.asked[chunk.id]))
        if what == "away":
            raise transfers.Away("it is rebooting.")
        if what == "flip":
            data = bytes([data[0] ^ 1]) + data[1:]
        end = chunk.offset + chunk.size
        self.part.extend(bytes(max(0, end - len(self.part))))
        self.part[chunk.offset : end] = data

    async def finish(self):
        self.final = bytes(self.part)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("left", [0, 150_000, 2**18])
def test_whatever_happens_on_the_way_the_file_is_right(tmp_path: Path, left: int) -> None:
    data = bytes(range(256)) * 1024  # four chunks of 64 KiB
    (tmp_path / "data").write_bytes(data)
    trouble = {(0, 1): "flip", (1, 1): "away", (3, 1): "away", (3, 2): "flip"}
    before = data[:100_000] + b"rubbish" * 30_000
    far, rules = Shaky(trouble, before[:left]), transfers.Rules(chunk_bytes=2**16, workers=2)
    sent = asyncio.run(transfers.send(tmp_path / "data", far, "x", rules, lambda _: None))
    assert far.final == data
    assert far.was_left, "nobody keeps a connection"
    assert sent.settled == len(data)
    assert (sent.chunks[0].state == "there") == (left >= 2**16)
    counts = [one.retry_count for one in sent.chunks]
    assert counts == [0 if left else 1, 1, 0, 2]


# --- Control ---


@pytest.fixture
def by() -> Membership:
    return make.member()


def begun(by: Membership, *stages: dict[str, Any]) -> Run:
    there = {"host": "gpu.example.org", "port": 22, "user": "u", "folder": "f", "chunk_mib": 2}
    secrets = {"private_key": "k"}
    piping.connection(by, "gpu", kind="ssh", settings=there, secrets=secrets)
    home = actions.make(by, name="nightly", definition={"stages": list(stages)})
    return look(actions.start_run(by, home))


def look(run: Run) -> Run:
    tasks.sweep()
    run.refresh_from_db()
    return run


def transfer(path: str, *states: str) -> dict[str, Any]:
    chunks = [
        {"id": n, "offset": n << 20, "size": 1 << 20, "sha256": "ab" * 32, "state": state,
         "retry_count": n}
        for n, state in enumerate(states)
    ]  # fmt: skip
    return {"path": path, "size": len(states) << 20, "chunks": chunks}


UPLOAD = {
    "key": "up",
    "stage": "upload",
    "params": {"connection": "gpu", "data": "flowers", "path": "in/flowers.csv"},
}
REMOTE = {
    "key": "run",
    "stage": "remote",
    "params": {"connection": "gpu", "command": "sh train.sh", "time_limit_s": 7200},
    "after": ["up"],
}
DOWNLOAD = {
    "key": "down",
    "stage": "download",
    "params": {"connection": "gpu", "path": "out/scored.csv", "dataset": "scored"},
    "after": ["run"],
}


@pytest.mark.django_db
def test_data_go_there_a_program_runs_and_its_file_becomes_a_data_set(
    by: Membership, settings: Any, tmp_path: Path
) -> None:
    settings.TRANSFER = {"chunk_mib": 8, "workers": 3, "retries": 1, "verify": True}
    version, node = make.version(by), make.Node()
    run = begun(by, UPLOAD, REMOTE, DOWNLOAD)
    task = node.claim()
    assert (task.kind, task.light) == ("pipeline.upload", True)
    assert task.payload["path"] == "in/flowers.csv"
    told = handing.give(task)
    assert told["secrets"] == {"private_key": "k"}
    assert told["transfer"] == {"chunk_mib": 2, "workers": 3, "retries": 1, "verify": True}
    node.end(task, result={"data": {"transfer": transfer("in/flowers.csv", "there", "done")}})
    look(run)
    up = run.steps.get(key="up")
    assert (up.state, up.output["version"]) == ("succeeded", str(version.pk))
    chunks = up.chunks.values_list("number", "path", "offset", "size", "state", "retry_count")
    assert list(chunks) == [
        (0, "in/flowers.csv", 0, 1 << 20, "there", 0),
        (1, "in/flowers.csv", 1 << 20, 1 << 20, "done", 1),
    ]
    task = node.claim()
    assert (task.kind, task.time_limit_s) == ("pipeline.remote", 7200)
    assert task.payload["command"] == "sh train.sh"
    node.end(task, result={"data": {"status": 0}})
    look(run)
    task = node.claim()
    assert task.kind == "pipeline.download"
    file = io.BytesIO()
    make.flowers().with_columns(prediction=pl.lit("kind 1")).write_csv(file)
    file.seek(0)
    stored = store_artifact(task.organization, "data", file, task=task)
    node.end(task, result={"data": {}, "files": {"data": str(stored.pk)}})
    look(run)
    ingest_next(tmp_path)
    look(run)
    assert run.state == "succeeded", run.why
    assert run.steps.get(key="down").output["rows"] == 150


@pytest.mark.django_db
def test_a_transfer_that_fails_tells_which_chunks_did(by: Membership) -> None:
    make.version(by)
    node, run = make.Node(), begun(by, UPLOAD)
    broken = {"data": {"transfer": transfer("in/flowers.csv", "done", "failed")}}
    node.end(node.claim(), outcome="failed", error="Chunk 1 failed.", fault="work", result=broken)
    look(run)
    step = run.steps.get()
    assert (step.state, step.error) == ("failed", "Chunk 1 failed.")
    assert list(step.chunks.values_list("state", flat=True)) == ["done", "failed"]
    # What makes no sense harms nobody.
    actions.retry_run(by, run)
    look(run)
    nonsense = {"data": {"transfer": {"path": 7, "chunks": [{"offset": "x"}]}}}
    node.end(node.claim(), result=nonsense)
    look(run)
    assert run.state == "succeeded"


@pytest.mark.django_db
def test_a_transfer_is_watched_while_it_goes_on(by: Membership) -> None:
    """What the node's own teller says comes to the page of the run."""

    class Said:
        def __init__(self) -> None:
            self.events: list[dict[str, Any]] = []

        def progress(self, fraction: float, message: str, **data: Any) -> None:
            data = {"fraction": fraction, "message": message, **data}
            self.events.append({"type": "progress", "data": data})

    make.version(by)
    node, run = make.Node(), begun(by, UPLOAD)
    task = node.claim()
    client = Client()
    client.force_login(by.user)
    page = f"{run.get_absolute_url()}/live"
    assert "Transfer of up" not in client.get(page).content.decode(), "nothing is known yet"
    made = transfers.Transfer("in/flowers.csv", 8 << 20, transfers.cut(8 << 20, 1 << 20))
    said, clock = Said(), iter([0.0, 1.0, 3.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places.time, "monotonic", lambda: next(clock))
        tell = places.teller(said, "Sending")
        made.chunks[0].state, made.busy, made.moved = "there", 2, 0
        tell(made)
        made.chunks[1].state, made.chunks[2].state, made.moved = "done", "done", 3 << 20
        made.chunks[2].retry_count = 1
        tell(made)
    record_events(task.pk, task.attempt, said.events)
    shown = client.get(page).content.decode()
    assert "3.1 MB of 8.4 MB" in shown
    assert 'aria-valuenow="37"' in shown
    facts = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", shown))
    assert facts == {
        "Chunks": "8", "Done": "2", "There from before": "1", "Under way": "2", "Failed": "0",
        "Sent again": "1",
    }  # fmt: skip
    assert "5 s left" in shown, "5 MiB at one a second"
    record_events(task.pk, task.attempt, [{"type": "progress", "data": {"transfer": [7]}}])
    assert client.get(page).status_code == 200
    broken = {"data": {"transfer": transfer("in/flowers.csv", "there", "done", "failed")}}
    node.end(task, outcome="failed", error="Chunk 2 failed.", fault="work", result=broken)
    look(run)
    assert "Transfer of up" not in client.get(page).content.decode()
    ended = client.get(f"{page}?step=up").content.decode()
    facts = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", ended))
    assert (facts["Done"], facts["Failed"], facts["Sent again"]) == ("1", "1", "3")
    assert "left" not in ended[ended.index('id="transfer-up"') : ended.index('id="log"')]


@pytest.mark.django_db
def test_a_program_whose_step_is_cancelled_is_ended_there(by: Membership) -> None:
    node = make.Node()
    run = begun(by, {**REMOTE, "after": []})
    task = node.claim()
    actions.cancel_run(by, run)
    look(run)
    ending = Task.objects.get(kind="pipeline.remote-end")
    assert ending.payload["run_id"] == task.payload["run_id"]
    assert ending.payload["connection"] == task.payload["connection"]
    assert handing.give(ending)["kind"] == "ssh"
    node.end(task, outcome="cancelled")
    look(run)
    assert (run.state, run.steps.get().state) == ("cancelled", Step.State.CANCELLED)
    assert Task.objects.filter(kind="pipeline.remote-end").count() == 1


@pytest.mark.django_db
def test_a_folder_of_a_node_brings_the_roots_of_its_operator(by: Membership, settings: Any) -> None:
    settings.LOCAL_ROOTS = ["/srv/{organization}", "/srv/all"]
    make.version(by)
    piping.connection(by, "here", kind="local", settings={"folder": "/srv/all/x"}, secrets={})
    params = {**UPLOAD["params"], "connection": "here"}
    begun(by, {**UPLOAD, "params": params})
    told = handing.give(make.Node().claim())
    assert told["roots"] == [f"/srv/{by.organization.pk}", "/srv/all"]
    assert told["programs"] is False
