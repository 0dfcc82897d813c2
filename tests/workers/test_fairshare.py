from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from workers.fairshare import Room, Waiting, choose, dominant_share

T0 = datetime(2026, 1, 1, tzinfo=UTC)
heads = st.lists(
    st.builds(
        Waiting,
        task=st.uuids(),
        organization=st.sampled_from("abc"),
        priority=st.integers(-1, 1),
        queued_at=st.integers(0, 99).map(lambda s: T0 + timedelta(seconds=s)),
        light=st.booleans(),
        cpu_millis=st.integers(0, 4000),
        ram_mib=st.integers(0, 8192),
    ),
    max_size=8,
)
rooms = st.builds(
    Room,
    slots=st.integers(0, 2),
    light_slots=st.integers(0, 2),
    cpu_millis=st.integers(0, 4000),
    ram_mib=st.integers(0, 8192),
)
shares = st.dictionaries(st.sampled_from("abc"), st.floats(0, 1))


@given(heads, shares, rooms)
def test_what_is_chosen_fits_and_nothing_is_chosen_only_when_nothing_fits(waiting, used, room):
    best = choose(waiting, used, room)
    if best is None:
        assert not any(head.fits(room) for head in waiting)
    else:
        assert best.fits(room)


@given(heads, shares, rooms)
def test_nothing_that_fits_goes_before_a_higher_priority_that_fits(waiting, used, room):
    best = choose(waiting, used, room)
    if best is not None:
        assert best.priority == max(head.priority for head in waiting if head.fits(room))


@given(heads, shares, rooms)
def test_among_equal_priorities_the_smallest_share_goes_first(waiting, used, room):
    best = choose(waiting, used, room)
    if best is not None:
        rivals = [h for h in waiting if h.fits(room) and h.priority == best.priority]
        assert used.get(best.organization, 0) == min(used.get(h.organization, 0) for h in rivals)


def test_the_dominant_share_is_that_of_the_scarcest_resource():
    assert dominant_share({"cpu": 1, "ram": 6}, {"cpu": 10, "ram": 10}) == 0.6
    assert dominant_share({"gpu": 1}, {}) == 0
