"""An operator's own PostgreSQL, whose login may make no roles: what FlowML says, and what helps."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from flowml_site import embedded
from tests import services

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not services.are_ours(), reason="needs a superuser of the database"),
]
NAME = f"poor_{os.getpid()}"


@pytest.fixture
def url() -> Iterator[str]:
    var = Path(os.environ["FLOWML_VAR"])
    with psycopg.connect(embedded._dsn(var, "postgres", "postgres"), autocommit=True) as operator:
        operator.execute(f"CREATE ROLE {NAME} LOGIN NOCREATEROLE")
        operator.execute(f"CREATE DATABASE {NAME} OWNER {NAME}")
        yield embedded._dsn(var, NAME, NAME)
        operator.execute(f"DROP DATABASE {NAME} WITH (FORCE)")
        operator.execute(f"DROP ROLE {NAME}")


def manage(url: str, *words: str, **env: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "manage.py", *words],
        env={**os.environ, "DATABASE_URL": url, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


LOOK = "from organizations import rls; print('ready:', rls.is_ready())"


def test_a_login_that_may_make_no_roles_is_told_what_to_run(url: str) -> None:
    code, said = manage(url, "migrate", "-v", "0")
    assert code == 0, said
    assert "no second line between tenants" in said
    code, said = manage(url, "migrate", "-v", "0", ROW_SECURITY="require")
    assert code == 1
    assert "CommandError: The database has no second line" in said
    assert "Traceback" not in said
    code, said = manage(url, "check", "--database", "default")
    statements = [ln for ln in said.splitlines() if ln.startswith(("GRANT", "CREATE ROLE"))]
    assert statements, said
    var = Path(os.environ["FLOWML_VAR"])
    with psycopg.connect(embedded._dsn(var, "postgres", "postgres"), autocommit=True) as operator:
        for statement in statements:
            operator.execute(statement)
    assert manage(url, "migrate", "-v", "0", ROW_SECURITY="require")[0] == 0
    assert "ready: True" in manage(url, "shell", "-v", "0", "-c", LOOK)[1]
