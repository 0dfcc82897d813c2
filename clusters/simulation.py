"""A month of a cluster's life in seconds: made-up load and failing nodes through the planner. Pure.

Deployments arrive at random, more by day than by night, and stay for hours or days; nodes fail and
come back. Every minute in which something changed the planner is asked and its plan carried out at
once. What comes of it: how full the cluster was, how long who waited, and who had to make room.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from clusters.scheduling import (
    MOST_URGENT,
    Deployment,
    Node,
    Replica,
    Resources,
    Snapshot,
    plan,
)

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
GIB = 1024

# Sizes of replicas (GiB, cores, GPUs), with how many of a hundred ask for them.
SIZES = (
    (40, (1, 0.5, 0)), (25, (2, 1, 0)), (15, (4, 2, 0)), (8, (8, 4, 0)), (4, (16, 8, 0)),
    (5, (16, 4, 1)), (3, (32, 8, 2)),
)  # fmt: skip
PRIORITIES = (35, 40, 20, 5)  # of a hundred: LOW to CRITICAL
REPLICAS = ((1, 70), (2, 20), (3, 10))  # how many, and of how many of a hundred
SPREAD = 1.0  # of the logarithm of the stay: half of all stay between half and twice the median
NODES = ((0.7, (64, 16, 0)), (0.3, (128, 32, 4)))  # share of the nodes, and what they have


@dataclass(frozen=True)
class Load:
    """What is simulated. ``fill`` is the load that arrives, as a share of what the cluster has of
    the resource that gets scarce first."""

    nodes: int = 40
    days: float = 30.0
    fill: float = 1.1
    stay_s: float = 18 * HOUR  # median
    node_fails_every_s: float = 20 * DAY
    node_is_gone_s: float = 3 * HOUR
    seed: int = 1


@dataclass
class Outcome:
    """What happened. ``use`` has, per hour, the shares of RAM, CPU and GPUs in use (0 to 1), of
    what the living nodes have; ``waiting`` the replicas that waited then."""

    use: list[tuple[float, float, float]] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    nodes_up: list[int] = field(default_factory=list)
    waits_s: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    evicted: list[tuple[float, int]] = field(default_factory=list)  # when (s), whose priority
    never_ran: int = 0
    replicas: int = 0
    failures: int = 0  # of nodes
    plans: int = 0


def simulate(load: Load) -> Outcome:
    """The same load always gives the same outcome."""
    return _Simulation(load).run()


class _Simulation:
    def __init__(self, load: Load) -> None:
        self.load = load
        self.random = random.Random(load.seed)
        self.nodes = {node.id: node for node in _nodes(load.nodes)}
        self.down: set[str] = set()
        self.live: dict[str, tuple[Deployment, float]] = {}  # with when it arrived
        self.running: dict[tuple[str, int], tuple[str, float]] = {}  # node, since when
        self.since: dict[tuple[str, int], float] = {}  # since when a replica waits
        self.events: list[tuple[float, int, str, str]] = []
        self.outcome = Outcome()

    def run(self) -> Outcome:
        self.expect()
        end, now, changed, next_hour = self.load.days * DAY, 0.0, True, 0.0
        while now < end:
            while self.events and self.events[0][0] <= now:
                _, _, what, whom = heapq.heappop(self.events)
                getattr(self, what)(whom, now)
                changed = True
            if changed and self.since:
                self.plan(now)
            changed = False
            if now >= next_hour:
                self.note()
                next_hour += HOUR
            # On to the minute of the next event, or to the hour that has to be noted.
            coming = self.events[0][0] if self.events else end
            now = max(now + MINUTE, min(math.ceil(coming / MINUTE) * MINUTE, next_hour))
        self.outcome.never_ran = len(self.since)
        return self.outcome

    def expect(self) -> None:
        """All arrivals of the month, and each node's first failure."""
        for at, one in _arrivals(self.load, self.random, list(self.nodes.values())):
            self.live[one.id] = (one, at)
            self.push(at, "arrive", one.id)
        for node in self.nodes:
            self.push(self.random.expovariate(1 / self.load.node_fails_every_s), "fail", node)

    def push(self, at: float, what: str, whom: str) -> None:
        heapq.heappush(self.events, (at, len(self.events), what, whom))

    # What happens

    def arrive(self, whom: str, now: float) -> None:
        one, _ = self.live[whom]
        for number in range(one.replicas):
            self.since[whom, number] = now
            self.outcome.replicas += 1
        stay_s = self.load.stay_s * math.exp(self.random.gauss(0, SPREAD))
        self.push(now + stay_s, "leave", whom)

    def leave(self, whom: str, now: float) -> None:
        one, _ = self.live.pop(whom)
        for number in range(one.replicas):
            self.running.pop((whom, number), None)
            if self.since.pop((whom, number), None) is not None:
                self.outcome.never_ran += 1

    def fail(self, node: str, now: float) -> None:
        self.outcome.failures += 1
        self.down.add(node)
        for replica, (where, _) in list(self.running.items()):
            if where == node:
                del self.running[replica]
                self.since[replica] = now
        self.push(now + self.load.node_is_gone_s, "mend", node)

    def mend(self, node: str, now: float) -> None:
        self.down.discard(node)
        self.push(now + self.random.expovariate(1 / self.load.node_fails_every_s), "fail", node)

    def plan(self, now: float) -> None:
        waiting = {whom for whom, _ in self.since}
        there = {whom for whom, _ in self.running}
        deployments = [
            replace(self.live[whom][0], waited_s=now - self.live[whom][1])
            for whom in sorted(waiting | there)
        ]
        nodes = [node for name, node in self.nodes.items() if name not in self.down]
        running = [
            Replica(whom, number, node, now - since)
            for (whom, number), (node, since) in self.running.items()
        ]
        made = plan(Snapshot(nodes, deployments, running))
        self.outcome.plans += 1
        for gone in made.evictions:
            del self.running[gone.deployment, gone.number]
            self.since[gone.deployment, gone.number] = now
            self.outcome.evicted.append((now, self.live[gone.deployment][0].priority))
        for new in made.placements:
            waited = now - self.since.pop((new.deployment, new.number))
            self.outcome.waits_s[self.live[new.deployment][0].priority].append(waited)
            self.running[new.deployment, new.number] = (new.node, now)

    def note(self) -> None:
        up = [node for name, node in self.nodes.items() if name not in self.down]
        held = [self.live[whom][0].needs for whom, _ in self.running]
        use = [
            sum(needs[r] for needs in held) / max(1, sum(node.total[r] for node in up))
            for r in range(3)
        ]
        self.outcome.use.append((use[0], use[1], use[2]))
        self.outcome.waiting.append(len(self.since))
        self.outcome.nodes_up.append(len(up))


def _nodes(count: int) -> Iterator[Node]:
    with_gpus = round(NODES[1][0] * count)
    for i in range(count):
        ram, cpu, gpus = NODES[1][1] if i < with_gpus else NODES[0][1]
        yield Node(f"node-{i:03}", Resources(ram * GIB, cpu * 1000, gpus))


def _arrivals(
    load: Load, random_: random.Random, nodes: Sequence[Node]
) -> Iterator[tuple[float, Deployment]]:
    """Poisson, its rate higher by day (a factor of 1 + sin), until the month is over."""
    sizes = [Resources(ram * GIB, int(cpu * 1000), gpus) for _, (ram, cpu, gpus) in SIZES]
    often = [share for share, _ in SIZES]
    mean_replicas = sum(n * share for n, share in REPLICAS) / 100
    shares = [
        sum(share * size[r] for share, size in zip(often, sizes, strict=True))
        / (100 * max(1, sum(node.total[r] for node in nodes)))
        for r in range(3)
    ]
    # The mean of a lognormal is its median times this.
    mean_stay_s = load.stay_s * math.exp(SPREAD**2 / 2)
    rate = load.fill / (max(shares) * mean_replicas * mean_stay_s)
    at, i = 0.0, 0
    while True:
        at += random_.expovariate(2 * rate)
        if at >= load.days * DAY:
            return
        if random_.random() > (1 + math.sin(2 * math.pi * (at / DAY - 0.375))) / 2:
            continue  # thinned to the rate of the hour
        [needs] = random_.choices(sizes, often)
        [priority] = random_.choices(range(MOST_URGENT + 1), PRIORITIES)
        replicas = random_.choices(*zip(*REPLICAS, strict=True))[0]
        yield at, Deployment(f"d{i:05}", needs, replicas, priority, spread=replicas > 1)
        i += 1
