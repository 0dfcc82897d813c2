"""A pipeline that is made by forms: stage by stage, as a graph, with what is wrong at its stage."""

import html
import json
import re
from typing import Any

import pytest
from django.http import QueryDict
from django.test import Client

from organizations.models import Membership
from pipelines import editing, graph
from pipelines.models import Pipeline
from tests.pipelines import make as piping
from tests.training import make

SQL = {"key": "fetch", "stage": "sql", "params": {"connection": "house", "sql": "SELECT 1"}}


def sent(**fields: Any) -> QueryDict:
    made = QueryDict(mutable=True)
    for name, value in fields.items():
        made.setlist(name, value if isinstance(value, list) else [value])
    return made


def draft(*stages: dict[str, Any]) -> dict[str, Any]:
    return editing.drawable({"stages": list(stages)})


# --- Drafts --------------------------------------------------------------------------------------


def test_what_is_added_takes_what_the_stage_beside_it_gives() -> None:
    made = draft()
    for stage, near in (("sql", None), ("sql", 0), ("train", 0), ("score", 1), ("notify", 3)):
        editing.add(made, stage, near)
    keys = [one["key"] for one in made["stages"]]
    assert keys == ["sql", "sql-2", "train", "score", "notify"]
    assert made["stages"][2]["params"] == {"data": "$sql"}
    assert made["stages"][3]["params"] == {"model": "$train", "data": "$sql-2"}
    assert made["stages"][4]["after"] == ["score"]
    assert [graph.before(one) for one in made["stages"][:2]] == [[], ["sql"]]


def test_what_is_typed_becomes_what_the_definition_says() -> None:
    made = draft({"key": "train", "stage": "train", "params": {"data": "flowers", "preset": "x"}})
    typed = {
        "key": "learn", "p-data": "flowers", "p-target": " kind ", "p-preset": "",
        "p-engines": "sklearn, flaml", "p-time_budget": "60", "p-refit": "no",
        "p-exclude": "a, b\r\nc\r\n", "retries": "2", "backoff_s": "", "fresh": "yes",
    }  # fmt: skip
    editing.fill(made, 0, sent(**typed))
    (stage,) = graph.check(made)["stages"]
    assert stage == {
        "key": "learn", "stage": "train", "after": [], "retries": 2, "backoff_s": 30,
        "fresh": True,
        "params": {
            "data": "flowers", "target": "kind", "engines": ["sklearn", "flaml"],
            "time_budget": 60, "refit": False, "exclude": ["a, b", "c"],
        },
    }  # fmt: skip
    for name, value in stage["params"].items():  # shown, and typed again, it is the same
        param = graph.STAGES["train"].params[name]
        editing.fill(made, 0, sent(**typed | {f"p-{name}": editing.shown(param, value)}))
    assert graph.check(made)["stages"] == [stage]
    editing.fill(made, 0, sent(**typed | {"p-time_budget": "soon", "p-engines": "all"}))
    with pytest.raises(graph.Refused) as refused:
        graph.check(made)
    assert list(refused.value.errors) == ["stages[0].params.time_budget"]
    assert made["stages"][0]["params"]["engines"] == "all"


def test_another_key_is_followed_and_a_stage_that_goes_leaves_a_gap() -> None:
    made = draft(
        SQL,
        {"key": "check", "stage": "check", "params": {"data": "$fetch"}},
        {"key": "tell", "stage": "notify", "params": {}, "after": ["fetch", "check"]},
    )
    editing.fill(made, 0, sent(**{"key": "query", "p-sql": "SELECT 2"}))
    assert made["stages"][1]["params"]["data"] == "$query"
    assert made["stages"][2]["after"] == ["query", "check"]
    editing.remove(made, 0)
    assert made["stages"][1]["after"] == ["check"]
    with pytest.raises(graph.Refused) as refused:
        graph.check(made)
    assert "There is no stage 'query'." in refused.value.errors["stages[0].params.data"]


def test_what_is_wrong_can_be_drawn_and_what_has_no_shape_can_not() -> None:
    circle = draft(
        {"key": "a", "stage": "check", "params": {"data": "$b"}},
        {"key": "b", "stage": "check", "params": {"data": "$a", "colour": "red"}, "after": ["x"]},
        {"key": "a", "stage": "fly"},
        {},
    )
    placed = editing.acyclic(circle["stages"])
    assert graph.layers(placed)
    assert sum(len(one["after"]) for one in placed) == 1, "one of the two waits is drawn"
    for shapeless in (None, [], {"stages": {}}, {"stages": [7]}, {"stages": [{"params": []}]},
                      {"stages": [{"key": 1}]}, {"stages": [{"after": [1]}]},
                      {"stages": [], "notify": 1}):  # fmt: skip
        with pytest.raises(graph.Refused):
            editing.drawable(shapeless)


# --- The page ------------------------------------------------------------------------------------


@pytest.fixture
def by() -> Membership:
    return make.member()


class Form:
    """The form as a browser without scripts has it: what its fields hold is sent with a button."""

    def __init__(self, by: Membership, path: str) -> None:
        self.client, self.path = Client(), path
        self.client.force_login(by.user)
        self.text = self.client.get(path).content.decode()

    def press(self, act: str, status: int = 200, **typed: Any) -> str:
        form = self.text[self.text.index('<form class="stack"') :]
        fields: dict[str, Any] = {}
        for tag in re.findall(r"<input[^>]*>", form):
            found = dict(re.findall(r'(name|value|type)="([^"]*)"', tag))
            if found.get("type") != "checkbox" or " checked" in tag:
                fields.setdefault(found["name"], []).append(html.unescape(found.get("value", "")))
        for name, value in re.findall(r'<textarea[^>]*name="([^"]*)"[^>]*>([^<]*)<', form):
            fields[name] = [html.unescape(value)]
        for name, options in re.findall(r'<select[^>]*name="([^"]*)"[^>]*>(.*?)</select>', form):
            values = re.findall(r'value="([^"]*)"( selected)?', options)
            chosen = [value for value, is_chosen in values if is_chosen]
            fields[name] = [html.unescape((chosen or [values[0][0]])[0])]
        fields |= typed
        answer = self.client.post(self.path, fields | ({"act": act} if act else {}))
        assert answer.status_code == status, answer.content.decode()[:3000]
        self.text = answer.content.decode()
        return self.text

    @property
    def definition(self) -> Any:
        found = re.search(r'name="definition" value="([^"]*)"', self.text)
        assert found
        return json.loads(html.unescape(found[1]))


@pytest.mark.django_db
def test_a_pipeline_is_built_stage_by_stage(by: Membership) -> None:
    piping.connection(by, "house")
    piping.connection(by, "gpu", kind="ssh", settings={"host": "gpu.example.org", "port": 22})
    form = Form(by, "/pipelines/new")
    assert "No stages yet" in form.text
    shown = form.press("add", **{"add-stage": "sql", "name": "nightly"})
    assert "house (DuckDB" in shown
    assert "gpu" not in shown, "only connections that fit are offered"
    assert "needs this" not in shown, "what was just added is not wrong yet"
    shown = form.press("open-0", **{"p-connection": "house"})
    assert shown.count("&#x27;sql&#x27; needs this.") == 2
    form.press("add", **{"add-stage": "train", "p-sql": "SELECT *\nFROM t", "p-dataset": "day"})
    assert '<option value="$sql" selected>' in form.text
    assert "What it takes" not in form.text
    shown = form.press("", 400)
    assert "Nothing is saved yet" in shown
    assert "&#x27;train&#x27; needs this." in shown
    form.press("", 302, **{"p-target": "kind", "notify-to": by.user.email})
    made = Pipeline.objects.get()
    assert made.version is not None
    assert [one["params"] for one in made.version.definition["stages"]] == [
        {"connection": "house", "sql": "SELECT *\nFROM t", "dataset": "day"},
        {"data": "$sql", "target": "kind"},
    ]  # fmt: skip
    assert made.version.definition["notify"] == {"to": [by.user.email], "on": ["failed"]}

    form = Form(by, f"{made.get_absolute_url()}/edit")
    form.press("open-0")
    form.press("remove-0")
    assert [one["key"] for one in form.definition["stages"]] == ["train"]
    form.press("open-0")
    assert "There is no stage &#x27;sql&#x27;." in form.text
    assert "Not among these" in form.text
    form.press("", 400)
    made.refresh_from_db()
    assert made.version.number == 1, "nothing was saved"


@pytest.mark.django_db
def test_the_text_is_the_other_view_of_the_same_thing(by: Membership) -> None:
    form = Form(by, "/pipelines/new?template=warehouse")
    text = form.press("text")
    assert "&quot;key&quot;: &quot;fetch&quot;" in text
    assert 'name="view" value="text"' in text
    typed = '{"stages": [{"key": "ask", "stage": "sql", "params": {"sql": "SELECT 7"}}]}'
    form.press("graph", definition=typed)
    assert form.definition == json.loads(typed)
    assert 'id="stage-0"' in form.text
    form.press("text")
    form.press("graph", definition='{"stages": [7]}')
    assert 'name="view" value="text"' in form.text, "it can't be drawn"
    assert "stages[0]" in form.text
    form.press("graph", definition="{oops")
    assert "This is no JSON." in form.text
    assert "{oops" in form.text


@pytest.mark.django_db
def test_a_circle_is_told_and_nothing_breaks(by: Membership) -> None:
    form = Form(by, "/pipelines/new")
    form.press("text")
    circle = {"stages": [
        {"key": "a", "stage": "remote", "params": {}, "after": ["b"]},
        {"key": "b", "stage": "remote", "params": {}, "after": ["a"]},
    ]}  # fmt: skip
    form.press("graph", definition=json.dumps(circle))
    form.press("open-1")
    assert 'value="a" checked' in form.text, "it can be unticked"
    for nonsense in ("open-99", "remove-x", "open-", "fly", "add"):
        form.press(nonsense, **{"add-stage": "fly"})
    assert [one["key"] for one in form.definition["stages"]] == ["a", "b"]
