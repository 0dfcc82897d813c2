"""The second line between tenants bites by itself, and leaves nothing behind.

Whatever the first line does is switched off here: queries that name no organization, writes that
name another one. What PostgreSQL then shows and takes is what counts.
"""

from datetime import timedelta
from typing import Any

import pytest
from django.apps import apps
from django.db import DatabaseError, ProgrammingError, connection, models, transaction
from django.http import HttpResponse
from django.test import Client
from django.urls import path
from django.utils import timezone
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.errors import Conflict
from datasets.models import Dataset, DatasetVersion
from organizations import access, rls
from organizations.api.base import OrgAPIView
from organizations.models import Membership, Organization, OrgOwned, Role
from tests import test_access
from tests.factories import make_task
from tests.test_access import World, world  # noqa: F401 - a fixture
from tests.training import make
from tests.training.conftest import serving_node  # noqa: F401 - a fixture
from training import serving
from workers.models import Artifact, Event, Pause, Stream, Task, Worker, emit
from workers.waiting import waits_for

pytestmark = pytest.mark.django_db

# Tables of ours that no policy watches, since they hold nothing of tenants.
OF_THE_PLATFORM = {"workers.Worker", "workers.Pulse"}


def who_acts() -> tuple[str, str, str]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT current_user, coalesce(current_setting('app.org', true), ''),"
            " coalesce(current_setting('app.user', true), '')"
        )
        found: tuple[str, str, str] = cursor.fetchone()
        return found


# --- It is there ---------------------------------------------------------------------------------


def test_the_tests_have_the_second_line() -> None:
    assert rls.missing() == []
    assert rls.is_ready()


def test_every_table_with_something_of_a_tenant_has_forced_policies() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT c.relname, c.relrowsecurity AND c.relforcerowsecurity,"
            " array_agg(p.polname::text) FROM pg_class c LEFT JOIN pg_policy p"
            " ON p.polrelid = c.oid WHERE c.relkind = 'r' GROUP BY 1, 2"
        )
        found = {table: (forced, set(names)) for table, forced, names in cursor.fetchall()}
    plan = rls.plan()
    owned = {m for m in apps.get_models() if issubclass(m, OrgOwned)}
    assert owned <= set(plan)
    for model, rule in plan.items():
        forced, names = found[model._meta.db_table]
        assert forced, model
        assert names == set(rule.policies()), model


def test_a_new_table_is_protected_or_says_why_not() -> None:
    assert rls.unprotected() == [], "make the key not null, add an organization, or say why not"
    ours = {
        model
        for label in ("organizations", "workers", "datasets", "training")
        for model in apps.get_app_config(label).get_models(include_auto_created=True)
    }
    bare = {m._meta.label for m in ours - set(rls.plan())} - set(rls.NOT_OF_TENANTS)
    assert bare <= OF_THE_PLATFORM, (
        f"{bare - OF_THE_PLATFORM} have no policy: give them a key to Organization, or to what has "
        "one; or list them here as holding nothing of tenants"
    )


def test_protecting_again_changes_nothing(django_assert_max_num_queries: Any) -> None:
    with django_assert_max_num_queries(16) as seen:
        rls.protect()
    told = " ".join(one["sql"] for one in seen.captured_queries)
    assert "CREATE" not in told
    assert "GRANT" not in told
    assert "ALTER" not in told


def test_a_policy_that_was_tampered_with_comes_back() -> None:
    with connection.cursor() as cursor:
        cursor.execute("DROP POLICY flowml_tenant ON datasets_dataset")
        cursor.execute("ALTER TABLE workers_task NO FORCE ROW LEVEL SECURITY")
        cursor.execute("REVOKE ALL ON training_trainingjob FROM flowml_tenant")
    rls.protect()
    test_every_table_with_something_of_a_tenant_has_forced_policies()
    with rls.tenant(make.member().organization_id):
        assert not Dataset.objects.exists()
        assert not apps.get_model("training.TrainingJob").objects.exists()


# --- It bites ------------------------------------------------------------------------------------


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every filter by organization is forgotten, everywhere."""
    from organizations.models import OrgQuerySet

    monkeypatch.setattr(OrgQuerySet, "of", lambda self, organization: self.all())


def test_with_every_filter_forgotten_a_stranger_gets_what_the_table_says(
    forgotten: None,
    world: World,  # noqa: F811
) -> None:
    problems = []
    for row in test_access.ROWS:
        answer = world.send(row, "stranger")
        problems.append(test_access.judge(row, row.expected["stranger"], answer))
        problems += test_access.leaks(world, row, "stranger", answer)
    assert not any(problems), "\n".join(filter(None, problems))


@pytest.fixture
def two() -> tuple[Membership, Membership]:
    """Members of two organizations, each with one of everything."""
    members = make.member(Role.ADMIN), make.member(Role.ADMIN)
    for member in members:
        version = make.version(member)
        make.scored_model(member, of=version)
        task = make.Node().claim() if make_task(member.organization) else None
        assert task is not None
        emit(task.stream_id, "log", {"line": "x"}, task=task)
    return members


def homes(model: type[models.Model]) -> set[Any]:
    """The organizations whose rows of a table are shown, by the platform's own look at them."""
    shown = list(model._default_manager.values_list("pk", flat=True))
    with rls.platform():
        return {home_of(row) for row in model._default_manager.filter(pk__in=shown)}


def home_of(row: Any) -> Any:
    if isinstance(row, Organization):
        return row.pk
    if hasattr(row, "organization_id"):
        return row.organization_id
    parent = next(
        f
        for f in row._meta.concrete_fields
        if isinstance(f, models.ForeignKey) and not f.null and f.related_model in rls.plan()
    )
    return home_of(getattr(row, parent.name))


def test_a_query_without_a_filter_shows_one_tenants_rows_in_every_table(
    two: tuple[Membership, Membership],
) -> None:
    mine, other = two
    filled = set()
    for model in rls.plan():
        everybodys = {home_of(row) for row in model._default_manager.all()}
        with rls.tenant(mine.organization_id, mine.user_id):
            shown = homes(model)
        if model._meta.label in rls.SHARED:
            shown.discard(None)
        assert shown <= {mine.organization_id}, model
        if other.organization_id in everybodys:
            assert mine.organization_id not in everybodys or shown == {mine.organization_id}, model
            filled.add(model)
    assert {Dataset, DatasetVersion, Artifact, Task, Event, Stream, Membership} <= filled


def test_without_an_organization_nothing_is_shown(two: tuple[Membership, Membership]) -> None:
    with rls.tenant(two[0].organization_id), connection.cursor() as cursor:
        cursor.execute("SELECT set_config('app.org', '', true)")
        for model in rls.plan():
            found = set(model._default_manager.values_list("pk", flat=True))
            assert not found or model._meta.label in rls.SHARED, model


def test_a_person_sees_where_else_they_belong_but_changes_nothing_there(
    two: tuple[Membership, Membership],
) -> None:
    mine, other = two
    elsewhere = Membership.objects.create(
        organization=other.organization, user=mine.user, role=Role.VIEWER
    )
    with rls.tenant(mine.organization_id, mine.user_id):
        assert set(Membership.objects.values_list("pk", flat=True)) == {mine.pk, elsewhere.pk}
        assert set(Organization.objects.values_list("pk", flat=True)) == {
            mine.organization_id,
            other.organization_id,
        }
        assert Membership.objects.filter(pk=elsewhere.pk).update(role=Role.ADMIN) == 0
        assert Organization.objects.filter(pk=other.organization_id).update(name="x") == 0
    elsewhere.refresh_from_db()
    assert elsewhere.role == Role.VIEWER


def test_another_tenants_rows_can_be_neither_changed_nor_deleted(
    two: tuple[Membership, Membership],
) -> None:
    mine, other = two
    dataset = Dataset.objects.of(other.organization).get()
    event = Event.objects.filter(stream__organization=other.organization).first()
    assert event is not None
    with rls.tenant(mine.organization_id):
        assert Dataset.objects.filter(pk=dataset.pk).update(name="taken") == 0
        assert Dataset.objects.filter(pk=dataset.pk).delete()[0] == 0
        assert Event.objects.filter(pk=event.pk).update(data={}) == 0
        assert not Dataset.objects.select_for_update(no_key=True).filter(pk=dataset.pk).exists()
        own = Dataset.objects.get()
        assert Dataset.objects.filter(pk=own.pk).update(name="renamed") == 1


@pytest.mark.parametrize("what", ["row", "child", "move", "stream"])
def test_nothing_can_be_put_into_another_tenants(
    two: tuple[Membership, Membership], what: str
) -> None:
    mine, other = two
    stream = Stream.objects.filter(organization=other.organization).first()
    task = Task.objects.filter(organization=other.organization).first()
    assert stream is not None

    def try_it() -> None:
        if what == "row":
            Dataset.objects.create(organization=other.organization, name="planted")
        elif what == "child":
            Event.objects.create(stream_id=stream.pk, seq=999, type="log", task=task)
        elif what == "move":
            Dataset.objects.update(organization=other.organization)
        else:
            emit(stream.pk, "log", {})

    refusal = Stream.DoesNotExist if what == "stream" else ProgrammingError
    with rls.tenant(mine.organization_id), pytest.raises(refusal), transaction.atomic():
        try_it()
    try_it()  # the platform may


def test_the_role_of_tenants_has_no_way_around() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolcanlogin FROM pg_roles"
            " WHERE rolname IN ('flowml_tenant', 'flowml_platform')"
        )
        assert set(cursor.fetchall()) == {(False,) * 5}
        cursor.execute(
            "SELECT count(*) FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner"
            " WHERE r.rolname = 'flowml_tenant'"
        )
        assert cursor.fetchone() == (0,)
    with rls.tenant(make.member().organization_id):
        for statement in (
            "ALTER TABLE datasets_dataset DISABLE ROW LEVEL SECURITY",
            "DROP POLICY flowml_tenant ON datasets_dataset",
            "TRUNCATE datasets_dataset CASCADE",
            "CREATE TABLE copied AS SELECT 1",
            "SET row_security = off; SELECT * FROM datasets_dataset",
        ):
            with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
                cursor.execute(statement)


# --- In requests, with real transactions ----------------------------------------------------------

SEEN: list[tuple[str, str, str]] = []


class Look(OrgAPIView):
    """Looks at everything, writes something, and ends as it is told to."""

    roles = {"get": Role.VIEWER}

    def get(self, request: Request) -> Response:
        look(request)
        return Response({"names": names()})


def names() -> list[str]:
    return sorted(Dataset.objects.values_list("name", flat=True))


def look(request: Any) -> None:
    SEEN.append(who_acts())
    assert connection.in_atomic_block
    Dataset.objects.update(description="written")
    end = request.GET.get("end")
    if end == "flow":
        raise Conflict("No.")
    if end == "bug":
        raise RuntimeError("A bug.")
    if end == "database":
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1/0")


@access.org_role(Role.VIEWER)
def page(request: access.OrgRequest) -> HttpResponse:
    look(request)
    return HttpResponse(",".join(names()))


urlpatterns = [path("look/api", Look.as_view()), path("look/page", page)]


@pytest.fixture
def people(transactional_db: None, settings: Any) -> tuple[Membership, Membership]:
    settings.ROOT_URLCONF = __name__
    SEEN.clear()
    members = make.member(), make.member()
    for number, member in enumerate(members):
        Dataset.objects.create(organization=member.organization, name=f"of {number}")
    return members


def browser(member: Membership) -> Client:
    client = Client(raise_request_exception=False)
    client.force_login(member.user)
    return client


@pytest.mark.parametrize("place", ["api", "page"])
@pytest.mark.parametrize("end", ["", "flow", "bug", "database"])
def test_a_request_sees_its_tenant_alone_and_leaves_nothing_behind(
    people: tuple[Membership, Membership], place: str, end: str
) -> None:
    nobody = who_acts()
    assert nobody[1:] == ("", "")
    browsers = [browser(member) for member in people]
    for turn in (0, 1, 0):
        answer = browsers[turn].get(f"/look/{place}", {"end": end})
        assert answer.status_code == {"": 200, "flow": 409}.get(end, 500) or place == "page"
        if not end:
            assert f"of {turn}" in answer.content.decode()
            assert f"of {1 - turn}" not in answer.content.decode()
        member = people[turn]
        assert SEEN[-1] == ("flowml_tenant", str(member.organization_id), str(member.user_id))
        assert who_acts() == nobody
        assert names() == ["of 0", "of 1"]
    # A request that broke has changed nothing; one that was answered has.
    written = Dataset.objects.filter(description="written").count()
    kept = not end or (end == "flow" and place == "api")
    assert written == (2 if kept else 0)


def test_the_connection_that_goes_back_to_the_pool_is_nobodys(
    people: tuple[Membership, Membership],
) -> None:
    """As after every request in production, where Django closes its connection at the end."""
    for turn in (0, 1):
        browser(people[turn]).get("/look/page")
        connection.close()
        assert who_acts()[1:] == ("", "")
        assert who_acts()[0] != rls.TENANT


def test_somebody_of_two_organizations_acts_for_the_one_that_is_meant(
    people: tuple[Membership, Membership],
) -> None:
    first, second = people
    Membership.objects.create(organization=second.organization, user=first.user, role=Role.ADMIN)
    client = browser(first)
    headers = {"X-Organization": str(second.organization_id)}
    assert client.get("/look/api", headers=headers).json() == {"names": ["of 1"]}
    assert client.get("/look/api").json() == {"names": ["of 0"]}
    assert SEEN[-1][1] == str(first.organization_id)


def test_work_for_the_platform_ends_where_it_began(people: tuple[Membership, Membership]) -> None:
    with rls.tenant(people[0].organization_id):
        with rls.platform():
            assert names() == ["of 0", "of 1"]
        assert names() == ["of 0"]
        with pytest.raises(RuntimeError), rls.platform():
            raise RuntimeError
        assert names() == ["of 0"]
    assert names() == ["of 0", "of 1"]


def test_what_a_task_waits_for_is_the_same_told_to_its_tenant(
    two: tuple[Membership, Membership],
) -> None:
    """Lines and pauses are everybody's: a tenant who saw its own part alone would be misled."""
    mine, other = two
    make_task(other.organization)
    task = make_task(mine.organization)
    Task.objects.update(queued_at=timezone.now() - timedelta(minutes=1))
    task.refresh_from_db()
    for paused in (False, True):
        if paused:
            Pause.objects.create(queue="", reason="a new disk")
        told = waits_for([task], mine.organization)
        assert ("paused" in told) == paused
        with rls.tenant(mine.organization_id, mine.user_id):
            assert waits_for([task], mine.organization) == told


@pytest.mark.django_db(transaction=True)
def test_who_waits_for_a_node_holds_no_connection(
    serving_node: make.FakeServing,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    member = make.member()
    model = make.scored_model(member)
    Worker.objects.update(address=serving_node.address)
    serving_node.answer = {"predictions": ["kind 1"], "ms": {}}
    sent, asked = serving.ask_node, []

    def watched(*args: Any) -> serving.Answer:
        asked.append((connection.in_atomic_block, connection.connection))
        return sent(*args)

    monkeypatch.setattr(serving, "ask_node", watched)
    answer = browser(member).post(
        f"/api/results/model/{model.pk}/predict",
        {"rows": [{"petal_cm": 1.0, "colour": "red", "weight_g": 2.0}]},
        content_type="application/json",
    )
    assert (answer.status_code, asked) == (200, [(False, None)])


@pytest.mark.django_db(transaction=True)
def test_after_waiting_a_request_goes_on_as_the_same_tenant() -> None:
    member = make.member()
    with rls.tenant(member.organization_id, member.user_id):
        before = who_acts()
        with rls.waiting():
            assert connection.connection is None
        assert who_acts() == before
        with pytest.raises(ZeroDivisionError), rls.waiting():
            _ = 1 / 0
        assert who_acts() == before
        assert before[0] == rls.TENANT
        with transaction.atomic(), rls.waiting():
            assert connection.in_atomic_block, "what is begun inside is not torn apart"
            assert who_acts() == before
    assert who_acts()[0] != rls.TENANT


@pytest.mark.django_db(transaction=True)
def test_whoever_is_over_with_the_database_asks_nothing_more_of_it() -> None:
    home = make.member().organization
    with rls.request_transaction():
        rls.become(home.pk)
        with rls.waiting(comes_back=False):
            pass
        with pytest.raises(RuntimeError, match="let go"):
            Organization.objects.count()  # it would be everybody's
        with rls.waiting():
            pass
        with pytest.raises(RuntimeError, match="let go"):
            Organization.objects.count()
    assert Organization.objects.count() == 1  # the next one begins anew
    with rls.request_transaction():
        rls.become(home.pk)
        with pytest.raises(ZeroDivisionError), rls.waiting(comes_back=False):
            _ = 1 / 0
        assert list(Organization.objects.all()) == [home]  # after an error the same tenant goes on


# --- A database that is not prepared --------------------------------------------------------------


@pytest.fixture
def poor(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    wanted = ["CREATE ROLE flowml_tenant NOLOGIN;"]
    monkeypatch.setattr(rls, "missing", lambda: wanted)
    monkeypatch.setattr(rls, "_found", (rls._NEVER, False))
    return wanted


def test_without_the_roles_the_first_line_stands_alone(
    poor: list[str], two: tuple[Membership, Membership]
) -> None:
    client = browser(two[0])
    assert client.get("/api/datasets").json()["count"] == 1
    assert client.get("/data").status_code == 200


def test_an_operator_can_insist(poor: list[str], settings: Any) -> None:
    settings.ROW_SECURITY = "require"
    client = browser(make.member())
    answer = client.get("/api/datasets")
    assert (answer.status_code, answer.json()["code"]) == (503, "row-security-missing")


def test_the_check_says_what_to_run(poor: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rls, "_may_create_roles", lambda: False)
    [warning] = rls.check_database(["default"])
    assert warning.id == "organizations.W001"
    assert poor[0] in str(warning.hint)
    assert rls.check_database(None) == [], "a check without a database asks none"
