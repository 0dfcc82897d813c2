"""What a machine gets that joins by one line: a script, and the node's code as an archive.

The archive holds the modules that need no Django, the locked requirements and the program that
makes virtualenvs from them: what the server itself was installed from, so versions never differ.
"""

import gzip
import hashlib
import io
import re
import shlex
import tarfile
from functools import cache

from django.conf import settings

# Whole trees, and single modules of apps whose other modules belong to web.
_APPS = ("workers", "training", "datasets", "pipelines")
_ALSO = ("tools/venvs.py", "requirements/node.txt", "requirements/tools.txt", "LICENSE")
_OF_WEB = re.compile(
    r"^\s*(?:from|import) (?:django|rest_framework|channels|celery import current_app"
    r"|accounts|organizations|flowml_site|drf_spectacular|unfold)\b",
    re.MULTILINE,
)


@cache
def bundle() -> tuple[bytes, str]:
    """The archive (tar, gzip) and its SHA-256; the same bytes for the same code."""
    root = settings.BASE_DIR
    files = {root / name for name in _ALSO} | set(root.glob("requirements/engine-*.txt"))
    for app in _APPS:
        for path in (root / app).rglob("*.py"):
            parts = path.relative_to(root).parts
            if "migrations" not in parts and not _OF_WEB.search(path.read_text(encoding="utf-8")):
                files.add(path)
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in sorted(path for path in files if path.is_file()):
            content = path.read_bytes()
            member = tarfile.TarInfo(str(path.relative_to(root)))
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content))
    packed = gzip.compress(plain.getvalue(), mtime=0)
    return packed, hashlib.sha256(packed).hexdigest()


def script(url: str, token: str) -> str:
    """The shell script that joins a machine to the server at ``url``."""
    index = settings.PACKAGE_INDEX
    packages = ""
    if index.startswith(("http://", "https://")):
        packages = f"export PIP_INDEX_URL={shlex.quote(index)}"
    elif index:
        packages = f"export PIP_FIND_LINKS={shlex.quote(index)} PIP_NO_INDEX=1 UV_NO_INDEX=1"
    return _SCRIPT.format(
        url=shlex.quote(url),
        token=shlex.quote(token),
        sha256=bundle()[1],
        engine=ENGINE,
        packages=packages or ": # packages come from where this machine's pip gets them",
    )


ENGINE = "pycaret"  # for a machine that names none; all of them would take many GB

_SCRIPT = """#!/bin/sh
# Joins this machine to FlowML as a node: its code, its virtualenvs, and then the node itself.
# Options go to the node (--name, --queues, --engines, --concurrency, --service).
# FLOWML_HOME is the folder for all of it (~/flowml-node).
set -eu
umask 077
url={url}
token={token}
home="${{FLOWML_HOME:-$HOME/flowml-node}}"
{packages}

fail() {{ echo "flowml: $*" >&2; exit 1; }}
python="${{PYTHON:-$(command -v python3.11 || true)}}"
[ -n "$python" ] || fail "Python 3.11 is needed: install it, or say where it is with PYTHON=."
mkdir -p "$home/venvs" "$home/var" || fail "$home can't be made."
app="$home/app-$(echo {sha256} | cut -c1-12)"
if [ ! -f "$app/.whole" ]; then
    rm -rf "$app" "$home/bundle.tar.gz"
    printf 'Authorization: Join %s\\n' "$token" |
        curl -fsS -H @- -o "$home/bundle.tar.gz" "$url/api/workers/bundle" ||
        fail "The node's code could not be fetched from $url."
    echo "{sha256}  $home/bundle.tar.gz" | sha256sum -c - >/dev/null ||
        fail "The node's code did not arrive whole. Try again."
    mkdir "$app"
    tar -xzf "$home/bundle.tar.gz" -C "$app" --no-same-owner
    ln -s "$home/venvs" "$app/.venvs"
    touch "$app/.whole"
    rm -f "$home/bundle.tar.gz"
fi
ln -sfn "$app" "$home/app"

engines=""
last=""
for option in "$@"; do
    case "$option" in --engines=*) engines="${{option#--engines=}}" ;; esac
    [ "$last" = --engines ] && engines="$option"
    last="$option"
done
if [ -z "$engines" ]; then
    engines={engine}
    known=""
    for lock in "$app"/requirements/engine-*.txt; do
        name="${{lock##*/engine-}}"
        known="$known ${{name%.txt}}"
    done
    echo "flowml: this machine gets the engine $engines. Others by --engines (with commas):$known"
fi
(cd "$app" && "$python" tools/venvs.py node $(echo "$engines" | tr ',' ' ')) || exit 1
cd "$home"
export FLOWML_URL="$url" FLOWML_JOIN_TOKEN="$token" FLOWML_VAR="$home/var"
export FLOWML_VENVS="$home/venvs" PYTHONPATH="$home/app"
exec "$home/venvs/node/bin/python" -m workers.cli "$@"
"""
