"""Many tasks of several organizations on a few nodes, while processes are killed; and the figures.

What is struck, and when, comes from the seed alone: the same seed strikes the same kinds of
processes at the same moments again. Which task suffers depends on the machine.
"""

import contextlib
import os
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

from tests.chaos.fleet import Fleet, Node, until
from workers.node import procs
from workers.node.settings import read

NODES = 4
ORGANIZATIONS = 5
SLOTS = 2  # of each node
SWEEP_S = 5.0  # control looks again after what was missed
# How often what is struck, out of the sum. Web and control are started again by `up`.
WEIGHTS = {
    "child": 6,
    "node": 5,
    "warm parent": 3,
    "web-1": 2,
    "web-2": 2,
    "control": 2,
    "beat": 1,
    "valkey": 1,
    "postgres": 1,
}


@dataclass(frozen=True)
class Strike:
    """``which`` picks among several of a kind; a node is away for ``away_s``, then starts again."""

    at_s: float
    what: str
    which: int
    away_s: float = 0.0


def plan(seed: int, *, lasting_s: float) -> list[Strike]:
    """What will be struck when, in seconds since the start."""
    chance, strikes, now = random.Random(seed), list[Strike](), 0.0
    while True:
        now += chance.uniform(1.5, 4.5)
        if now > lasting_s:
            return strikes
        what = chance.choices(list(WEIGHTS), weights=list(WEIGHTS.values()))[0]
        away_s = chance.choice([1.0, 1.0, 20.0])
        strikes.append(Strike(round(now, 1), what, chance.randrange(1000), away_s))


@dataclass
class Report:
    """What came of it. Seconds; ``wrong`` is empty when all is well."""

    seed: int
    tasks: int
    struck: dict[str, int] = field(default_factory=dict)
    storm_s: float = 0.0
    succeeded: int = 0
    exactly_once: int = 0
    doubled: int = 0
    missing: int = 0
    again: int = 0  # attempts beyond the first
    noticed_s: list[float] = field(default_factory=list)
    runs_again_s: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    unfair_percent: float = 0.0
    calm_s: float = 0.0
    left_behind: int = 0
    wrong: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For a person."""
        struck = ", ".join(f"{count} {what}" for what, count in sorted(self.struck.items()))
        shares = ", ".join(f"{share:.1%}" for share in self.shares)
        return [
            f"chaos, seed {self.seed}: {self.tasks} tasks, {len(self.shares)} organizations",
            f"  killed                 {struck}",
            f"  done                   {self.succeeded} of {self.tasks} in {self.storm_s:.0f} s",
            f"  done exactly once      {self.exactly_once}",
            f"  doubled                {self.doubled}",
            f"  missing                {self.missing}",
            f"  begun again            {self.again} times",
            f"  dead node noticed      after {_span(self.noticed_s)} (at most 15 s)",
            f"  its task runs again    after {_span(self.runs_again_s)} (at most 20 s)",
            f"  left behind            {self.left_behind} processes",
            f"  without kills          {self.tasks} tasks in {self.calm_s:.0f} s",
            f"  shares                 {shares}",
            f"  furthest from fair     {self.unfair_percent:.1f}% (at most 10%)",
            "  all is well" if not self.wrong else "  WRONG: " + "; ".join(self.wrong[:20]),
        ]

    def as_json(self) -> dict[str, Any]:
        """For a program."""
        return asdict(self)


def _span(seconds: list[float]) -> str:
    if not seconds:
        return "(none died)"
    return f"{min(seconds):.1f} to {max(seconds):.1f} s"


class Storm:
    """One run on a fleet that is up. ``say`` gets a line for each thing that happens."""

    def __init__(self, fleet: Fleet, report: Report, say: Callable[[str], None]) -> None:
        self.fleet, self.report, self.say = fleet, report, say
        self.organizations: list[str] = fleet.desk("organizations", ORGANIZATIONS)
        self.names = [f"n{number}" for number in range(1, NODES + 1)]
        self._struck_tasks: set[str] = set()
        self._back_at: dict[str, float] = {}
        self._died: list[tuple[str, float]] = []

    def whole(self) -> None:
        """The storm, a calm, and the death of one node."""
        self._start_nodes()
        self._storm()
        self._calm()
        self._one_dies()
        self._look_behind()

    def _start_nodes(self) -> None:
        for name in self.names:
            self.fleet.nodes[name] = Node(self.fleet, name).start()
        for name in self.names:
            until(lambda name=name: self.fleet.seen(name, since=0), f"{name} joins")

    # --- with kills ---

    def _storm(self) -> None:
        chance = random.Random(self.report.seed)
        payloads = [
            {"s": round(chance.uniform(0.2, 1.4), 2), "models": chance.randint(1, 3), "answer": n}
            for n in range(self.report.tasks)
        ]
        self._drain(True)  # until all tasks are there
        tasks = self.fleet.desk("add_many", self.organizations, payloads)
        self._drain(False)
        strikes = plan(self.report.seed, lasting_s=3600)
        began, struck = time.monotonic(), Counter[str]()
        deadline = began + 60 + 1.5 * self.report.tasks
        while (left := self._left(tasks)) and time.monotonic() < deadline:
            self._bring_back()
            now = time.monotonic() - began
            while strikes and strikes[0].at_s <= now:
                strike = strikes.pop(0)
                if self._strike(strike):
                    struck[strike.what] += 1
                    self.say(f"{now:6.1f} s  killed {strike.what}; {left} tasks to go")
            time.sleep(0.2)
        self.report.storm_s = time.monotonic() - began
        self.report.struck = dict(struck)
        while self._back_at:
            self._bring_back()
            time.sleep(0.2)
        self._judge(tasks, payloads)

    def _drain(self, draining: bool) -> None:
        for name in self.names:
            self.fleet.desk("drain", name, draining)

    def _left(self, tasks: list[str]) -> int:
        [[left]] = self.fleet.desk.rows(
            "SELECT count(*) FROM workers_task WHERE id = ANY(%s::uuid[]) AND finished_at IS NULL",
            tasks,
        )
        return int(left)

    def _strike(self, strike: Strike) -> bool:
        with contextlib.suppress(psutil.Error, LookupError, ProcessLookupError):
            if strike.what in ("child", "warm parent", "node"):
                alive = [n for name in self.names if (n := self.fleet.nodes[name]).runs]
                if len(alive) < 2:
                    return False  # somebody must be there to go on
                return self._strike_node(strike, alive[strike.which % len(alive)])
            number = signal.SIGINT if strike.what == "postgres" else signal.SIGKILL
            os.kill(self.fleet.platform.process(strike.what).pid, number)
            return True
        return False

    def _strike_node(self, strike: Strike, node: Node) -> bool:
        if strike.what == "node":
            self._died.append((node.name, time.time()))
            node.kill()
            self._back_at[node.name] = time.monotonic() + strike.away_s
            return True
        if strike.what == "warm parent":
            parents = node.warm_parents()
            if parents:
                parents[0].kill()
            return bool(parents)
        for child in node.children():
            task = os.path.basename(child.cwd()).partition(".")[0]
            # A child that is killed twice has a problem of its own, as far as anybody can tell.
            if task not in self._struck_tasks:
                self._struck_tasks.add(task)
                child.kill()
                return True
        return False

    def _bring_back(self) -> None:
        for name, at in list(self._back_at.items()):
            if time.monotonic() >= at:
                self.fleet.nodes[name].start()
                del self._back_at[name]

    def _judge(self, tasks: list[str], payloads: list[dict[str, Any]]) -> None:
        report = self.report
        until(lambda: not self._unhandled(tasks), "every end is reacted to", 30 + SWEEP_S)
        ends, models = defaultdict[str, int](int), defaultdict[str, list[str]](list)
        for task, kind, key, count in self.fleet.desk.rows(
            "SELECT task_id, type, key, count(*) FROM workers_event "
            "WHERE task_id = ANY(%s::uuid[]) AND type IN "
            "('task.succeeded', 'task.failed', 'task.cancelled', 'candidate') GROUP BY 1, 2, 3",
            tasks,
        ):
            if kind == "candidate":
                models[task] += [key] * int(count)
            else:
                ends[task] += int(count)
        for task, payload in zip(tasks, payloads, strict=True):
            row = self.fleet.task(task)
            wanted = [f"m{n}" for n in range(payload["models"])]
            got = sorted(models[task])
            report.again += row["attempt"] - 1
            report.succeeded += row["state"] == "succeeded"
            right = row["result"].get("data") == {"answer": payload["answer"]}
            doubled = ends[task] > 1 or len(got) > len(set(got))
            missing = not right or set(got) != set(wanted) or not ends[task]
            report.doubled += doubled
            report.missing += missing
            report.exactly_once += row["state"] == "succeeded" and not doubled and not missing
            if row["state"] != "succeeded" or doubled or missing:
                report.wrong.append(f"{task}: {row}, {ends[task]} ends, models {got} of {wanted}")

    def _unhandled(self, tasks: list[str]) -> int:
        [[left]] = self.fleet.desk.rows(
            "SELECT count(*) FROM workers_task WHERE id = ANY(%s::uuid[]) AND handled_at IS NULL",
            tasks,
        )
        return int(left)

    # --- without ---

    def _calm(self) -> None:
        """The same number of tasks, all there from the start, in one organization after another."""
        for name in self.names:
            self.fleet.node(name)
        self.say("now without kills")
        chance = random.Random(self.report.seed + 1)
        each = self.report.tasks // ORGANIZATIONS
        payloads = [{"s": round(chance.uniform(0.2, 0.6), 2), "answer": n} for n in range(each)]
        self._drain(True)
        # A run of its own: who got less in the storm would be given more now.
        self.fleet.desk.rows("UPDATE workers_turn SET log_used = NULL RETURNING id")
        tasks = {o: self.fleet.desk("add_many", [o], payloads) for o in self.organizations}
        began = time.monotonic()
        self._drain(False)
        everything = [task for own in tasks.values() for task in own]
        until(lambda: not self._left(everything), "the calm ends", 60 + 2.0 * self.report.tasks)
        self.report.calm_s = time.monotonic() - began
        spans = {
            task: (float(start), float(end))
            for task, start, end in self.fleet.desk.rows(
                "SELECT id, started_at, finished_at FROM workers_task WHERE id = ANY(%s::uuid[])",
                everything,
            )
        }
        # Fair while all of them wait for something: until the first has nothing left to begin.
        first = min(start for start, _ in spans.values())
        last = min(max(spans[task][0] for task in own) for own in tasks.values())
        used = [
            sum(max(0.0, min(spans[task][1], last) - max(spans[task][0], first)) for task in own)
            for own in tasks.values()
        ]
        fair = 1 / ORGANIZATIONS
        self.report.shares = [round(u / sum(used), 4) for u in used]
        self.report.unfair_percent = round(
            100 * max(abs(share - fair) / fair for share in self.report.shares), 1
        )

    # --- one death, looked at closely ---

    def _one_dies(self) -> None:
        """A machine is switched off for good in the middle of its work."""
        self.say("one node dies for good")
        tasks = [
            self.fleet.desk("add", self.organizations[0], payload={"s": 60, "answer": 0})
            for _ in self.names
        ]
        for task in tasks:
            self.fleet.running(task)
        victim = str(self.fleet.task(tasks[0])["worker"])
        its = [task for task in tasks if self.fleet.task(task)["worker"] == victim]
        died_at = time.time()
        self.fleet.nodes[victim].kill()
        for task in its:
            until(lambda task=task: self._moment(task, "started", 2), "it runs again", 90)
            self.report.noticed_s.append(self._moment(task, "task.lost", 1) - died_at)
            self.report.runs_again_s.append(self._moment(task, "started", 2) - died_at)
        for task in tasks:
            self.fleet.desk("cancel", task)
        for task in tasks:
            self.fleet.ended(task)

    def _moment(self, task: str, kind: str, count: int) -> float:
        """When the event came for that time; 0 when it has not."""
        found = [at for type_, at, _ in self.fleet.events(task) if type_ == kind]
        return found[count - 1] if len(found) >= count else 0.0

    def _look_behind(self) -> None:
        [[held]] = self.fleet.desk.rows("SELECT count(*) FROM workers_allocation")
        if held:
            self.report.wrong.append(f"{held} allocations are left, of tasks that have ended")
        for name in self.names:
            node = self.fleet.nodes[name]
            if node.runs and node.stop() != 0:
                self.report.wrong.append(f"{name} did not end well")
            env = {"FLOWML_URL": "http://localhost", "FLOWML_NODE_DIR": str(node.folder)}
            self.report.left_behind += len(procs.marked(read(env, 1).mark))
        if self.report.left_behind:
            self.report.wrong.append("processes of nodes that have ended still run")
