"""A node that ingests, without the node: claims, runs the handler here, and reports."""

from pathlib import Path
from typing import Any

from tests.datasets.ingesting import Channel, run_in
from tests.training.make import Node
from workers.files import store_artifact
from workers.models import Artifact, Task
from workers.node.channel import WorkError


def ingest_next(work: Path) -> Task:
    """Claim the next waiting ingest, do it, and let control react."""
    node = Node()
    task = node.claim()
    assert task.kind == "dataset.ingest"
    folder = work / str(task.pk)
    folder.mkdir()
    upload = Artifact.objects.get(pk=task.inputs["upload"])
    (folder / "upload").write_bytes(upload.file.read())
    upload.file.close()
    channel = Channel()
    try:
        answer: dict[str, Any] = run_in(folder, folder / "upload", task.payload, channel)
    except WorkError as error:
        return node.end(
            task,
            "failed",
            error=error.sentence,
            code=error.code,
            fault="work",
            result={"data": error.data, "files": {}},
        )
    files = {}
    for name, path in answer["files"].items():
        with (folder / path).open("rb") as file:
            files[name] = str(store_artifact(task.organization, name, file, task=task).pk)
    return node.end(task, result={"data": answer["data"], "files": files})
