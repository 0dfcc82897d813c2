"""The planner by its properties, on random clusters, and by examples that a person would try."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusters.scheduling import (
    MOST_URGENT,
    PATIENCE_S,
    Deployment,
    Ending,
    Node,
    Plan,
    Replica,
    Resources,
    Snapshot,
    Wait,
    carried_out,
    explain,
    impossible,
    plan,
)

GIB = 1024
LOW, MEDIUM, HIGH, CRITICAL = range(MOST_URGENT + 1)


TREES, OWN = frozenset({"trees"}), frozenset({"own-node"})


def needs(ram: float = 1, cpu: float = 1, gpus: int = 0) -> Resources:
    return Resources(int(ram * GIB), int(cpu * 1000), gpus)


# --- Random clusters ------------------------------------------------------------------------------

resources = st.builds(needs, st.integers(1, 6), st.integers(1, 6), st.sampled_from([0, 0, 0, 1, 2]))


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Clusters of a few nodes whose replicas run where a plan could have put them."""
    nodes = []
    for number in range(draw(st.integers(1, 5))):
        total = draw(st.builds(needs, st.integers(4, 12), st.integers(2, 12), st.integers(0, 3)))
        endings = ()
        used = Resources()
        if draw(st.booleans()):
            used = Resources(*(draw(st.integers(0, most // 2)) for most in total[:2]), 0)
            if draw(st.booleans()):
                endings = (Ending(draw(st.sampled_from([60.0, 600.0])), used),)
        is_open = draw(st.sampled_from([True, True, True, False]))
        labels = draw(st.sampled_from([TREES, TREES, TREES | OWN, frozenset()]))
        nodes.append(Node(f"n{number}", total, used, is_open, endings, labels))
    deployments, running = [], []
    free = {node.id: [t - u for t, u in zip(node.total, node.used, strict=True)] for node in nodes}
    limit = draw(
        st.none() | st.builds(needs, st.integers(5, 30), st.integers(5, 30), st.integers(0, 4))
    )
    left = list(limit) if limit else [10**9] * 3
    for number in range(draw(st.integers(1, 12))):
        one = Deployment(
            f"d{number:02}",
            draw(resources),
            replicas=draw(st.integers(1, 3)),
            priority=draw(st.integers(LOW, CRITICAL)),
            waited_s=draw(st.sampled_from([0.0, 5.0, PATIENCE_S, 2 * PATIENCE_S])),
            preemptible=draw(st.booleans()),
            spread=draw(st.booleans()),
            waits_for=draw(st.sampled_from([(), (), (), ("another",)])),
            not_before_s=draw(st.sampled_from([0.0, 0.0, 0.0, 9.0])),
            labels=draw(st.sampled_from([frozenset(), frozenset(), TREES, TREES | OWN])),
        )
        deployments.append(one)
        for replica in range(one.replicas):
            node = draw(st.none() | st.sampled_from(nodes))
            if node is None or not one.labels <= node.labels:
                continue
            rooms = (free[node.id], left)
            if all(n <= room[i] for room in rooms for i, n in enumerate(one.needs)):
                for room in rooms:
                    room[:] = [r - n for r, n in zip(room, one.needs, strict=True)]
                leaving = not node.is_open and draw(st.booleans())
                age = draw(st.sampled_from([1.0, 10.0, 100.0]))
                running.append(Replica(one.id, replica, node.id, age, leaving))
    return Snapshot(nodes, deployments, running, limit)


def room_of(snapshot: Snapshot) -> dict[str, list[int]]:
    """What each node has left; under "" what the limit leaves."""
    left = {n.id: [t - u for t, u in zip(n.total, n.used, strict=True)] for n in snapshot.nodes}
    left[""] = list(snapshot.limit) if snapshot.limit else [10**9] * 3
    by_id = {one.id: one for one in snapshot.deployments}
    for one in snapshot.running:
        for where in (one.node, ""):
            for i, need in enumerate(by_id[one.deployment].needs):
                left[where][i] -= need
    return left


def waiting(snapshot: Snapshot) -> list[tuple[Deployment, int]]:
    """Replicas that could run and don't."""
    there = {(one.deployment, one.number) for one in snapshot.running if not one.is_leaving}
    return [
        (one, number)
        for one in snapshot.deployments
        if not one.waits_for and one.not_before_s <= 0
        for number in range(one.replicas)
        if (one.id, number) not in there
    ]


def fits(wish: Deployment, *rooms: list[int]) -> bool:
    return all(n <= room[i] for room in rooms for i, n in enumerate(wish.needs))


def room_without(snapshot: Snapshot, gone: list[Replica]) -> dict[str, list[int]]:
    kept = [one for one in snapshot.running if one not in gone]
    return room_of(replace(snapshot, running=kept))


@given(snapshots())
@settings(max_examples=120, deadline=None)
def test_what_is_planned_is_right(snapshot: Snapshot) -> None:
    made = plan(snapshot)
    by_id = {one.id: one for one in snapshot.deployments}
    nodes = {node.id: node for node in snapshot.nodes}
    ran = {(one.deployment, one.number, one.node): one for one in snapshot.running}

    # Only what may go goes, and only for what is more urgent.
    for gone in made.evictions:
        victim = by_id[gone.deployment]
        assert victim.preemptible
        assert victim.priority < by_id[gone.room_for].priority
        assert not ran[gone.deployment, gone.number, gone.node].is_leaving
        assert any(one.deployment == gone.room_for for one in made.placements)

    # Only what may come comes, once, and to an open node.
    expected = {(one.id, number) for one, number in waiting(snapshot)}
    expected |= {(gone.deployment, gone.number) for gone in made.evictions}
    placed = [(one.deployment, one.number) for one in made.placements]
    assert len(set(placed)) == len(placed)
    assert set(placed) <= expected
    for one in made.placements:
        assert nodes[one.node].is_open
        assert by_id[one.deployment].labels <= nodes[one.node].labels
        assert not by_id[one.deployment].waits_for
        assert by_id[one.deployment].not_before_s <= 0

    # Nobody gets more than there is.
    after = carried_out(snapshot, made)
    assert all(left >= 0 for room in room_of(after).values() for left in room)


@given(snapshots())
@settings(max_examples=100, deadline=None)
def test_a_plan_that_was_carried_out_leaves_nothing_to_plan(snapshot: Snapshot) -> None:
    made = plan(snapshot)
    assert plan(snapshot) == made
    shuffled = replace(snapshot, nodes=snapshot.nodes[::-1], deployments=snapshot.deployments[::-1])
    assert set(plan(shuffled).placements) == set(made.placements)
    assert not plan(carried_out(snapshot, made))


@given(snapshots())
@settings(max_examples=100, deadline=None)
def test_nobody_waits_for_room_that_there_is_or_that_the_less_urgent_hold(
    snapshot: Snapshot,
) -> None:
    made = plan(snapshot)
    after = carried_out(snapshot, made)
    left = room_of(after)
    by_id = {one.id: one for one in snapshot.deployments}
    kept = made.reservation.node if made.reservation else None
    for wish, _ in waiting(after):
        less = [
            one
            for one in after.running
            if by_id[one.deployment].priority < wish.priority
            and by_id[one.deployment].preemptible
            and not one.is_leaving
        ]
        without = room_without(after, less)
        for node in snapshot.nodes:
            if node.is_open and node.id != kept and wish.labels <= node.labels:
                assert not fits(wish, left[node.id], left[""])
                assert not fits(wish, without[node.id], without[""])


@given(snapshots())
@settings(max_examples=100, deadline=None)
def test_no_victim_is_one_too_many(snapshot: Snapshot) -> None:
    """With one waiting replica, of all sets that would do the smallest is chosen."""
    [first, *rest] = snapshot.deployments
    one = replace(first, priority=CRITICAL, waits_for=(), not_before_s=0.0, replicas=1)
    others = [replace(other, waits_for=("another",)) for other in rest]
    running = [replica for replica in snapshot.running if replica.deployment != one.id]
    alone = replace(snapshot, deployments=[one, *others], running=running, limit=None)
    made = plan(alone)
    if not made.evictions:
        return
    by_id = {other.id: other for other in others}
    may = [r for r in running if by_id[r.deployment].preemptible and not r.is_leaving]
    may = [r for r in may if by_id[r.deployment].priority < CRITICAL]
    for count in range(min(len(made.evictions), 4)):
        for some in itertools.combinations(may, count):
            room = room_without(alone, list(some))
            good = [n for n in alone.nodes if n.is_open and one.labels <= n.labels]
            assert not any(fits(one, room[n.id]) for n in good)


@given(snapshots())
@settings(max_examples=60, deadline=None)
def test_evictions_never_go_round_in_circles(snapshot: Snapshot) -> None:
    """However the cluster goes on, plan after plan, with what was evicted coming back."""
    now = snapshot
    for _ in range(4):
        made = plan(now)
        now = carried_out(now, made)
        older = [replace(one, waited_s=one.waited_s + PATIENCE_S) for one in now.deployments]
        now = replace(now, deployments=older)
        assert not made.evictions or now is not snapshot
    assert not plan(now).evictions


@given(snapshots())
@settings(max_examples=60, deadline=None)
def test_whoever_waits_is_told_why_and_what_would_help(snapshot: Snapshot) -> None:
    made = plan(snapshot)
    after = carried_out(snapshot, made)
    running = {(one.deployment, one.number) for one in after.running if not one.is_leaving}
    for one in snapshot.deployments:
        told = explain(snapshot, one.id, made)
        complete = all((one.id, number) in running for number in range(one.replicas))
        assert (told is None) == complete
        if told is not None and told.code == "labels":
            assert told.names == tuple(sorted(one.labels))
            assert not any(n.is_open and one.labels <= n.labels for n in snapshot.nodes)
        if told is None or told.code != "room" or made.reservation:
            continue
        # It is the truth: with so much less it is placed, with a bit more it isn't.
        less = Resources(*(n - lack for n, lack in zip(one.needs, told.lacks, strict=True)))
        smaller = replace(one, needs=less)
        left = room_of(after)
        assert fits(smaller, left[told.node], left[""]) or snapshot.limit
        if told.priority is not None:
            assert told.priority > one.priority
            urgent = [
                replace(o, priority=told.priority) if o is one else replace(o, waits_for=("x",))
                for o in after.deployments
            ]
            again = plan(replace(after, deployments=urgent))
            assert any(p.deployment == one.id for p in again.placements)


@st.composite
def crowds(draw: st.DrawFn) -> Snapshot:
    """Something large that has waited long, a node that is too full for it for a while, and small
    ones beside it that would fit at once."""
    total = draw(st.builds(needs, st.integers(6, 12), st.integers(6, 12), st.integers(0, 2)))
    ends = [
        Ending(draw(st.sampled_from([60.0, 300.0, 900.0])), needs(draw(st.integers(1, 3)), 1))
        for _ in range(draw(st.integers(1, 3)))
    ]
    used = Resources(sum(e.frees.ram_mib for e in ends), sum(e.frees.cpu_millis for e in ends), 0)
    used = Resources(min(used.ram_mib, total.ram_mib), min(used.cpu_millis, total.cpu_millis), 0)
    room = total.ram_mib - used.ram_mib
    large = Resources(draw(st.integers(room + 1, max(room + 1, total.ram_mib))), 1000, 0)
    small = [
        Deployment(f"s{n}", needs(draw(st.integers(1, 3)), 1), waited_s=float(n), preemptible=False)
        for n in range(draw(st.integers(1, 6)))
    ]
    other = Node("other", needs(draw(st.integers(1, 4)), 4), labels=TREES)
    node = Node("busy", total, used, endings=tuple(ends))
    return Snapshot([node, other], [Deployment("large", large, waited_s=PATIENCE_S), *small])


@given(crowds())
@settings(max_examples=150, deadline=None)
def test_whoever_goes_past_the_large_never_makes_it_wait_longer(snapshot: Snapshot) -> None:
    """Backfill: when the time of the reservation is over, the large one starts, whoever comes."""
    kept = plan(snapshot).reservation
    if kept is None:
        return
    assert kept.deployment == "large"
    now = snapshot
    for number in range(3):  # the small go past, and more of them come
        now = carried_out(now, plan(now))
        new = Deployment(f"later{number}", needs(1, 1), preemptible=False)
        now = replace(now, deployments=[*now.deployments, new])
    nodes = []
    for node in now.nodes:
        over = [e.frees for e in node.endings if e.in_s <= kept.in_s]
        freed = Resources(*(sum(part) for part in zip(*over, strict=True))) if over else needs(0, 0)
        used = Resources(*(max(0, u - f) for u, f in zip(node.used, freed, strict=True)))
        nodes.append(replace(node, used=used, endings=()))
    late = replace(now, nodes=nodes)
    assert placed(plan(late)).get(("large", 0)) == kept.node


# --- Examples -------------------------------------------------------------------------------------


def placed(made: Plan) -> dict[tuple[str, int], str]:
    return {(one.deployment, one.number): one.node for one in made.placements}


def test_it_goes_where_least_is_left_over() -> None:
    nodes = [Node("big", needs(64, 16)), Node("small", needs(8, 4))]
    assert placed(plan(Snapshot(nodes, [Deployment("a", needs(6, 3))]))) == {("a", 0): "small"}


def test_what_needs_no_gpu_leaves_the_gpus_to_others() -> None:
    nodes = [Node("gpu", needs(8, 4, 1)), Node("plain", needs(64, 16))]
    wish = Deployment("a", needs(6, 3))
    assert placed(plan(Snapshot(nodes, [wish]))) == {("a", 0): "plain"}
    assert placed(plan(Snapshot(nodes[:1], [wish]))) == {("a", 0): "gpu"}


def test_what_asks_for_an_engine_goes_only_where_it_is() -> None:
    plain, good = Node("plain", needs(8, 8)), Node("good", needs(64, 64), labels=TREES)
    wish = Deployment("a", needs(4, 4), labels=TREES, priority=HIGH)
    assert placed(plan(Snapshot([plain, good], [wish]))) == {("a", 0): "good"}
    # Nobody has to go from a node that could not run it anyway.
    small = Node("good", needs(4, 4), labels=TREES)
    others = [
        Deployment("x", needs(8, 8), priority=LOW),
        Deployment("y", needs(4, 4), priority=LOW),
    ]
    running = [Replica("x", 0, "plain", 1), Replica("y", 0, "good", 900)]
    made = plan(Snapshot([plain, small], [wish, *others], running))
    assert [one.deployment for one in made.evictions] == ["y"]
    assert placed(made) == {("a", 0): "good"}
    lonely = Snapshot([plain, replace(good, is_open=False)], [wish])
    assert not plan(lonely)
    assert explain(lonely, "a") == Wait("labels", names=("trees",))


def test_replicas_are_spread_where_asked() -> None:
    nodes = [Node(f"n{i}", needs(8, 8)) for i in range(3)]
    wish = Deployment("a", needs(), replicas=3, spread=True)
    assert set(placed(plan(Snapshot(nodes, [wish]))).values()) == {"n0", "n1", "n2"}
    packed = plan(Snapshot(nodes, [replace(wish, spread=False)]))
    assert len(set(placed(packed).values())) == 1


def test_the_least_urgent_and_youngest_makes_room_and_comes_back_elsewhere() -> None:
    nodes = [Node("a", needs(8, 8)), Node("b", needs(4, 4))]
    running = [Replica("old", 0, "a", 500), Replica("young", 0, "a", 5), Replica("mid", 0, "b", 1)]
    wishes = [
        Deployment("old", needs(4, 4), priority=LOW),
        Deployment("young", needs(4, 4), priority=LOW),
        Deployment("mid", needs(2, 2), priority=MEDIUM),
        Deployment("new", needs(3, 3), priority=HIGH, waited_s=1),
    ]
    made = plan(Snapshot(nodes, wishes, running))
    assert [(one.deployment, one.room_for) for one in made.evictions] == [("young", "new")]
    assert placed(made) == {("new", 0): "a"}
    more = [*nodes, Node("c", needs(4, 4), is_open=True)]
    small = [*wishes[:3], replace(wishes[3], needs=needs(8, 8))]
    both = plan(Snapshot(more, small, running))
    assert {one.deployment for one in both.evictions} == {"old", "young"}
    assert placed(both) == {("new", 0): "a", ("young", 0): "c"} or placed(both) == {
        ("new", 0): "a",
        ("old", 0): "c",
    }


def test_one_that_may_not_be_evicted_stays() -> None:
    running = [Replica("low", 0, "a")]
    wishes = [Deployment("low", needs(4, 4), priority=LOW, preemptible=False),
              Deployment("high", needs(4, 4), priority=CRITICAL)]  # fmt: skip
    snapshot = Snapshot([Node("a", needs(4, 4))], wishes, running)
    assert not plan(snapshot)
    told = explain(snapshot, "high")
    assert told is not None
    assert (told.code, told.node, told.lacks) == ("room", "a", needs(4, 4))


def test_the_limit_of_a_cluster_holds_though_its_nodes_have_more() -> None:
    nodes = [Node("a", needs(64, 64)), Node("b", needs(64, 64))]
    wish = Deployment("a", needs(2, 2), replicas=3, priority=LOW)
    snapshot = Snapshot(nodes, [wish], limit=needs(5, 64))
    assert len(plan(snapshot).placements) == 2
    told = explain(snapshot, "a")
    assert told is not None
    assert (told.code, told.lacks) == ("limit", Resources(1024, 0, 0))
    urgent = Deployment("b", needs(4, 4), priority=HIGH)
    now = carried_out(snapshot, plan(snapshot))
    made = plan(replace(now, deployments=[wish, urgent]))
    assert len(made.evictions) == 2, "both must go, wherever they are"


def test_a_node_is_kept_for_the_large_that_has_waited_long() -> None:
    nodes = [Node("a", needs(8, 8), needs(6, 6), endings=(Ending(300, needs(6, 6)),))]
    large = Deployment("large", needs(7, 7), waited_s=PATIENCE_S)
    small = Deployment("small", needs(2, 2), waited_s=1)
    tiny = Deployment("tiny", needs(1, 1), waited_s=1)
    snapshot = Snapshot(nodes, [large, small, tiny])
    made = plan(snapshot)
    assert made.reservation == ("large", "a", 300)
    assert placed(made) == {("tiny", 0): "a"}, "it goes past with what will be over"
    told = explain(replace(snapshot, deployments=[large, small]), "small")
    assert told is not None
    assert (told.code, told.names, told.node, told.in_s) == ("reserved", ("large",), "a", 300)
    waits = explain(snapshot, "large")
    assert waits is not None
    assert waits.in_s == 300
    # Before it has waited long, and where time alone helps nobody, nothing is kept.
    young = [replace(large, waited_s=0), small, tiny]
    assert plan(replace(snapshot, deployments=young)).reservation is None
    never = [replace(nodes[0], endings=())]
    assert plan(replace(snapshot, nodes=never)).reservation is None


def test_a_draining_node_is_left_after_the_new_place_is_taken() -> None:
    nodes = [Node("old", needs(4, 4), is_open=False), Node("new", needs(4, 4))]
    running = [Replica("a", 0, "old", is_leaving=True)]
    made = plan(Snapshot(nodes, [Deployment("a", needs(2, 2))], running))
    assert placed(made) == {("a", 0): "new"}
    assert not made.evictions


def test_dependencies_and_crashes_keep_back() -> None:
    nodes = [Node("a", needs(8, 8))]
    wishes = [
        Deployment("web", needs(), waits_for=("db",)),
        Deployment("sick", needs(), not_before_s=20),
        Deployment("db", needs()),
    ]
    snapshot = Snapshot(nodes, wishes)
    assert placed(plan(snapshot)) == {("db", 0): "a"}
    web, sick = explain(snapshot, "web"), explain(snapshot, "sick")
    assert web is not None
    assert (web.code, web.names) == ("dependencies", ("db",))
    assert sick is not None
    assert (sick.code, sick.in_s) == ("backoff", 20)
    assert explain(snapshot, "db") is None


def test_without_an_open_node_it_says_so() -> None:
    told = explain(Snapshot([], [Deployment("a", needs())]), "a")
    assert told is not None
    assert told.code == "closed"


@pytest.mark.parametrize(
    ("asked", "lacks"),
    [
        (needs(8, 8), None),
        (needs(9, 8), Resources(1024, 0, 0)),
        (needs(1, 1, 1), Resources(0, 0, 1)),
    ],
)
def test_the_impossible_is_told_by_what_is_lacking(asked: Resources, lacks: object) -> None:
    assert impossible(asked, [Node("a", needs(8, 8)), Node("b", needs(2, 2))], None) == lacks
    assert impossible(asked, [Node("a", needs(8, 8))], needs(4, 4)) is not None


def test_packing_lets_nothing_be_left_out_that_could_be_in() -> None:
    """Best fit alone, in any order of size, leaves one of these out."""
    nodes = [Node("a", needs(10, 10)), Node("b", needs(10, 10))]
    sizes = [(6, 2), (4, 8), (5, 5), (5, 5)]
    wishes = [Deployment(f"d{i}", needs(*size)) for i, size in enumerate(sizes)]
    assert len(plan(Snapshot(nodes, wishes)).placements) == 4
