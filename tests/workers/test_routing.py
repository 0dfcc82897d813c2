from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.routing import (
    VRAM_TIERS_GIB,
    Capabilities,
    NoSuchQueue,
    Requirements,
    in_words,
    narrowed,
    nearest,
    queue_for,
    queues_for,
    table,
)

engines = st.sampled_from(["", "pycaret", "torch", "flaml"])
requirements = st.builds(
    Requirements,
    engine=engines,
    device=st.sampled_from(["cpu", "gpu", "llm"]),
    gpu_ram_mib=st.sampled_from([0, 1, 6 * 1024, 8 * 1024, 9000, 24 * 1024]),
    urgent=st.booleans(),
)
capabilities = st.builds(
    Capabilities,
    engines=st.frozensets(engines.filter(bool)),
    gpu_ram_mib=st.lists(st.integers(2000, 90_000), max_size=3).map(tuple),
    llm=st.booleans(),
)


def can_run(need: Requirements, has: Capabilities) -> bool:
    if need.engine and need.engine not in has.engines:
        return False
    if need.device == "llm":
        return has.llm
    if need.device == "gpu":
        tier = next((t for t in VRAM_TIERS_GIB if need.gpu_ram_mib <= t * 1024), 0)
        floor = tier * 1024 * 0.95 if need.gpu_ram_mib else 0
        return any(ram >= floor for ram in has.gpu_ram_mib)
    return True


@given(requirements, capabilities)
def test_a_node_serves_a_queue_exactly_when_it_can_run_what_lies_there(need, has):
    assert (queue_for(need) in queues_for(has)) == can_run(need, has)


@given(capabilities, capabilities)
def test_more_capability_never_means_fewer_queues(one, other):
    both = Capabilities(
        engines=one.engines | other.engines,
        gpu_ram_mib=one.gpu_ram_mib + other.gpu_ram_mib,
        llm=one.llm or other.llm,
    )
    assert set(queues_for(one)) <= set(queues_for(both))


def test_a_card_sold_as_8_gb_serves_the_8_gb_queue():
    assert "gpu.vram8" in queues_for(Capabilities(gpu_ram_mib=(8188,)))


def test_more_memory_than_any_tier_is_refused():
    with pytest.raises(NoSuchQueue, match="24 GiB"):
        queue_for(Requirements(device="gpu", gpu_ram_mib=25 * 1024))


def test_naming_a_class_keeps_it_for_every_engine():
    queues = queues_for(Capabilities(engines=frozenset({"pycaret"}), gpu_ram_mib=(8192,)))
    assert narrowed(queues, ["cpu"]) == ["pycaret.cpu", "cpu"]


# --- A fleet ---


@given(st.lists(requirements, max_size=6), st.lists(capabilities, max_size=5))
def test_no_task_lies_where_a_node_can_not_run_it_or_where_nobody_looks(tasks, fleet):
    serving = [(set(queues_for(has)), has) for has in fleet]
    for need in tasks:
        queue = queue_for(need)
        able = [can_run(need, has) for _, has in serving]
        assert [queue in queues for queues, _ in serving] == able


@given(st.lists(capabilities, min_size=1, max_size=4), requirements)
def test_the_nearest_node_is_named_when_none_fits(fleet, need):
    nodes = {f"n{i}": queues_for(has) for i, has in enumerate(fleet)}
    queue = queue_for(need)
    near = nearest(queue, nodes)
    if near is not None:
        other, node = near
        assert other in nodes[node]
        assert other != queue


def test_the_nearest_gpu_is_the_largest_of_the_same_engine():
    nodes = {
        "a": queues_for(Capabilities(frozenset({"torch"}), (6144,))),
        "b": queues_for(Capabilities(frozenset({"torch"}), (8192,))),
        "c": queues_for(Capabilities(frozenset({"flaml"}), (24_576,))),
    }
    assert nearest("torch.gpu.vram12", nodes) == ("torch.gpu.vram8", "b")
    assert nearest("gpu.vram12", {"b": ["priority", "gpu.vram8", "gpu", "cpu"]}) == (
        "gpu.vram8",
        "b",
    )
    assert nearest("llm", {"b": ["priority", "cpu"]}) is None


def test_a_queue_is_told_in_words():
    assert in_words("cpu") == ""
    assert in_words("torch.gpu.vram12") == "the engine torch and a GPU of 12 GiB"
    assert in_words("own.pycaret.cpu") == "the engine pycaret"


def test_the_table_in_the_docs_is_the_code_s():
    page = (Path(__file__).parents[2] / "docs" / "scheduling.md").read_text(encoding="utf-8")
    assert table() in page, "Put the table that `python -m workers.routing` prints into the page."
