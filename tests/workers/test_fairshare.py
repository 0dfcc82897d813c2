"""Who goes next. The four properties of the paper (Ghodsi et al., NSDI 2011, section 3) hold for
divisible work; tasks come whole, so each is held to within the size of a few tasks, as said there.
"""

import functools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.fairshare import (
    HALF_LIFE_S,
    LEAST_S,
    LIGHT_SLOTS,
    PATIENCE_S,
    Choice,
    Room,
    Taken,
    Waiting,
    added,
    choose,
    dominant_share,
    full_organizations,
    log_use,
    room_once_freed,
)

T0 = 1_700_000_000.0  # seconds


def head(task=1, organization="a", **fields) -> Waiting:
    at = fields.pop("queued_at", T0)
    plain = {
        "queue": "cpu",
        "light": False,
        "priority": 0,
        "queued_at": at,
        "line_at": at,
        "since": at,
        "cpu_millis": 1000,
        "ram_mib": 1024,
    }
    return Waiting(task=task, organization=organization, **(plain | fields))


def times(within_s: int):
    return st.integers(0, within_s).map(lambda s: T0 + s)


heads = st.lists(
    st.builds(
        head,
        task=st.uuids(),
        organization=st.sampled_from("abc"),
        priority=st.integers(-1, 1),
        queued_at=times(99),
        light=st.booleans(),
        cpu_millis=st.integers(0, 4000),
        ram_mib=st.integers(0, 8192),
        gpus=st.integers(0, 1),
        gpu_ram_mib=st.sampled_from([0, 6144, 8192]),
    ),
    max_size=8,
)
rooms = st.builds(
    Room,
    slots=st.integers(0, 2),
    light_slots=st.integers(0, 2),
    cpu_millis=st.integers(0, 4000),
    ram_mib=st.integers(0, 8192),
    gpus=st.lists(st.integers(4000, 24_000), max_size=2).map(tuple),
)
shares = st.dictionaries(st.sampled_from("abc"), st.floats(0, 1))


# --- One choice ---


@given(heads, shares, rooms)
def test_what_is_chosen_fits_and_nothing_is_chosen_only_when_nothing_fits(waiting, used, room):
    best = choose(waiting, used, room).start
    if best is None:
        assert not any(one.fits(room) for one in waiting)
    else:
        assert best.fits(room)


@given(heads, shares, rooms)
def test_urgency_then_the_smallest_share_then_age(waiting, used, room):
    best = choose(waiting, used, room).start
    if best is not None:
        rivals = [one for one in waiting if one.fits(room)]
        assert best.priority == max(one.priority for one in rivals)
        rivals = [one for one in rivals if one.priority == best.priority]
        least = min(used.get(one.organization, 0) for one in rivals)
        assert used.get(best.organization, 0) == least
        rivals = [one for one in rivals if used.get(one.organization, 0) == least]
        assert best.since == min(one.since for one in rivals)


@given(heads, shares, rooms, st.randoms())
def test_the_order_of_the_list_does_not_matter(waiting, used, room, random):
    distinct = [one._replace(since=T0 + n) for n, one in enumerate(waiting)]
    shuffled = random.sample(distinct, len(distinct))
    assert choose(shuffled, used, room) == choose(distinct, used, room)


def test_the_dominant_share_is_that_of_the_scarcest_resource_for_the_weight():
    assert dominant_share({"cpu": 1, "ram": 6}, {"cpu": 10, "ram": 10}) == 0.6
    assert dominant_share({"cpu": 1, "ram": 6}, {"cpu": 10, "ram": 10}, weight=2) == 0.3
    assert dominant_share({"gpu": 1}, {}) == 0


def test_an_organization_at_its_limit_is_full_and_one_without_limit_never():
    assert full_organizations({"a": 4, "b": 3, "c": 9}, {"a": 4, "b": 4}) == {"a"}


# --- Slots and reserves ---

nodes = st.builds(
    lambda cores, ram, gpus, slots: Room.of_empty(
        {"cpu": cores, "ram_mib": ram, "gpus": [{"memory_mib": size} for size in gpus]}, slots
    ),
    st.integers(1, 32),
    st.integers(2048, 65_536),
    st.lists(st.sampled_from([6144, 8192, 24_576]), max_size=4),
    st.integers(1, 16),
)


def less(room: Room, one: Waiting) -> Room:
    """What is left once ``one`` has started."""
    if one.light:
        return Room(**{**vars(room), "light_slots": room.light_slots - 1})
    gpus = sorted(room.gpus)
    for _ in range(one.gpus):
        gpus.remove(next(size for size in gpus if size >= one.gpu_ram_mib * 0.95))
    return Room(
        slots=room.slots - 1,
        light_slots=room.light_slots,
        cpu_millis=room.cpu_millis - one.cpu_millis,
        ram_mib=room.ram_mib - one.ram_mib,
        gpus=tuple(gpus),
    )


def fill(room: Room, empty: Room, work: list[Waiting]) -> Room:
    while (best := choose(work, {}, room.with_reserve(empty)).start) is not None:
        room = less(room, best)
    return room


@given(nodes, heads)
def test_however_full_of_long_work_a_node_starts_a_short_task(empty, work):
    heavy = [one for one in work if not one.light]
    full = fill(empty, empty, heavy)
    assert full.light_slots == LIGHT_SLOTS
    assert choose([head(light=True)], {}, full.with_reserve(empty)).start is not None


@given(nodes, heads)
def test_however_full_of_other_work_a_node_feeds_its_idle_gpus(empty, work):
    others = [one for one in work if not one.gpus and one.cpu_millis and not one.light]
    full = fill(empty, empty, others)
    kept = min(len(empty.gpus) * 1000, empty.cpu_millis // 2)
    assert full.cpu_millis >= kept
    assert full.slots >= min(len(empty.gpus), empty.slots - 1)


@given(nodes)
def test_a_node_with_gpus_still_does_work_without(empty):
    small = head(cpu_millis=500, ram_mib=1024)
    assert choose([small], {}, empty.with_reserve(empty)).start == small


# --- The paper's properties, by progressive filling of one large node ---

SIZE = 100_000  # of each resource: a task of 1,000 takes one hundredth
demands = st.tuples(st.integers(500, 4000), st.integers(500, 4000))
tenants = st.lists(st.tuples(demands, st.sampled_from([1.0, 1.0, 2.0])), min_size=2, max_size=4)


def share_of(demand, tasks: float = 1) -> float:
    return max(demand) * tasks / SIZE


def allocate(organizations) -> list[int]:
    """Let everybody queue without end, and start tasks until nothing fits. Tasks by organization.

    ``organizations``: (cores, memory) of each task, and weight. All have waited for hours.
    """
    tasks = [0] * len(organizations)
    served = [0.0] * len(organizations)
    out_of_turn = False
    left = [SIZE, SIZE]
    while True:
        used = {
            n: dominant_share(
                {"cpu": count * demand[0], "ram": count * demand[1]},
                {"cpu": SIZE, "ram": SIZE},
                weight,
            )
            for n, ((demand, weight), count) in enumerate(zip(organizations, tasks, strict=True))
        }
        line = [
            head(n, n, cpu_millis=demand[0], ram_mib=demand[1], since=served[n])
            for n, (demand, _) in enumerate(organizations)
        ]
        room = Room(slots=1, light_slots=0, cpu_millis=left[0], ram_mib=left[1])
        ask = {"overdue": T0 + PATIENCE_S, "in_turn": out_of_turn}
        best, _, out_of_turn = choose(line, used, room, **ask)
        if best is None:
            return tasks
        served[best.organization] = T0 + 2 * PATIENCE_S
        tasks[best.organization] += 1
        left = [left[0] - best.cpu_millis, left[1] - best.ram_mib]


def whole_tasks(bundle, demand) -> float:
    """How many tasks of ``demand`` an amount of each resource is worth."""
    return min(has / need for has, need in zip(bundle, demand, strict=True))


@given(tenants)
def test_sharing_incentive(organizations):
    """Nobody is worse off than with a part of the fleet, by weight, of their own.

    To within one task of the largest kind for each organization: the last of each that did not fit.
    """
    weights = sum(weight for _, weight in organizations)
    largest = max(share_of(demand) for demand, _ in organizations)
    for (demand, weight), tasks in zip(organizations, allocate(organizations), strict=True):
        due = weight / weights * (1 - len(organizations) * largest)
        assert share_of(demand, tasks) >= due - 1e-9


@given(tenants)
def test_envy_freeness(organizations):
    """Nobody would do more with what another has, scaled by weight; to within two tasks."""
    tasks = allocate(organizations)
    for (demand, weight), mine in zip(organizations, tasks, strict=True):
        for (other, their_weight), theirs in zip(organizations, tasks, strict=True):
            scale = weight / their_weight
            bundle = [theirs * amount * scale for amount in other]
            slack = share_of(demand) * max(1, scale) + share_of(other) * scale
            envied = whole_tasks(bundle, demand)
            assert share_of(demand, envied) <= share_of(demand, mine) + slack + 1e-9


@given(tenants)
def test_pareto_efficiency(organizations):
    """Nobody could have more without another having less: exactly, with whole tasks too."""
    tasks = allocate(organizations)
    left = [
        SIZE - sum(n * demand[r] for n, (demand, _) in zip(tasks, organizations, strict=True))
        for r in (0, 1)
    ]
    assert min(left) >= 0
    assert all(whole_tasks(left, demand) < 1 for demand, _ in organizations)


@given(tenants, demands)
def test_strategy_proofness_on_reported_demands(organizations, lie):
    """Asking for other amounts than one needs gives no more of what one needs.

    To within one task of the largest kind for each organization and one more.
    """
    (needs, weight), *others = organizations
    honest, *_ = allocate(organizations)
    lying, *_ = allocate([(lie, weight), *others])
    useful = whole_tasks([lying * amount for amount in lie], needs)
    largest = max(share_of(demand) for demand, _ in [*organizations, (lie, weight)])
    slack = (len(organizations) + 1) * largest
    assert share_of(needs, useful) <= share_of(needs, honest) + slack


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_who_uses_the_same_takes_turns(slots):
    """Five organizations: no slot may be the same ones' for as long as their lines last."""
    names, total = "abcde", {"cpu_millis": 8000, "ram_mib": 8 * 1024}
    room = Room(slots=1, light_slots=0, cpu_millis=1000, ram_mib=1024)
    running: list[tuple[float, Waiting]] = []
    served, turns = dict.fromkeys(names, 0), dict.fromkeys(names, 0.0)
    for step in range(408):
        if len(running) == slots:
            running.pop(0)
        used: dict = {}
        for _, one in running:
            used[one.organization] = used.get(one.organization, 0) + 1000
        shares = {o: dominant_share({"cpu_millis": u}, total) for o, u in used.items()}
        # Whoever comes first in the alphabet queued first, and has the oldest task all along.
        line = [head((o, step), o, queued_at=T0 + n, turn_at=turns[o]) for n, o in enumerate(names)]
        best = choose(line, shares, room).start
        assert best is not None
        served[best.organization] += 1
        turns[best.organization] = T0 + step
        running.append((T0 + step, best))
    assert max(served.values()) - min(served.values()) <= 2, served


@given(
    st.lists(
        st.tuples(st.floats(0.001, 1), st.floats(0, 86_400), st.floats(0, 40_000)), min_size=1
    ),
    st.randoms(use_true_random=False),
)
def test_use_is_the_sum_of_what_was_used_each_halved_for_its_age(tasks, random):
    logs = [log_use(*task) for task in tasks]
    random.shuffle(logs)
    exact = sum(share * max(s, LEAST_S) * 2 ** (at / HALF_LIFE_S) for share, s, at in tasks)
    assert functools.reduce(added, logs) == pytest.approx(math.log2(exact), abs=1e-9)


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_who_has_long_tasks_gets_no_more_than_who_has_short_ones(slots):
    """Where slots are few, shares are mostly 0: what was used lately decides."""
    lasts = dict(zip("abcde", (1, 2, 5, 10, 30), strict=True))
    room = Room(slots=1, light_slots=0, cpu_millis=1000, ram_mib=1024)
    running: list[tuple[float, Waiting]] = []
    used, logs, now = dict.fromkeys(lasts, 0.0), dict.fromkeys(lasts, 0.0), 0.0
    while now < 6000:
        if len(running) == slots:
            running.sort(key=lambda one: one[0])
            now, ended = running.pop(0)
            one = ended.organization
            used[one] += lasts[one]
            more = log_use(1 / slots, lasts[one], now)
            logs[one] = added(logs[one], more) if logs[one] else more
        shares = {o: sum(one.organization == o for _, one in running) / slots for o in lasts}
        line = [head((o, now), o, used=logs[o]) for o in lasts]
        best = choose(line, shares, room).start
        assert best is not None
        running.append((now + lasts[best.organization], best))
    fair = sum(used.values()) / len(used)
    assert max(abs(one - fair) for one in used.values()) < 0.05 * fair, used


# --- Nobody waits forever ---


def test_a_line_that_waited_long_goes_before_urgency_and_shares():
    old = head("old", "a", priority=-1, queued_at=T0)
    urgent = head("urgent", "b", priority=1, queued_at=T0 + PATIENCE_S)
    room = Room(slots=1, light_slots=0, cpu_millis=1000, ram_mib=4096)
    later = T0 + 1
    assert choose([old, urgent], {"a": 0.9}, room, overdue=T0).start == urgent
    assert choose([old, urgent], {"a": 0.9}, room, overdue=later).start == old
    # One of its line was started since: it does not go first twice in a row.
    just = old._replace(since=later + 1)
    assert choose([just, urgent], {}, room, overdue=later).start == urgent
    # Of two starts one goes by rank, unless nothing else fits.
    ask = {"overdue": later, "in_turn": True}
    assert choose([old, urgent], {}, room, **ask) == Choice(urgent)
    assert choose([old], {}, room, **ask) == Choice(old)
    reserved = Room(slots=1, light_slots=0, cpu_millis=1000, ram_mib=4096, gpu_slots=1)
    assert choose([old, urgent], {}, reserved, **ask) == Choice(old, None, out_of_turn=True)


def test_a_node_is_held_for_large_work_that_waited_long():
    large = head("large", "a", cpu_millis=4000, queued_at=T0)
    small = head("small", "b", queued_at=T0)
    short = head("short", "b", light=True)
    room = Room(slots=3, light_slots=1, cpu_millis=3000, ram_mib=8192)
    empty = Room(slots=4, light_slots=2, cpu_millis=4000, ram_mib=8192)
    ask = {"overdue": T0 + 1, "freed": empty, "node": "n1"}
    small = small._replace(queued_at=T0 + 3600)
    assert choose([large, small], {}, room, freed=empty, node="n1").start == small
    assert choose([large, small], {}, room, **ask) == Choice(None, large)
    # Short work has slots of its own, another node goes on, and a node too small is not held.
    short = short._replace(queued_at=small.queued_at)
    assert choose([large, small, short], {}, room, **ask) == Choice(short, large)
    elsewhere = large._replace(held_on="n2")
    assert choose([elsewhere, small], {}, room, **ask) == Choice(small, None)
    huge = large._replace(cpu_millis=5000)
    assert choose([huge, small], {}, room, **ask) == Choice(small, None)


GPU = {"cpu": 8, "ram_mib": 20_000, "gpus": [{"memory_mib": 24_564}, {"memory_mib": 8188}]}


@pytest.mark.parametrize(
    ("said", "ours", "later"),
    [
        ((8000, 24_100), [], (8000, 24_100)),
        ((24_100,), [Taken(False, 1000, 1024, 1, 8192)], (8188, 24_100)),
        ((24_100,), [], (24_100,)),  # another program has the small one
        ((300, 24_100), [], (300, 24_100)),
        ((), [Taken(False, 1000, 1024, 1, 8192)], (8188,)),  # and the large one: whose is which?
        ((), [Taken(False, 1000, 1024, 1, 20_000)], (24_564,)),
        ((), [Taken(False, 1000, 1024, 2, 0)], (8188, 24_564)),
        ((), [], ()),
    ],
)
def test_a_node_will_have_what_our_own_tasks_free_and_no_more(said, ours, later):
    empty = Room.of_empty(GPU, 4)
    left = Room(3, 2, 8000 - 1000 * len(ours) - 2000, 10_000, said)
    freed = room_once_freed(left, empty, ours)
    assert freed.gpus == later
    assert (freed.slots, freed.cpu_millis) == (3 + len(ours), 6000)


MINUTE = 60


class Fleet:
    """One node whose tasks take a minute each, and lines that never end; what is started when."""

    def __init__(self, slots: int, cores: int) -> None:
        self.room = Room(slots, 0, cores * 1000, 1 << 20)
        self.lines: list[Waiting] = []
        self.weights: dict[str, float] = {}
        self.starts: list[tuple[int, Waiting]] = []
        self.used: dict[str, float] = {}  # core-minutes
        self.minute = 0

    def run(self, minutes: int) -> None:
        total = {"cpu_millis": self.room.cpu_millis}
        served: dict[tuple, float] = {}
        turns: dict[tuple, float] = {}
        out_of_turn = False
        for minute in range(minutes):
            now = T0 + minute * MINUTE
            room, used = self.room, dict[str, float]()
            while True:
                shares = {
                    one: dominant_share({"cpu_millis": cpu}, total, self.weights.get(one, 1.0))
                    for one, cpu in used.items()
                }
                waiting = [
                    one._replace(
                        since=served.get(one.line, one.queued_at),
                        turn_at=turns.get(one.organization, 0.0),
                    )
                    for one in self.lines
                    if one.queued_at <= now
                ]
                ask = {"overdue": now - PATIENCE_S, "in_turn": out_of_turn}
                choice = choose(waiting, shares, room, **ask)
                if (best := choice.start) is None:
                    break
                out_of_turn = choice.out_of_turn
                room = less(room, best)
                served[best.line] = turns[best.organization] = now + len(self.starts) / 1e6
                used[best.organization] = used.get(best.organization, 0) + best.cpu_millis
                self.starts.append((minute, best))
            for one, cpu in used.items():
                self.used[one] = self.used.get(one, 0) + cpu / 1000


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from([1.0, 2.0])), min_size=2, max_size=4))
def test_a_backlog_of_hours_keeps_the_shares_and_is_not_first_come_first_served(organizations):
    """Every head is hours old, and yet whoever queued first does not go first until it is done."""
    fleet = Fleet(slots=100, cores=40)
    for n, (cores, weight) in enumerate(organizations):
        fleet.weights[str(n)] = weight
        fleet.lines.append(head(n, str(n), cpu_millis=cores * 1000, queued_at=T0 - 36_000 + n))
    fleet.run(60)
    weights = sum(fleet.weights.values())
    for one, weight in fleet.weights.items():
        due = weight / weights * (40 - 4 * len(organizations)) * 60
        assert fleet.used[one] >= due


def test_with_more_lines_than_patience_urgency_still_counts_and_every_line_is_served():
    """Sixty lines for one slot: each is late before its turn comes again."""
    fleet, lines = Fleet(slots=1, cores=1), 60
    fleet.lines = [head(n, f"o{n}", priority=-(n % 2), queued_at=T0 - 36_000) for n in range(lines)]
    fleet.lines.append(head("urgent", "late comer", priority=1, queued_at=T0 + 300 * MINUTE))
    fleet.run(900)
    urgent = [minute for minute, one in fleet.starts if one.task == "urgent"]
    assert urgent[0] - 300 <= 1
    bound = PATIENCE_S / MINUTE + 2 * (lines + 1)
    for n in range(lines):
        mine = [minute for minute, one in fleet.starts if one.task == n]
        waits = [b - a for a, b in zip([0, *mine], [*mine, 900], strict=True)]
        assert max(waits) <= bound, (n, mine)


LONGEST = 20  # minutes that a task may take


@given(
    nodes=st.lists(st.integers(2, 8), min_size=1, max_size=3),
    wants=st.lists(st.tuples(st.floats(0.1, 1.0), st.integers(-1, 1)), min_size=1, max_size=3),
    flood=st.lists(
        st.tuples(st.integers(1, 2), st.integers(-1, 1), st.integers(1, LONGEST)),
        min_size=1,
        max_size=4,
    ),
)
def test_every_task_that_fits_an_empty_fleet_starts_in_bounded_time(nodes, wants, flood):
    """Whatever others send without end: small, urgent, short or long.

    The bound: patience, and for it and each task as old the time that a node takes to get empty and
    to do a task.
    """
    empties = [Room(cores * 4, 0, cores * 1000, 8192) for cores in nodes]
    waiting = {
        n: head(
            n,
            f"victim {n}",
            priority=priority,
            cpu_millis=int(part * max(nodes) * 1000),
            queued_at=T0,
        )
        for n, (part, priority) in enumerate(wants)
    }
    running: list[list[tuple[Waiting, int]]] = [[] for _ in nodes]  # with the minute of its end
    starts: dict[tuple, float] = {}
    out_of_turn = False
    bound = int(PATIENCE_S) // MINUTE + (len(wants) + 1) * 2 * LONGEST + 2
    for minute in range(bound + 1):
        now = T0 + minute * MINUTE
        for n, empty in enumerate(empties):
            running[n] = [(one, end) for one, end in running[n] if end > minute]
            while True:
                room = empty
                for one, _ in running[n]:
                    room = less(room, one)
                fresh = [
                    head(f"flood {k}", f"flood {k}", priority=p, cpu_millis=c * 1000, queued_at=now)
                    for k, (c, p, _) in enumerate(flood)
                ]
                used: dict = {}
                for one, _ in (pair for held in running for pair in held):
                    used[one.organization] = used.get(one.organization, 0) + one.cpu_millis
                lines = [*waiting.values(), *fresh]
                choice = choose(
                    [one._replace(since=starts.get(one.line, one.queued_at)) for one in lines],
                    used,
                    room,
                    node=n,
                    freed=empty,
                    overdue=now - PATIENCE_S,
                    in_turn=out_of_turn,
                )
                if choice.hold is not None:
                    task = choice.hold.task
                    waiting[task] = waiting[task]._replace(held_on=n)
                if choice.start is None:
                    break
                one, out_of_turn = choice.start, choice.out_of_turn
                lasts = LONGEST if one.task in waiting else flood[int(str(one.task)[6:])][2]
                waiting.pop(one.task, None)
                starts[one.line] = now
                running[n].append((one, minute + lasts))
        if not waiting:
            return
    pytest.fail(f"still waiting after {bound} minutes: {waiting}")
