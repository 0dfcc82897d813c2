"""What a new installation takes its time to make, made once and copied: a migrated database, files.

Kept in ``var/tests`` for the next run of the tests as well, until a migration changes.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from flowml_site import embedded
from flowml_site.embedded import BASE_DIR
from flowml_site.platform import STATIC_STAMP, static_fingerprint

SEEDS = BASE_DIR / "var" / "tests"


def seed(var: Path, *, static: bool = True) -> None:
    """Give the folder of a new installation what each would otherwise take its time to make.

    A migrated PostgreSQL and collected static files, as ``manage.py up`` leaves them. Raises
    ServiceError.
    """
    embedded.make_private(SEEDS)
    kept = SEEDS / _name()
    with (SEEDS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            for old in SEEDS.iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
            fresh = SEEDS / "fresh"
            with embedded.running(fresh, durable=False) as urls:
                _manage(fresh, "migrate", **urls)
            for name in ("run", "logs", "valkey"):
                shutil.rmtree(fresh / name, ignore_errors=True)
            fresh.rename(kept)
        stamp = kept / STATIC_STAMP
        is_old = not stamp.is_file() or stamp.read_text(encoding="ascii") != static_fingerprint()
        if static and is_old:
            nowhere = {"DATABASE_URL": embedded.database_url(kept), "REDIS_URL": "redis://none"}
            _manage(kept, "collectstatic", **nowhere)
            stamp.parent.mkdir(exist_ok=True)
            stamp.write_text(static_fingerprint(), encoding="ascii")
        embedded.make_private(var)
        taken = [kept / "postgres", *([kept / "static", kept / "run"] if static else ())]
        # PostgreSQL's files belong to whom it runs as.
        subprocess.run(["cp", "-a", "--reflink=auto", *map(str, taken), str(var)], check=True)


def _name() -> str:
    """Changes when what a migrated database looks like may."""
    digest = hashlib.sha256((BASE_DIR / "requirements" / "web.txt").read_bytes())
    sources = [*BASE_DIR.glob("*/migrations/*.py"), Path(embedded.__file__)]
    for path in sorted([*sources, BASE_DIR / "organizations" / "rls.py"]):
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _manage(folder: Path, *command: str, **env: str) -> None:
    # As an installation would run it, which takes static files otherwise than a test does.
    ours = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    subprocess.run(
        [sys.executable, "manage.py", *command, "--noinput", "-v", "0"],
        cwd=BASE_DIR,
        env={
            **ours,
            "DEBUG": "0",
            "SECRET_KEY": "only-for-making-the-seed-" + "k" * 40,
            "FLOWML_VAR": str(folder),
            **env,
        },
        check=True,
    )
