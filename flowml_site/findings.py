"""What is wrong with an installation, from figures: pure. The dashboard and ``doctor`` share it.

Each finding says what hurts, how much, and what a person can do about it now, at 3 a.m.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import IntEnum
from urllib.parse import urlencode

LONG_WAIT_S = 600.0
SWEEP_LATE_S = 15.0  # beat asks for a sweep every two seconds
SKEW_S = 5.0
NODE_SKEW_S = 30.0  # its report may have waited on the way
NODE_DISK_MIB = 2048
NEAR = 0.9  # of a quota
USUAL_TIMES = 2.0  # a task that runs this many times as long as its like is slow
FORGOTTEN_S = 7 * 86_400.0
TASKS, NODES = "admin:workers_task_changelist", "admin:workers_worker_changelist"


class Severity(IntEnum):
    """How much it hurts. ``doctor`` ends with 1 from WARNING on."""

    NOTE = 0
    WARNING = 1
    CRITICAL = 2

    @property
    def word(self) -> str:
        return self.name.lower()

    def of(self, count: int) -> str:
        """How many there are of it: "1 warning", "3 critical"."""
        return f"{count} critical" if self is Severity.CRITICAL else some(count, self.word)


@dataclass(frozen=True)
class Finding:
    """Something that is wrong. ``page`` names a list of the console, ``query`` its filter."""

    severity: Severity
    area: str
    title: str
    detail: str
    remedy: str
    page: str = ""
    query: str = ""
    weight: float = 0.0  # orders findings of one severity: how many it hurts

    @property
    def order(self) -> tuple[int, float, str]:
        return (-self.severity, -self.weight, self.title)


@dataclass(frozen=True)
class Queue:
    """A line of waiting tasks. ``unserved`` of the ``waiting`` fit no node that takes work."""

    name: str
    waiting: int = 0
    unserved: int = 0
    oldest_s: float = 0.0
    nodes: int = 0
    running: int = 0
    paused: bool = False


@dataclass(frozen=True)
class Node:
    """A machine. ``ahead_s``: how far its clock is ahead of ours, None where it did not say."""

    id: str
    name: str
    state: str  # alive | draining | gone
    silent_s: float = 0.0
    running: int = 0
    version: str = ""
    gpus: int = 0
    gpus_busy: int = 0
    disk_free_mib: int | None = None
    ahead_s: float | None = None
    queues: tuple[str, ...] = ()


@dataclass(frozen=True)
class Slow:
    """A task that runs longer than its like usually does (``usual_s``: 95% took less)."""

    id: str
    name: str
    kind: str
    node: str
    runs_s: float
    usual_s: float
    limit_s: float


@dataclass(frozen=True)
class Failures:
    """Tasks that failed in the last 24 hours for one reason. ``example``: the newest's words."""

    fault: str
    code: str
    count: int
    example: str = ""


@dataclass(frozen=True)
class Quota:
    """What an organization uses of what it may."""

    organization: str
    name: str
    what: str
    used: float
    limit: float
    unit: str = ""

    @property
    def share(self) -> float:
        return self.used / self.limit if self.limit else 0.0


@dataclass(frozen=True)
class Paused:
    """An operator's word that nothing new starts."""

    what: str
    by: str
    reason: str
    since_s: float
    waiting: int


@dataclass(frozen=True)
class Hour:
    """What happened in the hour that began at ``at``; ``waiting``: in line when it ended."""

    at: datetime
    succeeded: int = 0
    failed_work: int = 0
    failed_platform: int = 0
    cancelled: int = 0
    waiting: int = 0


@dataclass(frozen=True)
class Snapshot:
    """The figures of an installation at one moment."""

    at: datetime
    version: str = ""
    queues: Sequence[Queue] = ()
    nodes: Sequence[Node] = ()
    running: int = 0
    slow: Sequence[Slow] = ()
    failures: Sequence[Failures] = ()
    ended: int = 0  # in the last 24 hours
    unhandled: int = 0  # ends and events that nothing reacted to
    swept_s: float | None = None  # since the last sweep; None: never
    broker: str = ""  # why it can't be used, if it can't
    stored_bytes: int = 0
    disk_free_bytes: int | None = None  # None: files are not on a disk of ours
    disk_total_bytes: int | None = None
    quotas: Sequence[Quota] = ()
    pauses: Sequence[Paused] = ()
    hours: Sequence[Hour] = field(default_factory=tuple)

    @property
    def waiting(self) -> int:
        return sum(queue.waiting for queue in self.queues)

    def nodes_that_are(self, state: str) -> list[Node]:
        return [node for node in self.nodes if node.state == state]


def findings(seen: Snapshot) -> list[Finding]:
    """Everything that is wrong, worst first."""
    found: list[Finding] = []
    for look in (
        _control, _queues, _nodes, _slow, _failures, _storage, _quotas, _pauses,
    ):  # fmt: skip
        found.extend(look(seen))
    return sorted(found, key=lambda one: one.order)


def ago(seconds: float) -> str:
    """A length of time in its largest unit: 40 s, 12 min, 3 h, 2 days."""
    seconds = max(0.0, seconds)
    for size, word in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size or (seconds >= size and word != "days"):
            return f"{seconds / size:.0f} {word}"
    return f"{seconds:.0f} s"


def size(count: float) -> str:
    """Bytes as GiB or MiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def some(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def _named(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _filter(**by: object) -> str:
    return urlencode(by)


def _control(seen: Snapshot) -> Iterator[Finding]:
    if seen.broker:
        yield Finding(
            Severity.CRITICAL, "broker", "The broker can't be used", seen.broker,
            "Start Valkey (or Redis) at REDIS_URL again, and look at its disk. Nodes find work "
            "by their heartbeats meanwhile; nothing is lost.", weight=1e9,
        )  # fmt: skip
    if seen.swept_s is None or seen.swept_s > SWEEP_LATE_S:
        since = "never" if seen.swept_s is None else f"{ago(seen.swept_s)} ago"
        yield Finding(
            Severity.CRITICAL, "control", "Control does not sweep",
            f"The last sweep was {since}. Lost nodes are not noticed and ends not reacted to.",
            "See that `control` and `beat` run, and that the schedule “workers-sweep” is enabled "
            "(Schedules); their logs are control.log and beat.log.",
            "admin:django_celery_beat_periodictask_changelist", weight=1e8,
        )  # fmt: skip
    if seen.unhandled:
        yield Finding(
            Severity.CRITICAL, "control", f"{some(seen.unhandled, 'report')} not reacted to",
            "Tasks ended, or found a model, and nothing came of it: jobs seem to run on.",
            "Look for “reaction failed” in control.log; it is tried five times.",
            TASKS, _filter(trouble="unhandled"), weight=seen.unhandled,
        )  # fmt: skip


def _queues(seen: Snapshot) -> Iterator[Finding]:
    gone = seen.nodes_that_are("gone") + seen.nodes_that_are("draining")
    for queue in seen.queues:
        page = _filter(state__exact="queued", queue=queue.name)
        if queue.unserved:
            once = [node.name for node in gone if queue.name in node.queues]
            served = f" It was served by {_named(once)}." if once else ""
            yield Finding(
                Severity.CRITICAL, "queues", f"Nobody serves {queue.name}",
                f"{some(queue.unserved, 'task')} can't start, the oldest for "
                f"{ago(queue.oldest_s)}.{served}",
                "Start or resume a node that can do it, or cancel these tasks: their owners see "
                "what they wait for.",
                TASKS, _filter(trouble="unserved", queue=queue.name), queue.unserved,
            )  # fmt: skip
        elif queue.oldest_s > LONG_WAIT_S and not queue.paused:
            yield Finding(
                Severity.WARNING, "queues", f"{queue.name} is backed up",
                f"{some(queue.waiting, 'task')} in line, the oldest for {ago(queue.oldest_s)}; "
                f"{some(queue.nodes, 'node')} on it, {queue.running} running.",
                "Add a node or raise a node's concurrency. If one organization fills the line, "
                "look at its limit.",
                TASKS, page, queue.waiting,
            )  # fmt: skip


def _nodes(seen: Snapshot) -> Iterator[Finding]:
    if seen.nodes and not any(node.state != "gone" for node in seen.nodes):
        yield Finding(
            Severity.CRITICAL, "nodes", "No node is alive",
            f"{some(len(seen.nodes), 'node')} known, none heard of: nothing is done.",
            "Start one; `make up` starts one on this machine.", NODES, weight=1e7,
        )  # fmt: skip
    elif not seen.nodes:
        yield Finding(
            Severity.WARNING, "nodes", "No node has joined", "Nothing is trained until one does.",
            "Start one: docs/node.md tells how.", NODES, weight=1e7,
        )  # fmt: skip
    for node in seen.nodes:
        page = _filter(q=node.id)
        if node.state == "gone":
            forgotten = node.silent_s > FORGOTTEN_S
            yield Finding(
                Severity.NOTE if forgotten else Severity.WARNING, "nodes", f"{node.name} is gone",
                f"Not heard of for {ago(node.silent_s)}. Its tasks run again elsewhere.",
                "Remove it if it does not come back."
                if forgotten
                else "Look at the machine, its network and the node's log; start it again, or "
                "remove it if it does not come back.",
                NODES, page, 100.0 + node.running,
            )  # fmt: skip
            continue
        if node.state == "draining" and not node.running:
            yield Finding(
                Severity.NOTE, "nodes", f"{node.name} is drained",
                "It runs nothing and takes no work.", "Restart, resume or remove it.", NODES, page,
            )  # fmt: skip
        if node.ahead_s is not None and abs(node.ahead_s) > NODE_SKEW_S:
            way = "ahead of" if node.ahead_s > 0 else "behind"
            yield Finding(
                Severity.WARNING, "clocks", f"The clock of {node.name} is wrong",
                f"It is {ago(abs(node.ahead_s))} {way} the server's.",
                "Set up NTP (chrony or systemd-timesyncd) on that machine.", NODES, page, 10,
            )  # fmt: skip
        if node.disk_free_mib is not None and node.disk_free_mib < NODE_DISK_MIB:
            yield Finding(
                Severity.WARNING, "disk", f"{node.name} has little disk left",
                f"{node.disk_free_mib:,} MiB free: it can't fetch tables or keep results.",
                "Make room in its FLOWML_NODE_DIR, or drain it.", NODES, page, 50,
            )  # fmt: skip
        if node.version and seen.version and node.version != seen.version:
            yield Finding(
                Severity.WARNING, "versions", f"{node.name} runs version {node.version}",
                f"The server is {seen.version}.",
                "Drain it, install the server's version, restart it.", NODES, page, 5,
            )  # fmt: skip


def _slow(seen: Snapshot) -> Iterator[Finding]:
    if not seen.slow:
        return
    worst = sorted(seen.slow, key=lambda one: -one.runs_s / max(one.usual_s, 1.0))
    told = "; ".join(
        f"{one.name} on {one.node or 'no node'} for {ago(one.runs_s)}, usually {ago(one.usual_s)}"
        for one in worst[:3]
    )
    ids = ",".join(one.id for one in worst[:50])
    yield Finding(
        Severity.WARNING, "tasks", f"{some(len(worst), 'task')} run{'s' * (len(worst) == 1)} "
        "beyond the usual time",
        f"{told}{' and others' if len(worst) > 3 else ''}.",
        "Look at the task's events for progress. Cancel it if there is none: its node kills the "
        "process tree; Queue again makes a new one.",
        TASKS, _filter(id__in=ids), len(worst),
    )  # fmt: skip


def _failures(seen: Snapshot) -> Iterator[Finding]:
    failed = sum(one.count for one in seen.failures)
    many = failed >= 5 and failed > seen.ended / 2
    for one in seen.failures:
        ours = one.fault == "platform"
        page = _filter(trouble="failed-today", fault__exact=one.fault, code=one.code)
        why = f"“{one.example}”" if one.example else "No reason was given."
        yield Finding(
            Severity.CRITICAL
            if ours and one.count >= 10
            else Severity.WARNING
            if ours or many
            else Severity.NOTE,
            "failures",
            f"{some(one.count, 'task')} failed in 24 h: {one.code or 'no code'} "
            f"(fault: {one.fault or 'unknown'})",
            f"The newest: {why}",
            "It is the platform's fault: look at the nodes that were lost, then queue these again."
            if ours
            else "Its owner was told. Most of what ends fails: look for a common cause."
            if many
            else "Its owner was told what to do about it.",
            TASKS, page, one.count,
        )  # fmt: skip


def _storage(seen: Snapshot) -> Iterator[Finding]:
    free, total = seen.disk_free_bytes, seen.disk_total_bytes
    if free is None or not total:
        return
    full = free < 2**30 or free / total < 0.02
    if full or free < 5 * 2**30 or free / total < 0.1:
        yield Finding(
            Severity.CRITICAL if full else Severity.WARNING, "storage",
            "The storage is full" if full else "The storage is nearly full",
            f"{size(free)} of {size(total)} free; artifacts take {size(seen.stored_bytes)}.",
            "Delete data sets and jobs that nobody needs (largest artifacts first), or give "
            "the disk more room. Uploads are refused when it is full.",
            "admin:workers_artifact_changelist", _filter(o="-3"), 1000,
        )  # fmt: skip


def _quotas(seen: Snapshot) -> Iterator[Finding]:
    for quota in seen.quotas:
        if quota.share < NEAR:
            continue
        if quota.unit == "bytes":
            used, limit = size(quota.used), size(quota.limit)
        else:
            used, limit = (f"{x:,.4g} {quota.unit}".strip() for x in (quota.used, quota.limit))
        yield Finding(
            # All the trainings that are allowed at once is how it should be.
            Severity.WARNING if quota.share >= 1 and quota.unit else Severity.NOTE,
            "quotas",
            f"{quota.name}: {quota.share:.0%} of its quota “{quota.what}”",
            f"{used} of {limit}.",
            "Raise its limit here, or leave it: its members see why things wait or are refused.",
            "admin:organizations_organization_changelist",
            _filter(q=quota.name),
            quota.share,
        )


def _pauses(seen: Snapshot) -> Iterator[Finding]:
    for pause in seen.pauses:
        why = f" “{pause.reason}”" if pause.reason else ""
        yield Finding(
            Severity.WARNING if pause.waiting else Severity.NOTE, "pauses",
            f"Paused: {pause.what}",
            f"By {pause.by or 'somebody'}, {ago(pause.since_s)} ago.{why}"
            + (f" {some(pause.waiting, 'task')} in line." if pause.waiting else ""),
            "Resume it when you are done.", "admin:workers_pause_changelist", weight=pause.waiting,
        )  # fmt: skip


def hours_before(now: datetime, count: int = 24) -> list[datetime]:
    """The beginnings of the last ``count`` hours, oldest first; the last has just begun."""
    last = now.replace(minute=0, second=0, microsecond=0)
    return [last - timedelta(hours=back) for back in range(count - 1, -1, -1)]
