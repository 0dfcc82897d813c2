"""What training tests start from: a data set that is ready, and a node that reports on it."""

import io
import json
import socketserver
import threading
import zlib
from datetime import timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import polars as pl
from django.utils import timezone

from datasets.models import Dataset, DatasetVersion
from organizations.models import Membership, Role
from tests.factories import MembershipFactory, WorkerFactory
from training import actions, scoring, splits
from training.models import TrainedModel, TrainingJob
from workers import actions as work
from workers.fairshare import Room
from workers.files import store_artifact
from workers.models import Event, Task, Worker
from workers.tasks import handle_end, handle_event

ROOM = Room(slots=4, light_slots=4, cpu_millis=64_000, ram_mib=640_000)


def flowers(n: int = 150, seed: int = 3) -> pl.DataFrame:
    """Three kinds that two measures tell apart, with a few gaps in the target."""
    random = np.random.default_rng(seed)
    kind = np.arange(n) % 3
    return pl.DataFrame(
        {
            "petal_cm": (kind * 2 + random.normal(0, 0.4, n)).round(3),
            "colour": [["red", "blue", "white"][i] for i in random.integers(0, 3, n)],
            "weight_g": (kind * 10 + random.normal(50, 5, n)).round(2),
            "kind": [None if i in (4, 40) else f"kind {code}" for i, code in enumerate(kind)],
        }
    )


ROLE_OF = {"string": "categorical", "boolean": "boolean", "binary": "image"}


def columns_of(table: pl.DataFrame) -> list[dict[str, Any]]:
    """The statistics that training looks at, in the shape of DatasetVersion.columns."""
    found = []
    for series in table:
        counts = series.drop_nulls().value_counts().to_dicts()
        dtype = {pl.String: "string", pl.Boolean: "boolean", pl.Binary: "binary"}.get(
            series.dtype, "integer" if series.dtype.is_integer() else "float"
        )
        counts_shown = [] if dtype == "binary" else counts
        classes = [{"value": row[series.name], "count": row["count"]} for row in counts_shown]
        found.append(
            {
                "name": series.name,
                "dtype": dtype,
                "role": ROLE_OF.get(dtype, "numeric"),
                "missing": series.null_count(),
                "distinct": len(counts),
                "classes": classes if len(classes) <= 200 else [],
                "min": series.min() if dtype in {"integer", "float"} else None,
            }
        )
    return found


def member(role: int = Role.DEVELOPER, **fields: Any) -> Membership:
    return MembershipFactory(role=role, **fields)


def version(by: Membership, table: pl.DataFrame | None = None, **fields: Any) -> DatasetVersion:
    """A data set with one ready version."""
    table = flowers() if table is None else table
    file = io.BytesIO()
    table.write_parquet(file)
    size = file.tell()
    file.seek(0)
    data = store_artifact(by.organization, "data.parquet", file)
    dataset = Dataset.objects.create(
        organization=by.organization, name=fields.pop("name", "flowers"), state="ready"
    )
    made = DatasetVersion.objects.create(
        organization=by.organization,
        dataset=dataset,
        number=1,
        state="ready",
        filename="flowers.csv",
        upload_size=size,
        rows=len(table),
        columns=columns_of(table),
        column_count=table.width,
        sha256=data.sha256,
        size_bytes=size,
        data=data,
        **fields,
    )
    Dataset.objects.filter(pk=dataset.pk).update(latest=made)
    return made


def job(by: Membership, of: DatasetVersion | None = None, **wish: Any) -> TrainingJob:
    """A job of PyCaret alone, unless told otherwise."""
    of = of or version(by)
    usual = {"target": "kind", "engines": ["pycaret"]}
    return actions.start_job(by, of.dataset_id, **(usual | wish))


class Node:
    """Does by hand what a node does, and lets control react at once."""

    def __init__(self, worker: Worker | None = None) -> None:
        # The ledger counts too: as large as ROOM, so that only the rules of jobs hold back.
        self.worker = worker or WorkerFactory(
            concurrency=4,
            capabilities={"cpu": 64, "ram_mib": 800_000, "engines": ["pycaret"], "gpus": []},
        )

    def claim(self) -> Task:
        task = work.claim(self.worker, ROOM)
        assert task is not None, "nothing waits"
        self.say(task, "started")
        return task

    def say(self, task: Task, type: str, **event: Any) -> Event:
        said = {"type": type, "data": {}, "files": {}, **event}
        work.record_events(task.pk, task.attempt, [said])
        last = task.events.order_by("seq").last()
        handle_event(last.pk)
        last.refresh_from_db()
        return last

    def candidate(
        self,
        task: Task,
        key: str = "pycaret:tree",
        *,
        skill: float = 0.9,
        fit_s: float = 1.0,
        change: Any = None,
        **told: Any,
    ) -> TrainedModel:
        """A model right for about ``skill`` of the rows. ``change`` edits its predictions.

        ``told`` is what the node says of it besides.
        """
        job = TrainingJob.objects.get(pk=task.subject)
        table = predictions(job, skill, seed=zlib.crc32(key.encode()))
        if change is not None:
            table = change(table)
        file = io.BytesIO()
        table.write_parquet(file)
        file.seek(0)
        contents = {"predictions": file, "artifact": io.BytesIO(key.encode())}
        files = {
            name: str(store_artifact(job.organization, f"{key} {name}", content, task=task).pk)
            for name, content in contents.items()
        }
        data = {"name": key.split(":")[1].title(), "family": "tree", "fit_s": fit_s} | told
        self.say(task, "candidate", key=key, data=data, files=files)
        return TrainedModel.objects.get(job=job, key=key)

    def refit(self, task: Task, *, skill: float = 0.95, change: Any = None) -> TrainedModel | None:
        """End the task with the winner fitted again, which predicts the sealed rows alone."""
        job = TrainingJob.objects.get(pk=task.subject)
        table = predictions(job, skill).filter(
            pl.col("row").is_in(scoring.truth_of(job).sealed.tolist())
        )
        if change is not None:
            table = change(table)
        file = io.BytesIO()
        table.write_parquet(file)
        file.seek(0)
        contents = {"predictions": file, "artifact": io.BytesIO(b"refitted")}
        files = {
            name: str(store_artifact(job.organization, name, content, task=task).pk)
            for name, content in contents.items()
        }
        data = {"name": "Good, refitted", "fit_s": 2.0, "predict_ms_row": 0.5, "train_rows": 9}
        self.end(task, result={"data": data, "files": files})
        return job.models.filter(state="refitted").first()

    def end(self, task: Task, outcome: str = "succeeded", **said: Any) -> Task:
        result = said.pop("result", {"data": {}, "files": {}})
        work.end_task(task.pk, task.attempt, outcome=outcome, result=result, **said)
        return self.react(task)

    def react(self, task: Task) -> Task:
        """What control does once a task has ended."""
        handle_end(str(task.pk))
        task.refresh_from_db()
        assert task.handled_at is not None, "a reaction failed"
        return task


def predictions(job: TrainingJob, skill: float, *, seed: int = 0) -> pl.DataFrame:
    """A predictions file for every row that ranks and every sealed one."""
    random = np.random.default_rng(seed)
    truth = scoring.truth_of(job)
    rows = np.concatenate([truth.ranked, truth.sealed])
    if job.classes is None:
        values = truth.target[rows] + random.normal(0, 1 - skill, len(rows))
        return pl.DataFrame({"row": rows, "prediction": values})
    right = random.random(len(rows)) < skill
    k = len(job.classes)
    codes = np.where(right, truth.target[rows], (truth.target[rows] + 1) % k)
    shares = np.full((len(rows), k), 0.3 / k)
    shares[np.arange(len(rows)), codes] += 0.7
    return pl.DataFrame(
        {"row": rows, "prediction": [job.classes[code] for code in codes]}
        | {f"p{code}": shares[:, code] for code in range(k)}
    )


def scored_model(by: Membership, **wish: Any) -> TrainedModel:
    """The best model of a job that has ended."""
    made = job(by, **wish)
    node = Node()
    task = node.claim()
    node.candidate(task)
    node.end(task)
    made.refresh_from_db()
    assert made.best_model is not None
    return made.best_model


def age_node(worker: Worker) -> None:
    """Let the node be silent for so long that it counts as dead."""
    Worker.objects.filter(pk=worker.pk).update(last_seen_at=timezone.now() - timedelta(hours=1))


class FakeServing(socketserver.ThreadingUnixStreamServer):
    """A node's prediction endpoint on a Unix socket: keeps what it was asked, says ``answer``."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{uuid4().hex[:8]}.sock"
        self.asked: list[dict[str, Any]] = []
        self.connections = 0
        self.status = 200
        self.answer: Any = {"predictions": ["kind 1"], "probabilities": None, "classes": None}
        self.close_after_answer = False
        self.explains = True
        super().__init__(str(self.path), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"unix:{self.path}"

    def said_to(self, asked: dict[str, Any]) -> Any:
        """The answer, and where rows to compare with came along, a share for each column."""
        if "background" not in asked or not self.explains:
            return self.answer
        said = self.answer["predictions"]
        named = [float(said == [kind]) for kind in ("kind 0", "kind 1", "kind 2")]
        shares = (self.answer.get("probabilities") or [named if any(named) else said])[0]
        columns, base = len(asked["columns"]), 1 / len(shares)
        each = [(share - base) / columns for share in shares]
        told = {"base": [base] * len(shares), "output": shares, "values": [each] * columns}
        told |= {"errors": None, "exact": True, "evaluations": 40}
        return self.answer | {"explanation": told | {"background": len(asked["background"])}}

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServing

    def setup(self) -> None:
        super().setup()
        self.client_address = ("node", 0)
        self.server.connections += 1

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append({"path": self.path, **json.loads(body)})
        answer = json.dumps(self.server.said_to(self.server.asked[-1])).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
        # The client is not told: this is what a node that restarts looks like.
        self.close_connection = self.server.close_after_answer

    def log_message(self, *args: Any) -> None:
        pass


__all__ = ["FakeServing", "Node", "job", "member", "scored_model", "splits", "version"]
