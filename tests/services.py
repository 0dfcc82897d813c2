"""A pytest plugin that runs real services for the tests: ``-p tests.services`` (in pyproject.toml).

It is imported before Django's settings are, which is the moment to say where the services will be.
They start when the session does, once, in the process that the user started; pytest-xdist's workers
inherit the addresses. With DATABASE_URL and REDIS_URL set, those are used and nothing is started.

Migrating takes longer than most tests: the database is a copy of one that was migrated before.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import psycopg
import pytest

from flowml_site import embedded
from flowml_site.processes import Process
from tests.seeds import seed

PREFIX = "flowml-tests-"
TEMPLATE = "flowml_template"  # the migrated database that those of the tests are copies of
OURS = "FLOWML_TESTS_OWN_DATABASE"
worker = os.environ.get("PYTEST_XDIST_WORKER", "")  # gw0, gw1, ...; '' in the main process


def _remove_leftovers() -> None:
    """Folders of test runs that were killed (their services died with them)."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and Process.of(int(pid)) is None:
            shutil.rmtree(folder, ignore_errors=True)


def _announce() -> embedded.Services | None:
    """Put the addresses of services to come into the environment."""
    needs = [name for name in ("DATABASE_URL", "REDIS_URL") if not os.environ.get(name)]
    var = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    os.environ["FLOWML_VAR"] = str(var)
    os.environ.setdefault("DEBUG", "0")
    os.environ["SECRET_KEY"] = "only-for-tests-" + "k" * 40
    os.environ["FLOWML_SIGNING_KEY"] = "07" * 32
    os.environ["FLOWML_JOIN_TOKEN"] = "join-token-of-the-tests"
    if "DATABASE_URL" in needs:
        os.environ["DATABASE_URL"] = embedded.database_url(var)
        os.environ[OURS] = "1"
    if "REDIS_URL" in needs:
        os.environ["REDIS_URL"] = embedded.promise_valkey(var)
    return embedded.Services(
        var, postgres="DATABASE_URL" in needs, valkey="REDIS_URL" in needs, durable=False
    )


def are_ours() -> bool:
    """Whether the database was started for this test run and ends with it."""
    return bool(os.environ.get(OURS))


def _own_number() -> None:
    """A Valkey database of its own for each worker, so that flushing one leaves the others be."""
    number = int(worker.removeprefix("gw")) + 1
    base, _, last = os.environ["REDIS_URL"].rpartition("/")
    if last.isdigit():
        os.environ["REDIS_URL"] = f"{base}/{number}"


def _make_template() -> None:
    """The migrated database becomes the template, and an empty one takes its name."""
    var = Path(os.environ["FLOWML_VAR"])
    with psycopg.connect(embedded._dsn(var, "postgres", "postgres"), autocommit=True) as operator:
        operator.execute(f"ALTER DATABASE flowml RENAME TO {TEMPLATE}")
        operator.execute("CREATE DATABASE flowml OWNER flowml")


services: embedded.Services | None = None
if worker:
    _own_number()
elif "flowml_site.settings" in sys.modules:
    raise pytest.UsageError("tests.services was loaded after the settings: start it with -p.")
else:
    _remove_leftovers()
    services = _announce()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Start them, before pytest-xdist starts its workers."""
    if services is not None and not session.config.option.collectonly:
        try:
            if are_ours():
                # Each client of a test would look through collected files anew.
                seed(services.var, static=False)
            services.start()
            if are_ours():
                _make_template()
        except embedded.ServiceError as error:
            raise pytest.UsageError(str(error)) from error


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop them after everything else has been torn down."""
    if services is not None:
        services.stop()
        shutil.rmtree(services.var, ignore_errors=True)
