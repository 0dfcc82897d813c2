"""Estimates follow what was seen, more the more of it there is, and never leave all measure."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.estimate import (
    ENOUGH,
    LEAST_RAM_MIB,
    REACH,
    Past,
    Run,
    most_s,
    usual_ram_mib,
)

runs = st.lists(
    st.builds(
        Run,
        engine=st.sampled_from(["pycaret", "flaml", "sklearn"]),
        node=st.sampled_from(["a", "b"]),
        cells=st.floats(100, 1e9),
        budget_s=st.floats(5, 3600),
        seconds=st.none() | st.floats(0.1, 4000),
        ram_mib=st.none() | st.floats(50, 60_000),
    ),
    max_size=25,
)
cells = st.floats(1, 1e10)
budgets = st.floats(5, 86_400)


def run(engine="flaml", size=1e5, seconds=30.0, ram=500.0, budget_s=60.0, node="a"):
    return Run(engine, node, size, budget_s, seconds, ram)


@given(runs, cells, budgets)
def test_an_estimate_is_a_positive_number_within_its_range_and_what_the_budget_allows(
    past, size, budget_s
):
    found = Past(past).seconds("flaml", size, budget_s, ["a"])
    assert 0 < found.low <= found.value <= found.high <= most_s(budget_s) + 1e-9
    memory = Past(past).ram("flaml", size)
    assert 0 < memory.low <= memory.value <= memory.high < math.inf


@given(cells, budgets)
def test_without_history_the_budget_and_the_rule_of_thumb_stand(size, budget_s):
    nothing = Past([])
    assert nothing.seconds("flaml", size, budget_s).value == budget_s
    assert nothing.seconds("flaml", size, budget_s).runs == 0
    assert nothing.ram("flaml", size).value == usual_ram_mib(size)
    assert nothing.ask_mib("flaml", size) >= usual_ram_mib(size)
    assert nothing.seconds_error is None
    assert nothing.ram_error is None


@given(runs, cells)
def test_memory_is_never_asked_below_what_a_smaller_table_took(past, size):
    asked = Past(past).ask_mib("flaml", size)
    seen = [r.ram_mib for r in past if r.engine == "flaml" and r.ram_mib and r.cells <= size]
    assert asked >= max(seen, default=0)
    assert asked >= LEAST_RAM_MIB
    assert asked % 64 == 0


@given(runs, st.permutations(["pycaret", "flaml", "sklearn"]))
def test_names_of_engines_mean_nothing(past, names):
    renamed = dict(zip(["pycaret", "flaml", "sklearn"], names, strict=True))
    other = [Run(renamed[r.engine], r.node, r.cells, r.budget_s, r.seconds, r.ram_mib)
             for r in past]  # fmt: skip
    assert Past(other).seconds(renamed["flaml"], 1e5, 60).value == pytest.approx(
        Past(past).seconds("flaml", 1e5, 60).value
    )


def test_the_more_runs_say_so_the_more_the_estimate_does():
    told = [Past([run(seconds=6.0)] * n).seconds("flaml", 1e5, 60).value for n in (0, 1, 5, 50)]
    assert told == sorted(told, reverse=True)
    assert told[0] == 60
    assert told[1] > 20
    assert told[-1] == pytest.approx(6, rel=0.2)


def test_one_odd_run_among_many_changes_little():
    usual = [run(seconds=20.0)] * 20
    odd = Past([*usual, run(seconds=60.0)]).seconds("flaml", 1e5, 60).value
    assert odd == pytest.approx(Past(usual).seconds("flaml", 1e5, 60).value, rel=0.15)


def test_time_and_memory_grow_with_the_table_as_they_did():
    random = np.random.default_rng(1)
    sizes = 10 ** random.uniform(4, 7, 60)
    past = Past(
        [run(size=s, budget_s=3600, seconds=s / 1e4, ram=300 + s / 1e4, node="a") for s in sizes]
    )
    for size in (3e4, 1e6, 5e6):
        assert past.seconds("flaml", size, 3600).value == pytest.approx(size / 1e4, rel=0.5)
        assert past.ram("flaml", size).value == pytest.approx(300 + size / 1e4, rel=0.5)
    error = past.seconds_error
    assert error.runs == 59
    assert error.median < 1.6


def test_an_engine_that_nobody_saw_is_taken_for_the_others():
    past = Past([run("pycaret", seconds=6.0)] * 30)
    other = past.seconds("flaml", 1e5, 60)
    assert other.runs == 0
    assert other.value == pytest.approx(past.seconds("pycaret", 1e5, 60).value, rel=0.3)


def test_a_slow_node_is_known_for_it():
    past = Past([run(seconds=10.0, node="quick"), run(seconds=40.0, node="slow")] * 15)
    quick, slow = (past.seconds("flaml", 1e5, 60, [node]).value for node in ("quick", "slow"))
    assert quick == pytest.approx(10, rel=0.3)
    assert slow == pytest.approx(40, rel=0.3)
    assert quick < past.seconds("flaml", 1e5, 60, ["quick", "slow"]).value < slow


def test_memory_is_asked_by_history_once_there_is_enough_and_only_near_what_was_seen():
    few, enough = Past([run(ram=400.0)] * (ENOUGH - 1)), Past([run(ram=400.0)] * 20)
    assert few.ask_mib("flaml", 1e5) >= usual_ram_mib(1e5)
    assert 400 <= enough.ask_mib("flaml", 1e5) < usual_ram_mib(1e5)
    beyond = REACH * 1e5 * 1.01
    assert enough.ask_mib("flaml", beyond) >= usual_ram_mib(beyond)
    hungry = Past([run(ram=9_000.0)] * 20)
    assert hungry.ask_mib("flaml", 1e5) >= 9_000
    assert hungry.ask_mib("pycaret", 1e5) < 9_000  # of which nothing is known


def test_few_runs_that_were_alike_promise_little():
    few, many = (Past([run(seconds=30.0)] * n).seconds("flaml", 1e5, 600) for n in (3, 100))
    assert few.high / few.value > 1.5
    assert many.high / many.value < 1.2


def test_the_error_is_what_it_says():
    """Half of the runs take ten times as long as the others, which nobody can foretell."""
    past = Past([run(seconds=5.0 if n % 2 else 50.0) for n in range(100)])
    error = past.seconds_error
    assert error.runs == 99
    assert 2.0 < error.median < 5.0
    assert error.median <= error.p90 < 11
