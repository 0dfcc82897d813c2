"""How long the server takes for each page, and what a first visit weighs.

On a PostgreSQL of its own, one organization with 10,000 trainings of four models each and 1,000
data sets. Each page is asked for in this process through all of Django's middleware, as a person
who is signed in; then it is told how many queries that took, and how many bytes go to a browser
that comes for the first time: the page, and the files that it names, compressed.

    python -m benchmarks.pages [--times 15] [--jobs 10000] [--datasets 1000]

Limits: p95 under 200 ms of server time, 350 kB on a first visit. Beside it a page that asks the
database nothing (the sign-in page, of somebody who is not) shows what Django and templates take.
"""

import argparse
import re
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from benchmarks.common import django_here, p95, tell_load

LIMIT_MS, LIMIT_KB = 200.0, 350.0
TABS = ("members", "usage", "tokens", "audit", "settings")
ASSET = re.compile(r'(?:src|href)="(/static/[^"#?]+)')


def fill(jobs: int, datasets: int) -> tuple[Any, dict[str, str]]:
    """Everything that is shown; who looks, and the pages by name."""
    from django.db import connection
    from django.db.models import Model

    from accounts.models import User
    from datasets.models import Dataset, DatasetVersion
    from organizations.models import Role
    from tests.training import make
    from training.models import TrainedModel, TrainingJob
    from workers.models import Event, Stream, Task

    def copied(row: Model, each: list[dict[str, Any]]) -> None:
        fields = row._meta.concrete_fields
        same = {f.attname: getattr(row, f.attname) for f in fields if not f.primary_key}
        kind = type(row)
        kind._default_manager.bulk_create((kind(**{**same, **own}) for own in each), 1000)

    member = make.member(Role.ADMIN)
    User.objects.filter(pk=member.user_id).update(email_verified_at=None)
    best = make.scored_model(member)
    job, task = best.job, Task.objects.get(subject=best.job_id)
    version = job.dataset_version
    assert version is not None
    others = [{"key": f"pycaret:m{n}", "name": f"Model {n}", "id": uuid4()} for n in range(3)]
    copied(best, others)

    made = [uuid4() for _ in range(datasets - 1)]
    copied(version.dataset, [{"id": pk, "name": f"table {n}", "latest_id": None}
                             for n, pk in enumerate(made)])  # fmt: skip
    versions = [{"id": uuid4(), "dataset_id": pk} for pk in made]
    copied(version, versions)
    Dataset.objects.filter(latest=None).update(
        latest=DatasetVersion.objects.filter(dataset__pk=_outer("pk")).values("pk")[:1]
    )

    ids = [uuid4() for _ in range(jobs - 1)]
    first = {pk: uuid4() for pk in ids}
    copied(job, [{"id": pk, "best_model_id": None, "idempotency_key": None} for pk in ids])
    models = [
        {"job_id": pk, "key": f"pycaret:m{n}", "id": first[pk] if not n else uuid4()}
        for pk in ids
        for n in range(4)
    ]
    copied(best, models)
    TrainingJob.objects.filter(best_model=None).update(
        best_model=TrainedModel.objects.filter(job__pk=_outer("pk"), key="pycaret:m0").values("pk")[
            :1
        ]
    )
    copied(task.stream, [{"topic": f"job:{pk}"} for pk in ids])
    copied(task, [{"id": uuid4(), "subject": pk, "stream_id": f"job:{pk}"} for pk in ids])
    event = Event.objects.filter(stream=task.stream).earliest("seq")
    copied(event, [{"stream_id": f"job:{pk}", "seq": n, "task_id": None}
                   for pk in ids for n in range(1, 6)])  # fmt: skip
    Stream.objects.exclude(pk=task.stream_id).update(last_seq=5)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")

    data, model = f"/data/{version.dataset_id}", f"/models/{best.pk}"
    pages = {
        "home": "/",
        "data": "/data",
        "data, searched": "/data?q=table+77&sort=size",
        "data, last page": f"/data?page={datasets // 25}",
        "data set": data,
        "its rows": f"{data}?tab=rows",
        "its versions": f"{data}?tab=versions",
        "new training": f"/training/new?dataset={version.dataset_id}",
        "trainings": "/training",
        "trainings, last page": f"/training?page={jobs // 25}",
        "training": f"/training/{job.pk}",
        "models": "/models",
        "model": model,
        "try": f"{model}?tab=try",
        "use": f"{model}?tab=use",
        "details": f"{model}?tab=details",
        "compare": f"/models/compare?model={best.pk}&model={others[0]['id']}",
        "deployments": "/deployments",
        "clusters": "/clusters",
        "pipelines": "/pipelines",
        "connections": "/connections",
        "workers": "/workers",
        "account": "/account",
        **{f"organization, {tab}": f"/organization?tab={tab}" for tab in TABS},
    }
    return member, pages


def _outer(name: str) -> Any:
    from django.db.models import OuterRef

    return OuterRef(name)


def timed(times: int, work: Callable[[], object]) -> list[float]:
    took = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        took.append(1000 * (time.perf_counter() - began))
    return sorted(took)


def weight(html: bytes, client: Any) -> float:
    """kB of a first visit by a browser: the page as it is, and all that it names as it is sent."""
    whole = len(html)
    for address in sorted(set(ASSET.findall(html.decode()))):
        answer = client.get(address, headers={"accept-encoding": "gzip, deflate, br"})
        assert answer.status_code == 200, address
        whole += len(b"".join(answer.streaming_content))
    return whole / 1000


def measure(times: int, jobs: int, datasets: int) -> bool:
    from django.db import connection
    from django.test import Client
    from django.test.utils import CaptureQueriesContext

    member, pages = fill(jobs, datasets)
    print(f"{jobs:,} trainings, {datasets:,} data sets; limits: {LIMIT_MS:.0f} ms, {LIMIT_KB} kB")
    kept = True
    nobody, client = (Client(headers={"host": "127.0.0.1"}) for _ in range(2))
    client.force_login(member.user)
    for name, path in {"beside it: sign in": "/sign-in", **pages}.items():
        one = nobody if path == "/sign-in" else client
        answer = one.get(path)
        if answer.status_code != 200:
            sys.exit(f"{path} answered {answer.status_code} {answer.headers.get('Location', '')}")
        with CaptureQueriesContext(connection) as queries:
            one.get(path)
        count = len(queries)  # now: the next request begins a new log
        took = timed(times, lambda one=one, path=path: one.get(path))  # type: ignore[misc]
        slow, kilobytes = p95(took), weight(answer.content, one)
        missed = slow > LIMIT_MS or kilobytes > LIMIT_KB
        kept = kept and not missed
        print(
            f"{name:<24} median {statistics.median(took):6.1f} ms   p95 {slow:6.1f} ms   "
            f"{count:3} queries   {kilobytes:5.0f} kB{'   MISSED' if missed else ''}",
            flush=True,
        )
    tell_load()
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=15)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--datasets", type=int, default=1_000)
    asked = parser.parse_args()
    with django_here():
        from django.core.management import call_command

        call_command("collectstatic", verbosity=0, interactive=False)
        kept = measure(asked.times, asked.jobs, asked.datasets)
    sys.exit(0 if kept else "A limit was missed.")


if __name__ == "__main__":
    main()
