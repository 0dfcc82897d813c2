"""The second line between tenants: row-level security in PostgreSQL.

The first line is ``OrgQuerySet.of``. Should a view forget it once, this one stands: what a member
does runs in a transaction with the role of tenants (``SET LOCAL ROLE``) and the ids of the
organization and the person in ``app.org`` and ``app.user``. Policies, forced on every table that
holds something of an organization, then show that organization's rows and take no others. All of
it ends with the transaction, so that nothing of it is left for whoever gets the connection next.

Everything else (control, the console, nodes, signing in) acts for the platform: the login role is
a member of the platform's role, and by its policies sees all rows.

``protect`` puts the policies in place after every ``migrate``, by the registry of models: a table
with a foreign key to Organization is compared with ``app.org``; one without, but with a foreign
key (that isn't null) to such a table, shows the rows whose parent is shown. So a new ``OrgOwned``
model is protected without a line here. ``plan`` says which tables are, and how.
"""

import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.apps import apps
from django.conf import settings
from django.core import checks
from django.core.management.base import CommandError
from django.db import DatabaseError, ProgrammingError, connection, models, transaction
from django.db.models import F, Func, TextField, Value
from django.db.models.functions import Cast

from accounts.errors import Unavailable
from organizations.models import Membership, Organization

log = logging.getLogger(__name__)

TENANT, PLATFORM = "flowml_tenant", "flowml_platform"
# Rows without an organization are everybody's to read: the operator's own nodes.
SHARED = {"workers.Worker"}
# Tables that point at tenants but hold nothing of theirs, each with the reason.
NOT_OF_TENANTS: dict[str, str] = {}
LOOK_AGAIN_S = 30.0  # after the database was found without the roles

_ORG = "(SELECT NULLIF(current_setting('app.org', true), '')::uuid)"
_USER = "(SELECT NULLIF(current_setting('app.user', true), '')::uuid)"
_NOTHING = (("role", "none"), ("app.org", ""), ("app.user", ""))
Setting = tuple[tuple[str, str], ...]


class NotProtected(Unavailable):
    code = "row-security-missing"


# --- Acting for a tenant -------------------------------------------------------------------------


@contextmanager
def request_transaction() -> Iterator[None]:
    """A transaction in which ``acting`` may make the caller a tenant, whose end makes it none."""
    if not connection.in_atomic_block:
        with ExitStack() as stack:
            stack.enter_context(_own_transaction())
            connection.flowml_request = stack  # type: ignore[attr-defined]
            try:
                yield
            finally:
                connection.flowml_request = None  # type: ignore[attr-defined]
        return
    # Inside another transaction (a test's) nothing ends by itself.
    before = _acts()
    try:
        yield
    finally:
        _put_back(before)


@contextmanager
def _own_transaction() -> Iterator[None]:
    with transaction.atomic():
        try:
            yield
        finally:
            _remember(None)


@contextmanager
def waiting(*, comes_back: bool = True) -> Iterator[None]:
    """Around what only waits for others: the request's transaction is committed before it, and its
    connection goes back to the pool. After it the request goes on, as the same tenant.

    A pool is small: a few who wait for a silent node must not keep everybody else out.
    One that does not come back goes on only after an error: else it is over with the database,
    which spares a transaction, and what it still asks of that is refused.
    """
    stack: ExitStack | None = getattr(connection, "flowml_request", None)
    if stack is None or connection.savepoint_ids or getattr(connection, "flowml_over", False):
        yield  # inside a transaction that is not the request's to end, or in none any more
        return
    acts = _acts()
    stack.close()
    connection.close()
    try:
        yield
    except BaseException:
        _go_on(stack, acts)
        raise
    if comes_back:
        _go_on(stack, acts)
    else:
        stack.enter_context(_over())


def _go_on(stack: ExitStack, acts: Setting | None) -> None:
    stack.enter_context(_own_transaction())
    if acts is not None:
        _change(acts)


@contextmanager
def _over() -> Iterator[None]:
    """Until the request ends: without a tenant's role it would see everybody's rows."""

    def refuse(*_: Any) -> Any:
        raise RuntimeError("This request has let go of the database, and asks it all the same.")

    connection.flowml_over = True  # type: ignore[attr-defined]
    try:
        with connection.execute_wrapper(refuse):
            yield
    finally:
        connection.flowml_over = False  # type: ignore[attr-defined]


def acting(mine: models.QuerySet[Membership]) -> models.QuerySet[Membership]:
    """The query for a membership, which makes the transaction its organization's on the way.

    One statement and not two, for it stands before every request. Volatile functions are computed
    after sorting and limiting, so only the membership that is read counts: take ``first()``.
    """
    if not is_ready():
        return mine
    return mine.annotate(
        _org=_set_config("app.org", Cast(F("organization_id"), TextField())),
        _user=_set_config("app.user", Cast(F("user_id"), TextField())),
        _role=_set_config("role", Value(TENANT)),
    )


def acts_for(membership: Membership) -> None:
    """Take note of what a query made by ``acting`` has done."""
    if is_ready():
        _remember(_settings(membership.organization_id, membership.user_id))


def become(organization: UUID) -> None:
    """Make the transaction the organization's, for one whom no membership brings in."""
    if is_ready():
        _change(_settings(organization, None))


def _set_config(name: str, value: Any) -> Func:
    return Func(Value(name), value, Value(True), function="set_config", output_field=TextField())


@contextmanager
def tenant(organization: UUID, user: UUID | None = None) -> Iterator[None]:
    """Act for an organization, in a transaction: see and write its rows alone."""
    with request_transaction():
        if is_ready():
            _change(_settings(organization, user))
        yield


@contextmanager
def platform() -> Iterator[None]:
    """Act for the platform inside a tenant's request, where the work is about more than one.

    Keep what it sees from the caller, and say at the place why it is needed.
    """
    before = _acts()
    if before is None:
        yield
        return
    _change(None)
    try:
        yield
    finally:
        _put_back(before)


@contextmanager
def writing_for(organization: UUID | None) -> Iterator[None]:
    """Act for the platform if what is written isn't of the organization that the request is of."""
    acts = _acts()
    if acts is None or dict(acts)["app.org"] == str(organization):
        yield
    else:
        with platform():
            yield


def _settings(organization: UUID, user: UUID | None) -> Setting:
    return (("app.org", str(organization)), ("app.user", str(user or "")), ("role", TENANT))


def _change(to: Setting | None) -> None:
    pairs = to or _NOTHING
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {', '.join(['set_config(%s, %s, true)'] * len(pairs))}",
            [part for pair in pairs for part in pair],
        )
    _remember(to)


def _put_back(before: Setting | None) -> None:
    """Not through Django's cursor, which refuses inside a transaction that is to be rolled back.

    PostgreSQL refuses too where a statement has failed; then the rollback puts it back.
    """
    raw: Any = connection.connection
    if raw is not None and _acts() != before and raw.info.transaction_status.name == "INTRANS":
        pairs = before or _NOTHING
        raw.execute(
            f"SELECT {', '.join(['set_config(%s, %s, true)'] * len(pairs))}",
            [part for pair in pairs for part in pair],
        )
    _remember(before)


def _acts() -> Setting | None:
    return getattr(connection, "flowml_acts", None)


def _remember(acts: Setting | None) -> None:
    connection.flowml_acts = acts  # type: ignore[attr-defined]


# --- Whether the database is prepared ------------------------------------------------------------

_NEVER = float("-inf")
_found: tuple[float, bool] = (_NEVER, False)  # when this process looked, and what it found


def is_ready() -> bool:
    """Whether this database has the roles, the policies and the grants.

    Raises NotProtected where it has not and ROW_SECURITY is "require".
    """
    global _found
    when, ready = _found
    if not ready and time.monotonic() - when > LOOK_AGAIN_S:
        wanted = missing()
        ready = not wanted
        _found = (time.monotonic(), ready)
        if wanted:
            log.warning("%s It lacks: %s", _BARE, " ".join(wanted))
    if not ready and settings.ROW_SECURITY == "require":
        raise NotProtected("The database lacks its row-level security: tell the operator.")
    return ready


def missing() -> list[str]:
    """What the database lacks, as statements that a superuser of it can run. Empty: nothing."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)", [_ROLES])
        there = {name for (name,) in cursor.fetchall()}
        wanted = [f"CREATE ROLE {role} NOLOGIN;" for role in _ROLES if role not in there]
        cursor.execute("SELECT session_user, current_setting('server_version_num')::int >= 160000")
        login, has_set = cursor.fetchone()
        may = "SET" if has_set else "MEMBER"  # PostgreSQL 16 tells them apart
        for role, right, inherit in ((TENANT, may, "FALSE"), (PLATFORM, "USAGE", "TRUE")):
            if role in there:
                cursor.execute("SELECT pg_has_role(session_user, %s, %s)", [role, right])
                if cursor.fetchone()[0]:
                    continue
            options = f" WITH INHERIT {inherit}, SET TRUE" if has_set else ""
            wanted.append(f"GRANT {role} TO {connection.ops.quote_name(login)}{options};")
        table = Membership._meta.db_table
        if not wanted and table in connection.introspection.table_names(cursor):
            cursor.execute("SELECT has_table_privilege(%s, %s, 'SELECT')", [TENANT, table])
            if not cursor.fetchone()[0]:
                wanted.append(_MIGRATE)
    return wanted


_ROLES = [TENANT, PLATFORM]
_MIGRATE = "-- and then, as the owner of the tables: manage.py migrate"
_BARE = "The database has no second line between tenants: queries rely on their filters alone."


def check_database(databases: Any = None, **_: Any) -> list[checks.CheckMessage]:
    """``manage.py check --database default``: what an operator of their own PostgreSQL must do."""
    if not databases:
        return []
    try:
        wanted = missing()
    except DatabaseError:  # that it can't be reached, others say
        return []
    if not wanted or _may_create_roles():
        return []
    if wanted == [_MIGRATE]:
        hint = "Run `manage.py migrate` as the owner of the tables."
    else:
        statements = "\n".join(wanted)
        hint = (
            "Run this once as a superuser of the database, then `manage.py migrate`:\n" + statements
        )
    return [checks.Warning(_BARE, hint=hint, id="organizations.W001")]


def _may_create_roles() -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = session_user"
        )
        return bool(cursor.fetchone()[0])


# --- What is protected, and how ------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """Which rows of a table a tenant may write, and which more it may read."""

    table: str
    own: str  # SQL, true for the rows that are the tenant's
    also_read: str = ""  # SQL, true for rows that it may look at but not write

    def policies(self) -> dict[str, str]:
        """Policies by name, as SQL."""
        table = connection.ops.quote_name(self.table)
        every = f"CREATE POLICY {PLATFORM} ON {table} TO {PLATFORM} USING (true)"
        own = f"CREATE POLICY {TENANT} ON {table} TO {TENANT} USING ({self.own})"
        made = {PLATFORM: every, TENANT: own}
        if self.also_read:
            read = f"CREATE POLICY {TENANT}_reads ON {table} FOR SELECT TO {TENANT} USING "
            made[f"{TENANT}_reads"] = read + f"({self.also_read})"
        return made


def plan() -> dict[type[models.Model], Rule]:
    """The rule of every table that holds something of a tenant."""
    rules: dict[type[models.Model], Rule] = {
        Organization: Rule(
            Organization._meta.db_table,
            f"id = {_ORG}",
            f"id IN (SELECT organization_id FROM {Membership._meta.db_table}"  # noqa: S608
            f" WHERE user_id = {_USER})",
        ),
        Membership: Rule(
            Membership._meta.db_table, f"organization_id = {_ORG}", f"user_id = {_USER}"
        ),
    }
    left = [model for model in _models() if model not in rules]
    for model in list(left):
        if field := _key_to(model, {Organization}):
            shared = model._meta.label in SHARED and field.null
            column = connection.ops.quote_name(field.column)
            rules[model] = Rule(
                model._meta.db_table,
                f"{column} = {_ORG}",
                f"{column} IS NULL" if shared else "",
            )
            left.remove(model)
    found = True
    while found:  # children of children
        found = False
        for model in list(left):
            parents = [
                field for field in _keys(model) if not field.null and field.related_model in rules
            ]
            if parents:
                rules[model] = Rule(model._meta.db_table, " AND ".join(map(_shown, parents)))
                left.remove(model)
                found = True
    return rules


def _models() -> list[type[models.Model]]:
    """All tables but those that say that they hold nothing of tenants."""
    return [
        model
        for model in apps.get_models(include_auto_created=True)
        if model._meta.managed and not model._meta.proxy and model._meta.label not in NOT_OF_TENANTS
    ]


def unprotected() -> list[str]:
    """Tables that point at something of a tenant, but only now and then: they need a decision."""
    rules = plan()
    return [
        f"{model._meta.label}.{field.name}"
        for model in _models()
        if model not in rules
        for field in _keys(model)
        if field.related_model in rules
    ]


def _keys(model: type[models.Model]) -> list[Any]:
    return [field for field in model._meta.concrete_fields if isinstance(field, models.ForeignKey)]


def _key_to(model: type[models.Model], targets: set[type[models.Model]]) -> Any:
    return next((f for f in _keys(model) if f.related_model in targets), None)


def _shown(key: Any) -> str:
    """SQL: whether the parent of a row is shown, by the policies of the parent's own table."""
    quote = connection.ops.quote_name
    parent = key.related_model._meta.db_table
    return (
        f"EXISTS (SELECT 1 FROM {quote(parent)} parent WHERE "  # noqa: S608
        f"parent.{quote(key.target_field.column)} = "
        f"{quote(key.model._meta.db_table)}.{quote(key.column)})"
    )


# --- Putting it in place -------------------------------------------------------------------------


def protect(**_: Any) -> None:
    """Make roles, policies and grants what they should be. After every ``migrate``; cheap then."""
    try:
        with transaction.atomic():
            _make_roles()
            _make_policies()
            _grant()
    except ProgrammingError as problem:
        # Not the tables' owner, or no right to make roles. The first line stands all the same.
        why = str(problem).strip().splitlines()[0]
        told = f"{_BARE} {why}. `manage.py check --database default` says what it needs."
        if settings.ROW_SECURITY == "require":
            raise CommandError(told) from problem
        log.warning(told)
    global _found
    _found = (time.monotonic(), not missing())


def _make_roles() -> None:
    wanted = [line for line in missing() if not line.startswith("--")]
    with connection.cursor() as cursor:
        for statement in wanted:
            cursor.execute(statement)


def _make_policies() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT c.relname, c.relrowsecurity AND c.relforcerowsecurity, p.polname,"
            " obj_description(p.oid, 'pg_policy')"
            " FROM pg_class c LEFT JOIN pg_policy p ON p.polrelid = c.oid"
            " WHERE c.relkind = 'r' AND pg_table_is_visible(c.oid)"
            " AND c.relnamespace = current_schema()::regnamespace"
        )
        forced: dict[str, bool] = {}
        there: dict[str, dict[str, str]] = {}
        for table, is_forced, policy, text in cursor.fetchall():
            forced[table] = is_forced
            if policy and policy.startswith((TENANT, PLATFORM)):
                there.setdefault(table, {})[policy] = text or ""
        wanted = {rule.table: rule for rule in plan().values() if rule.table in forced}
        quote = connection.ops.quote_name
        for table in sorted(forced):
            rule = wanted.get(table)
            policies = rule.policies() if rule else {}
            marks = {name: _mark(text) for name, text in policies.items()}
            if marks == there.get(table, {}) and forced[table] == bool(rule):
                continue
            for name in there.get(table, {}):
                cursor.execute(f"DROP POLICY {quote(name)} ON {quote(table)}")
            for name, statement in policies.items():
                cursor.execute(statement)
                cursor.execute(
                    f"COMMENT ON POLICY {quote(name)} ON {quote(table)} IS '{marks[name]}'"
                )
            if rule or table in there:
                on = "ENABLE" if rule else "DISABLE"
                force = "FORCE" if rule else "NO FORCE"
                cursor.execute(
                    f"ALTER TABLE {quote(table)} {on} ROW LEVEL SECURITY,"
                    f" {force} ROW LEVEL SECURITY"
                )


def _mark(statement: str) -> str:
    return hashlib.sha256(statement.encode()).hexdigest()[:16]


def _grant() -> None:
    """What the two roles may do at all. Which rows, the policies say."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT 1 FROM pg_class c WHERE c.relkind = 'r'"
            " AND c.relnamespace = current_schema()::regnamespace"
            " AND pg_get_userbyid(c.relowner) = current_user"
            " AND NOT has_table_privilege(%s, c.oid, 'INSERT'))",
            [TENANT],
        )
        if not cursor.fetchone()[0]:
            return
        cursor.execute("SELECT current_schema()")
        schema = connection.ops.quote_name(cursor.fetchone()[0])
        both = f"{TENANT}, {PLATFORM}"
        cursor.execute(f"GRANT USAGE ON SCHEMA {schema} TO {both}")
        cursor.execute(
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {both}"
        )
        cursor.execute(f"GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA {schema} TO {both}")
