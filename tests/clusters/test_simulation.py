"""The simulated month: that it adds up, repeats itself, and shows what the planner promises."""

from pathlib import Path

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from clusters.simulation import HOUR, Load, simulate

A_WEEK = Load(nodes=8, days=4, fill=1.1, node_fails_every_s=40 * HOUR)


def test_the_same_load_gives_the_same_month_and_another_seed_another() -> None:
    first, again = simulate(A_WEEK), simulate(A_WEEK)
    assert (first.use, first.evicted, first.waits_s) == (again.use, again.evicted, again.waits_s)
    assert simulate(Load(nodes=8, days=4, fill=1.1, seed=2)).use != first.use


def test_it_adds_up() -> None:
    found = simulate(A_WEEK)
    assert len(found.use) == len(found.waiting) == len(found.nodes_up) == 4 * 24
    assert all(0 <= share <= 1 for use in found.use for share in use)
    assert max(max(use) for use in found.use) > 0.7, "so much load fills the cluster"
    assert found.failures
    assert min(found.nodes_up) < 8 <= max(found.nodes_up)
    starts = sum(map(len, found.waits_s.values()))
    assert found.replicas - found.never_ran <= starts


def test_the_urgent_wait_least_and_the_critical_make_room_for_nobody() -> None:
    found = simulate(A_WEEK)
    assert found.evicted
    assert all(whose < 3 for _, whose in found.evicted)
    means = [sum(waits) / len(waits) for _, waits in sorted(found.waits_s.items())]
    assert means[-1] <= min(means[:2])


def test_the_command_writes_a_page_that_needs_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "week.html"
    call_command("simulate", "--nodes", "4", "--days", "2", "--out", str(out))
    page = out.read_text()
    assert "4 nodes for 2 days" in page
    assert "src=" not in page.split("<script>")[0]
    assert "<link" not in page
    assert str(out) in capsys.readouterr().out
    with pytest.raises(CommandError, match="at least one node"):
        call_command("simulate", "--nodes", "0")
