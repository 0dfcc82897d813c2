"""What deployments are asked, how quickly they answer, and some of the questions.

Each request adds to a hash in Valkey of its deployment and minute; every few seconds control copies
the hashes to PostgreSQL (``flush``). A minute is copied whole each time, so that copying twice does
no harm. What Valkey loses when it dies is the last few seconds. Latencies are counted in buckets, a
quarter of an octave wide: percentiles of any number of minutes and web processes can be put
together, and are at most 19% too high.
"""

import json
import logging
import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import redis
from django.db import transaction
from django.utils import timezone

from clusters import canaries, drift, outcomes
from clusters.models import Deployment, DriftReport, Sample, ServedMinute
from clusters.queue import valkey
from training.models import TrainedModel
from workers.models import emit

log = logging.getLogger(__name__)

MOST_BUCKET = 68  # 131 s: longer than a request may take
MINUTES, SAMPLED = "flowml:watch:minutes", "flowml:watch:sampled"
KEPT_S = 3600  # in Valkey
MOST_KEYS = 5000  # copied at a time
KEPT, KEPT_SAMPLES = timedelta(days=7), timedelta(days=30)
REQUESTS_A_MINUTE = 60  # of a deployment are sampled, in each web process
ROWS_OF_ONE = 20  # of a request
MOST_BYTES = 64 * 1024  # of a request's sampled rows
MOST_WAITING = 500  # sampled requests of a deployment, in Valkey
MOST_SAMPLES = 5000  # rows of a deployment
LOOKED_AT = 2000  # the newest of them, for drift
LOOK_AFTER = timedelta(minutes=5)
KEPT_REPORTS = 300


# --- Latencies -----------------------------------------------------------------------------------


def bucket(ms: float) -> int:
    """The bucket of a latency: the smallest whose upper bound it does not pass."""
    if ms <= 1:
        return 0
    return min(MOST_BUCKET, math.ceil(4 * math.log2(ms)))


def upper_ms(number: int) -> float:
    """The upper bound of a bucket: 1 ms times 2 to the power of a quarter of its number."""
    return float(2 ** (number / 4))


def percentile(counts: Mapping[int, int], share: float) -> float | None:
    """The upper bound, in ms, of the bucket that holds this share of the requests; None of none."""
    left = share * sum(counts.values())
    if not left:
        return None
    for number in sorted(counts):
        left -= counts[number]
        if left <= 1e-9:
            break
    return upper_ms(number)


# --- In a request --------------------------------------------------------------------------------

_taken: dict[UUID, tuple[int, int]] = {}  # deployment -> minute, requests sampled in it


Commands = list[tuple[Any, ...]]  # to Valkey: each a method of its client, and the arguments


@contextmanager
def telling(said: Commands | None = None) -> Iterator[Commands]:
    """What is put in goes to Valkey in one turn when the block ends, or where ``said`` goes.

    Never raises for Valkey's sake.
    """
    if said is not None:
        yield said
        return
    own: Commands = []
    try:
        yield own
    finally:
        try:
            with valkey().pipeline(transaction=False) as pipe:
                for name, *rest in own:
                    getattr(pipe, name)(*rest)
                pipe.execute()
        except redis.RedisError as problem:
            log.warning("a request was not noted", extra={"problem": str(problem)})


def note(
    deployment: UUID,
    revision: int,
    status: int,
    ms: float,
    rows: int,
    *,
    compared: int = 0,
    same: int = 0,
    said: Commands | None = None,
) -> None:
    """Count one request, and of a shadow the rows compared and the same. Never raises.

    ``said``, here and below: see ``telling``.
    """
    minute = int(time.time() // 60)
    name = f"{deployment}:{minute}"
    counts = {"n": 1, "rows": rows, f"b{bucket(ms)}": 1, "compared": compared, "same": same}
    if status >= 400:
        counts["errors" if status >= 500 else "refused"] = 1
    with telling(said) as to:
        for field, count in counts.items():
            if count:
                to.append(("hincrby", _key(name), f"{revision}:{field}", count))
        to.append(("expire", _key(name), KEPT_S))
        to.append(("zadd", MINUTES, {name: minute}))


def note_failed(deployment: UUID, revision: int) -> None:
    """Count a replica that could not answer, whoever answered in its place. Never raises."""
    minute = int(time.time() // 60)
    name = f"{deployment}:{minute}"
    with telling() as to:
        to.append(("hincrby", _key(name), f"{revision}:failed", 1))
        to.append(("expire", _key(name), KEPT_S))
        to.append(("zadd", MINUTES, {name: minute}))


def _key(name: str) -> str:
    return f"flowml:watch:{name}"


def sample(
    deployment: UUID,
    answer: Mapping[str, Any],
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    said: Commands | None = None,
) -> None:
    """Keep some rows of a request with what was answered, if it is this one's turn. Never raises.

    The first requests of each minute are taken, so that a busy deployment costs no more.
    """
    minute = int(time.time() // 60)
    then, count = _taken.get(deployment, (minute, 0))
    count = count if then == minute else 0
    if count >= REQUESTS_A_MINUTE:
        return
    if len(_taken) > 10_000:
        _taken.clear()
    _taken[deployment] = (minute, count + 1)
    chosen = sorted(random.sample(range(len(rows)), min(len(rows), ROWS_OF_ONE)))
    told: dict[str, Any] = {
        "id": answer["id"],
        "revision": answer["revision"],
        "at": time.time(),
        "rows": [
            [row, dict(zip(columns, rows[row], strict=True)), answer["predictions"][row]]
            for row in chosen
        ],
    }
    text = json.dumps(told)
    if len(text) > MOST_BYTES:
        told["rows"] = told["rows"][: max(1, len(chosen) * MOST_BYTES // len(text))]
        text = json.dumps(told)
        if len(text) > MOST_BYTES:
            return
    with telling(said) as to:
        to.append(("rpush", _samples(deployment), text))
        to.append(("ltrim", _samples(deployment), -MOST_WAITING, -1))
        to.append(("expire", _samples(deployment), KEPT_S))
        to.append(("sadd", SAMPLED, str(deployment)))


def _samples(deployment: UUID | str) -> str:
    return f"flowml:watch:samples:{deployment}"


# --- In control ----------------------------------------------------------------------------------


def flush() -> None:
    """Copy what was counted and sampled to PostgreSQL, look for drift, and let old rows go."""
    _copy_minutes()
    for deployment in _copy_samples():
        try:
            look_for_drift(deployment)
        except Exception:  # what is wrong with one deployment is no other's trouble
            log.exception("drift was not looked for", extra={"deployment": str(deployment)})
    old = timezone.now() - KEPT
    ServedMinute.objects.filter(minute__lt=old).delete()
    old = timezone.now() - KEPT_SAMPLES
    Sample.objects.filter(at__lt=old).delete()
    DriftReport.objects.filter(at__lt=old).delete()
    outcomes.forget_old()


def _copy_minutes() -> None:
    names = [name.decode() for name in valkey().zrange(MINUTES, 0, MOST_KEYS - 1)]  # type: ignore[union-attr]
    if not names:
        return
    with valkey().pipeline(transaction=False) as pipe:
        for name in names:
            pipe.hgetall(_key(name))
        found = pipe.execute()
    there = _there(name.split(":")[0] for name in names)
    rows = []
    for name, fields in zip(names, found, strict=True):
        deployment, minute = name.split(":")
        if deployment in there:
            rows += _rows(deployment, int(minute), fields)
    ServedMinute.objects.bulk_create(
        rows,
        update_conflicts=True,
        unique_fields=["deployment", "minute", "revision"],
        update_fields=[
            "requests",
            "refused",
            "errors",
            "failed",
            "rows",
            "compared",
            "same",
            "latency",
        ],
    )
    over = int(time.time() // 60) - 1  # a request that ends now still counts for its minute
    gone = [name for name in names if int(name.split(":")[1]) < over]
    if gone:
        valkey().zrem(MINUTES, *gone)


def _there(ids: Iterable[str]) -> set[str]:
    found = Deployment.objects.filter(pk__in=set(ids)).values_list("pk", flat=True)
    return {str(pk) for pk in found}


def _rows(deployment: str, minute: int, fields: Mapping[bytes, bytes]) -> list[ServedMinute]:
    by_revision: dict[int, Counter[str]] = defaultdict(Counter)
    for field, count in fields.items():
        revision, _, what = field.decode().partition(":")
        by_revision[int(revision)][what] += int(count)
    return [
        ServedMinute(
            deployment_id=UUID(deployment),
            revision=revision,
            minute=datetime.fromtimestamp(minute * 60, UTC),
            requests=counts["n"],
            refused=counts["refused"],
            errors=counts["errors"],
            failed=counts["failed"],
            rows=counts["rows"],
            compared=counts["compared"],
            same=counts["same"],
            latency={what[1:]: n for what, n in counts.items() if what[:1] == "b"},
        )
        for revision, counts in by_revision.items()
    ]


def _copy_samples() -> list[UUID]:
    """Which deployments have new samples."""
    fresh = []
    waiting = [one.decode() for one in valkey().smembers(SAMPLED)]  # type: ignore[union-attr]
    there = _there(waiting)
    for deployment in waiting:
        valkey().srem(SAMPLED, deployment)
        told: Any = valkey().lpop(_samples(deployment), MOST_WAITING)
        if deployment not in there or not told:
            continue
        pk = UUID(deployment)
        with transaction.atomic():
            # Whoever turns sampling off deletes what there is, under the same lock.
            one = Deployment.objects.select_for_update(no_key=True).filter(pk=pk, samples=True)
            if not one.exists():
                continue
            Sample.objects.bulk_create(
                (
                    _sample(pk, asked, row)
                    for asked in map(json.loads, told)
                    for row in asked["rows"]
                ),
                ignore_conflicts=True,
            )
            newest = Sample.objects.filter(deployment=pk).order_by("-id")
            last = newest.values_list("id", flat=True)[MOST_SAMPLES : MOST_SAMPLES + 1].first()
            if last is not None:
                Sample.objects.filter(deployment=pk, id__lte=last).delete()
        fresh.append(pk)
    return fresh


def _sample(deployment: UUID, asked: Mapping[str, Any], row: Sequence[Any]) -> Sample:
    number, values, predicted = row
    return Sample(
        deployment_id=deployment,
        prediction=UUID(asked["id"]),
        revision=asked["revision"],
        at=datetime.fromtimestamp(asked["at"], UTC),
        row=number,
        values=values,
        predicted=predicted,
    )


def look_for_drift(deployment: UUID, *, at_once: bool = False) -> DriftReport | None:
    """Compare the newest samples of the current revision with what its model was trained on.

    Not again within five minutes, unless ``at_once``. Tells of columns that are newly past the
    threshold with an event. None where there is nothing to compare.
    """
    one = Deployment.objects.there().filter(pk=deployment).select_related("revision").first()
    if one is None or one.revision is None or one.revision.model_id is None:
        return None
    last = one.drift_reports.order_by("-at").first()
    if last is not None and not at_once and timezone.now() - last.at < LOOK_AFTER:
        return None
    found = Sample.objects.filter(deployment=one, revision=one.revision.number).order_by("-id")
    samples = list(found.values_list("values", "predicted")[:LOOKED_AT])
    columns = _compared(one.revision.model_id, samples)
    if not columns:
        return None
    drifted = [each.column for each in columns if each.is_past(one.drift_threshold)]
    known = (
        set(last.drifted) if last is not None and last.revision == one.revision.number else set()
    )
    with transaction.atomic():
        report: DriftReport = one.drift_reports.create(
            revision=one.revision.number,
            rows=len(samples),
            columns=[
                {
                    "column": each.column, "psi": round(each.psi, 4),
                    "distance": round(each.distance, 4), "chance": round(each.chance, 4),
                    "rows": each.rows,
                    "bins": [[name, round(a, 4), round(b, 4)] for name, a, b in each.bins],
                }
                for each in columns
            ],
            drifted=drifted,
        )  # fmt: skip
        if set(drifted) - known:
            told = {"columns": drifted, "threshold": one.drift_threshold, "rows": len(samples)}
            emit(one.topic, "deployment.drift", told)
        elif known and not drifted:
            emit(one.topic, "deployment.no-drift", {})
        old = one.drift_reports.order_by("-at")[KEPT_REPORTS:]
        DriftReport.objects.filter(pk__in=old.values("pk")).delete()
    return report


def _compared(model: UUID, samples: Sequence[tuple[Any, Any]]) -> list[drift.Drift]:
    """How far each column, and what was predicted, is from training: the farthest first."""
    trained = TrainedModel.objects.select_related("job__dataset_version").filter(pk=model).first()
    version = trained.job.dataset_version if trained is not None else None
    if trained is None or version is None:  # its data set was deleted
        return []
    profile = {str(column["name"]): column for column in version.columns}
    found = []
    for name in [str(column["name"]) for column in trained.schema]:
        if name in profile:
            values = (row.get(name) for row, _ in samples)
            found.append(drift.compare(profile[name], version.rows, values))
    if (target := profile.get(trained.job.target)) is not None:
        found.append(drift.compare(target, version.rows, (said for _, said in samples)))
    return sorted((each for each in found if each is not None), key=lambda each: -each.psi)


# --- For pages and the API -----------------------------------------------------------------------


def failures(one: Deployment, since: datetime) -> dict[int, canaries.Asked]:
    """What each of its revisions was asked, and how often it could not answer."""
    found: dict[int, canaries.Asked] = {}
    for row in one.minutes.filter(minute__gte=since).order_by():
        requests, failed = found.get(row.revision, canaries.Asked(0, 0))
        found[row.revision] = canaries.Asked(
            requests + row.requests + row.failed, failed + row.errors + row.failed
        )
    return found


def served(one: Deployment, hours: int, step_min: int) -> list[dict[str, Any]]:
    """What it was asked in the last hours, in steps of so many minutes, oldest first.

    Steps without a request are there, too. ``ms``: percentiles of all answers; None without any.
    """
    step_s = step_min * 60
    end = int(time.time() // step_s) * step_s
    start = end - hours * 3600 + step_s
    sums: dict[int, Counter[str]] = defaultdict(Counter)
    latencies: dict[int, Counter[int]] = defaultdict(Counter)
    since = datetime.fromtimestamp(start, UTC)
    for row in one.minutes.filter(minute__gte=since).order_by():
        at = int(row.minute.timestamp() // step_s) * step_s
        sums[at].update(
            requests=row.requests, refused=row.refused, errors=row.errors, rows=row.rows
        )
        latencies[at].update({int(number): count for number, count in row.latency.items()})
    return [
        {
            "at": datetime.fromtimestamp(at, UTC),
            **{name: sums[at][name] for name in ("requests", "refused", "errors", "rows")},
            **{
                f"p{round(100 * share)}_ms": percentile(latencies[at], share)
                for share in (0.5, 0.95, 0.99)
            },
        }
        for at in range(start, end + 1, step_s)
    ]


_COUNTS = ("requests", "refused", "errors")


def together(one: Deployment, hours: int) -> list[dict[str, Any]]:
    """The same for all of the last hours, by revision."""
    sums: dict[int, Counter[str]] = defaultdict(Counter)
    latencies: dict[int, Counter[int]] = defaultdict(Counter)
    since = timezone.now() - timedelta(hours=hours)
    for row in one.minutes.filter(minute__gte=since).order_by():
        sums[row.revision].update(
            {name: getattr(row, name) for name in (*_COUNTS, "compared", "same")}
        )
        latencies[row.revision].update({int(n): count for n, count in row.latency.items()})
    return [
        {
            "revision": revision,
            **{name: sums[revision][name] for name in _COUNTS},
            "compared": sums[revision]["compared"],
            "agreement": sums[revision]["same"] / (sums[revision]["compared"] or 1)
            if sums[revision]["compared"]
            else None,
            **{
                f"p{round(100 * share)}_ms": percentile(latencies[revision], share)
                for share in (0.5, 0.95, 0.99)
            },
        }
        for revision in sorted(sums)
    ]
