"""Pure rules: what a pipeline may be, and what its run does next."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import graph
from pipelines.graph import Refused, StepNow

PARAMS: dict[str, dict[str, Any]] = {
    "sql": {"connection": "house", "sql": "SELECT 1", "dataset": "day"},
    "train": {"data": "flowers", "target": "kind"},
    "score": {"model": "kinds@champion", "data": "flowers", "dataset": "scored"},
    "promote": {"model": "kinds@3", "name": "kinds"},
    "write_back": {"connection": "house", "data": "scored", "table": "t"},
    "notify": {"to": ["ann@example.com"]},
}


def stage(key: str, kind: str = "notify", **more: Any) -> dict[str, Any]:
    params = PARAMS[kind] | more.pop("params", {})
    return {"key": key, "stage": kind, "params": params, **more}


def refused(*stages: Any, **more: Any) -> dict[str, list[str]]:
    with pytest.raises(Refused) as refusal:
        graph.check({"stages": list(stages), **more})
    return refusal.value.errors


def checked(*stages: dict[str, Any]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = graph.check({"stages": list(stages)})["stages"]
    return made


# --- What a pipeline may be ----------------------------------------------------------------------


def test_all_stages_after_each_other_are_a_pipeline() -> None:
    stages = checked(
        stage("fetch", "sql"),
        stage("train", "train", params={"data": "$fetch"}, retries=2),
        stage("promote", "promote", params={"model": "$train"}),
        stage("score", "score", params={"model": "$promote", "data": "$fetch"}),
        stage("back", "write_back", params={"data": "$score"}),
        stage("tell", after=["back"]),
    )
    assert graph.layers(stages) == [
        ["fetch"], ["train"], ["promote"], ["score"], ["back"], ["tell"],
    ]  # fmt: skip
    assert graph.before(stages[3]) == ["promote", "fetch"]
    assert stages[1]["retries"] == 2
    assert stages[1]["backoff_s"] == 30


def test_a_parameter_that_is_lacking_is_named() -> None:
    errors = refused({"key": "a", "stage": "train", "params": {"data": "flowers"}})
    assert errors == {"stages[0].params.target": ["'train' needs this."]}


def test_every_problem_is_told_at_its_place() -> None:
    errors = refused(
        stage("a", retries=-1),
        stage("a"),
        {"key": "B", "stage": "fly", "params": {}},
        stage("c", after=["nobody"], extra=1),
        stage("d", "score", params={"data": "$gone", "model": "$a", "colour": "red"}),
        stage("e", params={"to": ["nobody"]}),
        7,
        notify={"to": ["x"], "on": ["never"]},
    )
    assert set(errors) == {
        "stages[0].retries",
        "stages[1].key",
        "stages[2].key",
        "stages[2].stage",
        "stages[3].after",
        "stages[3].extra",
        "stages[4].params.data",
        "stages[4].params.model",
        "stages[4].params.colour",
        "stages[5].params.to",
        "stages[6]",
        "notify.to",
        "notify.on",
    }
    assert "sql, check, train" in errors["stages[2].stage"][0]
    assert errors["stages[4].params.model"] == ["The stage 'a' (notify) does not give a model."]


@pytest.mark.parametrize("nonsense", [None, [], "x", {}, {"stages": []}, {"stages": {}}])
def test_what_is_no_pipeline_is_refused(nonsense: Any) -> None:
    with pytest.raises(Refused):
        graph.check(nonsense)


def test_a_circle_is_named_by_its_way() -> None:
    errors = refused(
        stage("a", after=["c"]), stage("b", after=["a"]), stage("c", after=["b"]), stage("d")
    )
    assert errors == {"stages": ["The stages wait for each other: a → b → c → a."]}
    assert refused(stage("a", after=["a"])) == {
        "stages": ["The stages wait for each other: a → a."]
    }


@st.composite
def graphs(draw: Any) -> list[dict[str, Any]]:
    """Stages in an order in which each waits only for earlier ones."""
    size = draw(st.integers(1, 8))
    made = []
    for n in range(size):
        after = draw(st.lists(st.sampled_from(range(n)), unique=True)) if n else []
        retries = draw(st.integers(0, 3))
        kind = draw(st.sampled_from(["notify", "train"]))
        made.append(
            stage(f"s{n}", kind, after=[f"s{one}" for one in after], retries=retries, backoff_s=1)
        )
    return made


@given(graphs(), st.randoms())
def test_the_order_in_which_stages_are_written_is_all_the_same(stages: Any, random: Any) -> None:
    mixed = checked(*random.sample(stages, len(stages)))
    columns = graph.layers(mixed)
    place = {key: n for n, keys in enumerate(columns) for key in keys}
    assert set(place) == {one["key"] for one in stages}
    assert all(place[one] < place[s["key"]] for s in mixed for one in graph.before(s))


@given(graphs(), st.data())
def test_closing_a_circle_is_always_seen(stages: Any, data: Any) -> None:
    later = data.draw(st.sampled_from(stages))
    reached = sorted({one["key"] for one in stages} & graph.from_step(checked(*stages), "s0"))
    stages[0]["after"].append(later["key"])
    stages[0]["after"].append(data.draw(st.sampled_from(reached)))
    (sentence,) = refused(*stages)["stages"]
    way = sentence.split(": ")[1].rstrip(".").split(" → ")
    waits = {one["key"]: one["after"] for one in stages}
    assert way[0] == way[-1]
    assert all(first in waits[then] for first, then in pairwise(way))


# --- The same again ------------------------------------------------------------------------------


def test_a_digest_is_of_what_is_done_with_what() -> None:
    one, other = checked(stage("a", "train"), stage("b", "train"))
    same = graph.digest(one, {"data": "1" * 64})
    assert graph.digest(other, {"data": "1" * 64}) == same, "whatever it is called"
    assert graph.digest(one, {"data": "2" * 64}) != same
    other["params"]["target"] = "size"
    assert graph.digest(other, {"data": "1" * 64}) != same


def test_what_was_done_with_the_same_before_is_skipped_unless_it_is_to_be_fresh() -> None:
    stages = checked(stage("a", "train"), stage("b", "train", fresh=True), stage("c", "sql"))
    steps = {key: StepNow(same_as="run 3") for key in "abc"}
    made = graph.plan(stages, steps, 0)
    assert made.skip == ["a"]
    assert made.start == ["b", "c"], "what a warehouse answers may have changed"


# --- What a run does next ------------------------------------------------------------------------


def test_a_failure_is_tried_again_later_and_later_and_then_ends_the_run() -> None:
    stages = checked(stage("a", retries=2, backoff_s=10), stage("b", after=["a"]), stage("c"))
    steps = {"a": StepNow("failed", finished_at=100), "b": StepNow(), "c": StepNow("succeeded")}
    made = graph.plan(stages, steps, 100)
    assert (made.again, made.give_up, made.end) == ({"a": 110}, [], "")
    steps["a"] = StepNow("failed", retry_count=1, finished_at=200)
    assert graph.plan(stages, steps, 200).again == {"a": 220}
    steps["a"] = StepNow("pending", retry_count=2, not_before=220)
    assert graph.plan(stages, steps, 219).look_at == 220
    assert graph.plan(stages, steps, 220).start == ["a"]
    steps["a"] = StepNow("failed", retry_count=2, finished_at=300)
    assert graph.plan(stages, steps, 300).give_up == ["b"]
    steps["b"] = StepNow("not_run")
    assert graph.plan(stages, steps, 300).end == "failed"


def test_what_does_not_wait_for_the_failure_goes_on() -> None:
    stages = checked(stage("a"), stage("b", after=["a"]), stage("c"), stage("d", after=["c"]))
    steps = {"a": StepNow("failed"), "b": StepNow(), "c": StepNow("succeeded"), "d": StepNow()}
    made = graph.plan(stages, steps, 0)
    assert (made.start, made.give_up) == (["d"], ["b"])


def test_a_cancelled_run_starts_nothing_and_ends_when_nothing_runs() -> None:
    stages = checked(stage("a", retries=3), stage("b"), stage("c"))
    steps = {"a": StepNow("failed"), "b": StepNow("running"), "c": StepNow()}
    made = graph.plan(stages, steps, 0, cancelled=True)
    assert (made.start, made.again, made.cancel, made.give_up) == ([], {}, ["b"], ["c"])
    steps |= {"b": StepNow("cancelled"), "c": StepNow("not_run")}
    assert graph.plan(stages, steps, 0, cancelled=True).end == "cancelled"


@given(graphs(), st.randoms(), st.floats(0, 1))
def test_every_run_comes_to_its_end_in_order(stages: Any, random: Any, risk: float) -> None:
    """Carried out with failures by chance: no stage starts before what it waits for is done, and
    the end is a success exactly if every stage is done."""
    stages = checked(*stages)
    steps = {one["key"]: StepNow() for one in stages}
    waits = {one["key"]: graph.before(one) for one in stages}
    now, tries = 0.0, dict.fromkeys(steps, 0)
    for _ in range(500):
        made = graph.plan(stages, steps, now)
        if made.end:
            break
        for key in made.start:
            assert all(steps[one].state in {"succeeded", "skipped"} for one in waits[key])
            tries[key] += 1
            state = "failed" if random.random() < risk else "succeeded"
            steps[key] = replace(steps[key], state=state, finished_at=now)
        for key, at in made.again.items():
            assert at >= now
            count = steps[key].retry_count + 1
            steps[key] = StepNow(retry_count=count, not_before=at)
        for key in made.give_up:
            assert any(steps[one].state in {"failed", "not_run"} for one in waits[key])
            steps[key] = StepNow("not_run")
        if not (made.start or made.again or made.give_up):  # time stands still while there is work
            now = max(now, made.look_at or 0)
    done = all(step.state == "succeeded" for step in steps.values())
    assert made.end == ("succeeded" if done else "failed")
    limit = {one["key"]: one["retries"] + 1 for one in stages}
    assert all(tries[key] <= limit[key] for key in tries)


@given(graphs(), st.data())
def test_again_from_a_step_means_it_and_all_that_wait_for_it(stages: Any, data: Any) -> None:
    stages = checked(*stages)
    key = data.draw(st.sampled_from([one["key"] for one in stages]))
    found = graph.from_step(stages, key)
    for one in stages:
        waits_on_it = bool(found.intersection(graph.before(one)))
        assert (one["key"] in found) == (one["key"] == key or waits_on_it)
