"""PostgreSQL and Valkey out of their wheels: started, stopped, healed."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
import redis

from flowml_site import embedded
from flowml_site.embedded import InUse, ServiceError, Services
from flowml_site.processes import Process, wait_ended

pytestmark = pytest.mark.xdist_group("embedded")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder whose services have run once and were stopped."""
    var = tmp_path_factory.mktemp("embedded") / "var"
    with Services(var, durable=False):
        pass
    return var


def ask(var: Path, query: str):
    with psycopg.connect(embedded.database_url(var), autocommit=True) as connection:
        return connection.execute(query).fetchone()


def test_both_answer_at_their_addresses_and_end_when_told_to(made):
    with Services(made, durable=False) as services:
        assert ask(made, "SELECT current_user::text, current_database()::text") == (
            "flowml",
            "flowml",
        )
        assert ask(made, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") == (False,)
        with redis.Redis.from_url(embedded.redis_url(made)) as valkey:
            assert valkey.ping()
        running = [Process.of(child.pid) for child in services.children.values()]
    assert not [process for process in running if process.is_alive]


def test_what_was_stored_is_there_after_a_new_start(made):
    with Services(made, durable=False), psycopg.connect(embedded.database_url(made)) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
    with Services(made, durable=False):
        assert ask(made, "SELECT n FROM kept") == (7,)


def test_the_folder_is_for_its_owner_alone(made):
    for name in ("", "run", "postgres", "valkey", "logs"):
        assert stat.S_IMODE((made / name).stat().st_mode) == 0o700, name
    assert stat.S_IMODE((made / "run" / "valkey.json").stat().st_mode) == 0o600


def test_no_password_stands_on_a_command_line(made):
    with Services(made, durable=False) as services:
        password = json.loads((made / "run" / "valkey.json").read_text())["password"]
        for child in services.children.values():
            assert password.encode() not in Path(f"/proc/{child.pid}/cmdline").read_bytes()


def test_a_folder_has_one_owner_and_the_second_is_told_who(made):
    with Services(made, durable=False):
        other = Services(made, durable=False)
        with pytest.raises(InUse, match=f"in use by process {os.getpid()} "):
            other.start()
        assert ask(made, "SELECT 1") == (1,)


def test_a_service_that_was_killed_is_started_again_with_its_data_and_address(made):
    with Services(made, durable=False) as services:
        with redis.Redis.from_url(embedded.redis_url(made)) as valkey:
            valkey.set("kept", "7")
            time.sleep(1.1)  # appendfsync everysec
            for child in services.children.values():
                child.kill()
                child.wait()
            assert sorted(services.mend()) == ["postgres", "valkey"]
            assert valkey.get("kept") == b"7"
        assert ask(made, "SELECT 1") == (1,)


def test_services_of_an_owner_that_was_killed_end_and_the_next_start_heals(made):
    code = (
        "import sys, time; from pathlib import Path; from flowml_site.embedded import Services\n"
        "s = Services(Path(sys.argv[1]), durable=False); s.start()\n"
        "print(*(c.pid for c in s.children.values()), flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(made)], stdout=subprocess.PIPE, cwd=embedded.BASE_DIR
    )
    pids = [int(pid) for pid in owner.stdout.readline().split()]
    left = [Process.of(pid) for pid in pids]
    owner.kill()
    owner.wait()
    assert wait_ended(left, 10) == []
    with Services(made, durable=False):
        assert ask(made, "SELECT 1") == (1,)


def test_a_stale_pid_file_that_names_a_living_stranger_does_not_stop_the_start(made):
    lines = [os.getpid(), made / "postgres", int(time.time()), 5432, made / "run", "", "", "ready"]
    (made / "postgres" / "postmaster.pid").write_text("\n".join(map(str, lines)))
    with Services(made, durable=False):
        assert ask(made, "SELECT 1") == (1,)


def test_half_a_data_folder_is_made_anew(tmp_path):
    half = tmp_path / "var" / "postgres.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    with Services(tmp_path / "var", valkey=False, durable=False):
        assert ask(tmp_path / "var", "SELECT 1") == (1,)
    assert not half.exists()


def test_a_port_that_somebody_took_is_left_to_them(made):
    import socket

    before = json.loads((made / "run" / "valkey.json").read_text())["port"]
    with socket.create_server(("127.0.0.1", before)), Services(made, postgres=False):
        after = json.loads((made / "run" / "valkey.json").read_text())["port"]
        assert after != before
        with redis.Redis.from_url(embedded.redis_url(made)) as valkey:
            assert valkey.ping()


def test_a_damaged_log_of_valkey_is_set_aside(made):
    parts = list((made / "valkey" / "appendonlydir").glob("*.incr.aof"))
    parts[0].write_bytes(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\ngarbage here, and more of it\r\n" * 3)
    with (
        Services(made, postgres=False),
        redis.Redis.from_url(embedded.redis_url(made)) as valkey,
    ):
        assert valkey.dbsize() == 0
    assert list((made / "valkey").glob("damaged-*"))


def test_a_full_disk_is_one_sentence(made, monkeypatch):
    usage = SimpleNamespace(total=10**9, used=10**9, free=5 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ServiceError, match=r"is full \(5 MiB left, 200 needed\): make room"):
        Services(made).start()


def test_data_of_another_postgresql_is_named_and_left_alone(made, tmp_path):
    var = tmp_path / "var"
    (var / "postgres").mkdir(parents=True)
    (var / "postgres" / "PG_VERSION").write_text("13\n")
    with pytest.raises(ServiceError, match="made by PostgreSQL 13 and this is 18"):
        Services(var, valkey=False).start()
    assert (var / "postgres" / "PG_VERSION").read_text() == "13\n"


def test_a_long_path_gets_its_sockets_elsewhere_and_always_in_the_same_place(tmp_path):
    var = tmp_path / ("long" * 25) / "a folder with blanks" / "var"
    url = embedded.database_url(var)
    assert url == embedded.database_url(var) != embedded.database_url(var / "other")
    try:
        with Services(var, valkey=False, durable=False):
            assert ask(var, "SELECT 1") == (1,)
            assert stat.S_IMODE(embedded.run_dir(var).stat().st_mode) == 0o700
    finally:
        shutil.rmtree(embedded.run_dir(var), ignore_errors=True)


def test_secrets_are_made_once_and_for_one_reader(tmp_path):
    var = tmp_path / "var"
    assert embedded.secrets(var) == {}
    made = embedded.make_secrets(var)
    assert len(bytes.fromhex(made["FLOWML_SIGNING_KEY"])) == 32
    assert len(made["SECRET_KEY"]) >= 50
    assert embedded.make_secrets(var) == embedded.secrets(var) == made
    assert stat.S_IMODE((var / "secrets.json").stat().st_mode) == 0o600


def test_a_command_starts_the_services_for_itself_alone(made):
    env = {k: v for k, v in os.environ.items() if k not in {"DATABASE_URL", "REDIS_URL"}}
    env |= {"FLOWML_VAR": str(made)}
    shell = [sys.executable, "manage.py", "shell", "-v", "0", "-c"]
    code = "from django.db import connection as c; x = c.cursor(); x.execute('SELECT 41 + 1'); "
    done = subprocess.run(
        [*shell, code + "print(x.fetchone()[0])"],
        cwd=embedded.BASE_DIR,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == "42", done.stderr
    assert not (made / "postgres" / "postmaster.pid").exists()


def test_a_command_uses_the_services_that_run(made):
    env = {k: v for k, v in os.environ.items() if k not in {"DATABASE_URL", "REDIS_URL"}}
    with Services(made, durable=False) as services:
        before = services.children["postgres"].pid
        done = subprocess.run(
            [sys.executable, "manage.py", "migrate", "--plan", "-v", "0"],
            cwd=embedded.BASE_DIR,
            env=env | {"FLOWML_VAR": str(made)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert services.children["postgres"].poll() is None
        assert services.children["postgres"].pid == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can turn into somebody else")
def test_root_does_not_run_postgresql_as_root(made):
    with Services(made, durable=False) as services:
        status = Path(f"/proc/{services.children['postgres'].pid}/status").read_text()
        uids = next(ln for ln in status.splitlines() if ln.startswith("Uid:")).split()[1:]
        assert "0" not in uids
        lines = [ln.split() for ln in status.splitlines() if ln.startswith("Cap")]
        rights = {name: int(mask, 16) for name, mask in lines}
        assert rights["CapEff:"] in {0, 1 << 1}, "all it may keep is CAP_DAC_OVERRIDE"
        assert rights["CapPrm:"] == rights["CapEff:"]
        os.kill(services.children["postgres"].pid, signal.SIGINT)
        services.children["postgres"].wait(20)


@pytest.mark.parametrize(
    ("name", "url", "says"),
    [
        ("DATABASE_URL", "postgresql://x:a-secret@127.0.0.1:9/x", "The database at DATABASE_URL"),
        ("REDIS_URL", "redis://:a-secret@127.0.0.1:9/0", "The broker at REDIS_URL"),
    ],
)
def test_a_given_service_that_is_away_is_named(monkeypatch, tmp_path, name, url, says):
    for given in ("DATABASE_URL", "REDIS_URL"):
        monkeypatch.delenv(given, raising=False)
    file = tmp_path / "url"
    file.write_text(f"{url}\n")
    monkeypatch.setenv(f"{name}_FILE", str(file))
    with pytest.raises(ServiceError, match=f"{says} can't be used: .*refused") as caught:
        embedded.check_given()
    assert "a-secret" not in str(caught.value)
