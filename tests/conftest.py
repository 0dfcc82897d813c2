"""What every test gets."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from hypothesis import settings as hypothesis_settings

from tests import services

# A property is no matter of time, and the machine may be busy.
hypothesis_settings.register_profile("patient", deadline=None)
# What CI says of a change is about the change: it tries the same examples each time.
hypothesis_settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis_settings.load_profile("patient")


@pytest.fixture(scope="session")
def django_db_keepdb(request: pytest.FixtureRequest) -> bool:
    """The test databases go with the whole server: nobody needs to drop them one by one."""
    return services.are_ours() or bool(request.config.getvalue("reuse_db"))


@pytest.fixture(scope="session")
def django_db_modify_db_settings(django_db_modify_db_settings_parallel_suffix: None) -> None:
    """Each worker's database is a copy of one that was migrated before."""
    if services.are_ours():
        connections["default"].settings_dict["TEST"]["TEMPLATE"] = services.TEMPLATE


@pytest.fixture(autouse=True)
def own_files(settings: Any, tmp_path: Path) -> None:
    """Stored files of a test lie in its own folder and go with it."""
    storages = {name: dict(storage) for name, storage in settings.STORAGES.items()}
    storages["default"]["OPTIONS"] = {
        **storages["default"]["OPTIONS"],
        "location": tmp_path / "storage",
    }
    settings.STORAGES = storages


@pytest.fixture(autouse=True)
def quick_passwords(settings: Any) -> None:
    """Argon2 takes its time on purpose; tests that make users have none to spare."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture(autouse=True)
def empty_cache(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a database test left in the cache (limits, counters) is not the next one's."""
    yield
    if "db" in request.fixturenames or request.node.get_closest_marker("django_db"):
        from django.core.cache import cache

        cache.clear()
