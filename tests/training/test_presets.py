"""What a training does unless told otherwise: who races, and how long."""

from pathlib import Path

import pytest
from django.conf import settings
from hypothesis import given
from hypothesis import strategies as st

from accounts.errors import Invalid
from tests.factories import WorkerFactory
from tests.training import make
from training import actions, presets
from training.presets import PRESETS

ENGINES = ("pycaret", "flaml", "sklearn", "autogluon", "other")
TASKS = ("binary", "multiclass", "regression")
names = st.lists(st.sampled_from(ENGINES), unique=True)


@pytest.fixture
def many(monkeypatch):
    """An installation with five engines."""
    found = {name: actions.catalog.EngineInfo(name, name.title(), TASKS) for name in ENGINES}
    monkeypatch.setattr(actions.catalog, "engines", lambda: found)


def node(*engines, **fields):
    queues = [f"{engine}.cpu" for engine in engines]
    capabilities = {"cpu": 4, "ram_mib": 8192, "engines": list(engines), "gpus": []}
    return WorkerFactory(capabilities=capabilities, queues=queues, **fields)


def start(by=None, **wish):
    by = by or make.member()
    return actions.start_job(by, make.version(by).dataset_id, target="kind", **wish)


# Pure


@given(names.filter(bool), names, names, st.sampled_from(list(PRESETS)), st.booleans())
def test_who_races_fits_and_is_never_nobody(fitting, known, served, preset, every):
    chosen = PRESETS[preset]
    racing = presets.racers(fitting, chosen, every=every, known=known, served=served)
    assert racing
    assert len(racing) == len(set(racing))
    assert set(racing) <= set(fitting)
    if chosen.most_engines and not every:
        assert len(racing) <= chosen.most_engines
        live = set(fitting) & set(served) & set(known)
        assert not live or set(racing) <= live, "no node has it while another engine could start"


@given(names.filter(bool), st.floats(5, 1e5), st.sampled_from(list(presets.BUDGET_MODES)))
def test_a_budget_in_all_is_never_exceeded_and_leaves_enough_for_each(engines, budget_s, mode):
    got = presets.shares(engines, budget_s, mode, named=False)
    assert list(got) == engines[: len(got)]
    assert min(got.values()) >= 4.999
    if mode == "total":
        assert sum(got.values()) == pytest.approx(budget_s, rel=1e-3)
    else:
        assert list(got) == engines
        assert set(got.values()) == {budget_s}


def test_the_page_of_concepts_shows_the_presets_as_they_are():
    page = Path(settings.BASE_DIR / "docs" / "concepts.md").read_text(encoding="utf-8")
    assert presets.table() in page


# With nodes


@pytest.mark.django_db
def test_a_silent_request_races_the_strongest_that_live_nodes_have(many):
    node("pycaret", "flaml")
    node("sklearn", "other")
    job = start()
    assert (job.preset, job.engines) == ("balanced", ["sklearn", "flaml", "pycaret"])
    assert job.budgets == {"sklearn": 100.0, "flaml": 100.0, "pycaret": 100.0}
    assert (job.budget_s, job.budget_mode, job.ensemble, job.refit) == (300, "total", True, False)
    assert {t.engine: t.payload["budget_s"] for t in job.tasks} == job.budgets
    assert {t.engine: t.time_limit_s for t in job.tasks} == dict.fromkeys(job.engines, 140)


@pytest.mark.django_db
def test_quick_takes_fewer_and_best_takes_all(many):
    node("autogluon", "pycaret", "flaml", "sklearn")
    quick, best = start(preset="quick"), start(preset="best")
    assert quick.budgets == {"autogluon": 30.0, "sklearn": 30.0}
    assert best.engines == ["autogluon", "sklearn", "flaml", "pycaret"]
    assert (best.ensemble, best.refit, best.budget_s) == (True, True, 1800)


@pytest.mark.django_db
def test_what_a_request_says_goes_before_the_preset(many):
    node("autogluon", "pycaret")
    job = start(
        preset="best", engines=["pycaret", "flaml"], time_budget=40, budget_mode="per_engine",
        ensemble=False, refit=False,
    )  # fmt: skip
    assert job.budgets == {"pycaret": 40.0, "flaml": 40.0}
    assert (job.ensemble, job.refit, job.budget_mode) == (False, False, "per_engine")


@pytest.mark.django_db
def test_all_means_every_engine_of_the_installation_the_live_ones_first(many):
    make.age_node(node("autogluon"))
    node("pycaret", "other")
    job = start(engines="all", time_budget=30)
    assert job.engines == ["pycaret", "other", "autogluon"]
    assert "flaml" not in job.engines, "no node ever had it"


@pytest.mark.django_db
def test_another_version_of_an_engine_races_only_by_name(many, monkeypatch):
    older = actions.catalog.EngineInfo("sklearn-1.4", "1.4", TASKS, version_of="sklearn")
    both = {**actions.catalog.engines(), "sklearn-1.4": older}
    monkeypatch.setattr(actions.catalog, "engines", lambda: both)
    node("sklearn", "sklearn-1.4")
    assert start(engines="all").engines == ["sklearn"]
    assert start(engines=["sklearn-1.4", "sklearn"]).engines == ["sklearn-1.4", "sklearn"]


@pytest.mark.django_db
def test_nodes_that_cannot_do_it_do_not_count(many):
    by = make.member()
    node("autogluon", organization=make.member().organization)
    make.age_node(node("sklearn"))
    node("flaml", draining=True)
    WorkerFactory(queues=["other.gpu"], capabilities={"engines": ["other"]})
    node("pycaret", organization=by.organization)
    assert start(by).engines == ["pycaret"]


@pytest.mark.django_db
def test_with_too_little_time_the_weaker_stay_out_unless_they_were_named(many):
    node("autogluon", "sklearn", "flaml")
    assert start(time_budget=12).budgets == {"autogluon": 6.0, "sklearn": 6.0}
    with pytest.raises(Invalid) as refused:
        start(engines=["autogluon", "sklearn", "flaml"], time_budget=12)
    assert "leave 4 for each of 3 engines" in refused.value.errors["time_budget"][0]


@pytest.mark.django_db
def test_before_any_node_has_come_the_strongest_wait(many):
    assert start().engines == ["autogluon", "sklearn", "flaml"]


@pytest.mark.django_db
def test_a_preset_is_never_longer_than_the_installation_allows(many, settings):
    settings.MAX_TIME_BUDGET = 2
    assert start(preset="best").budget_s == 120


@pytest.mark.django_db
def test_an_unknown_preset_or_mode_is_named():
    with pytest.raises(Invalid) as refused:
        start(preset="slow", budget_mode="each")
    assert set(refused.value.errors) == {"preset", "budget_mode"}
    assert "quick, balanced, best" in refused.value.errors["preset"][0]
