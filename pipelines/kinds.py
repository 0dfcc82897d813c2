"""What each kind of connection is made of. Pure.

These fields are the allow-list of what a driver is told: nothing else reaches one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST_TEXT, MOST_SECRET = 255, 8 * 1024


@dataclass(frozen=True)
class Field:
    """One thing to fill in. ``kind``: text, port, number, choice or secret.

    A secret that is required is one that the far side needs: forms ask for it, and a test misses
    it. ``more``: seldom changed, and shown apart. ``lines``: a secret of several lines. ``least``
    and ``most``: of a number; of a text, its signs.
    """

    name: str
    title: str
    kind: str = "text"
    required: bool = False
    default: Any = None
    choices: tuple[tuple[str, str], ...] = ()
    help: str = ""
    lines: bool = False
    more: bool = False
    least: int = 0
    most: int = MOST_TEXT


@dataclass(frozen=True)
class Kind:
    """``keeps_files``: files go there and come from there."""

    title: str
    what: str
    fields: tuple[Field, ...] = ()
    keeps_files: bool = False

    @property
    def settings(self) -> dict[str, Field]:
        return {field.name: field for field in self.fields if field.kind != "secret"}

    @property
    def secrets(self) -> dict[str, Field]:
        return {field.name: field for field in self.fields if field.kind == "secret"}


# How files travel there, where it should differ from the operator's settings.
_TRAVEL = (
    Field("chunk_mib", "Chunk size in MiB", "number", least=1, most=64, more=True),
    Field("workers", "Chunks side by side", "number", least=1, most=16, more=True),
    Field("retries", "Tries of a chunk after the first", "number", most=20, more=True),
    Field(
        "verify", "Checksums", "choice", more=True,
        choices=(
            ("", "As the operator has set it"),
            ("yes", "Compare each chunk and the whole"),
            ("no", "Trust the way"),
        ),
    ),
)  # fmt: skip

_TLS = Field(
    "tls", "Encryption", "choice", default="yes",
    choices=(("yes", "HTTPS"), ("no", "None: only within a network that you trust")),
)  # fmt: skip

KINDS: Mapping[str, Kind] = {
    "duckdb": Kind(
        "DuckDB (your data sets)",
        "SQL over the data sets of your organization, on a node, with nothing to set up. What is "
        "written back becomes a data set.",
    ),
    "postgres": Kind(
        "PostgreSQL",
        "Queries run in a transaction that can only read; a table is written all at once.",
        (
            Field("host", "Host", required=True, help="A name or an address."),
            Field("port", "Port", "port", default=5432),
            Field("database", "Database", required=True),
            Field("user", "User", required=True, help="One that may read, and write what it must."),
            Field("password", "Password", "secret"),
            Field(
                "sslmode", "Encryption", "choice", default="prefer",
                choices=(
                    ("prefer", "If the server offers it"),
                    ("require", "Always"),
                    ("verify-full", "Always, and the certificate must be the host's"),
                    ("disable", "Never"),
                ),
            ),
        ),
    ),
    "hive": Kind(
        "Hive (HiveServer2)",
        "Queries by the protocol of HiveServer2, which Spark's Thrift server speaks, too. A new "
        "table takes the old one's place.",
        (
            Field("host", "Host", required=True, help="A name or an address."),
            Field("port", "Port", "port", default=10000),
            Field("database", "Database", default="default"),
            Field("user", "User", help="One that may read, and write what it must."),
            Field("password", "Password", "secret"),
            Field(
                "auth", "Sign-in", "choice", default="plain",
                choices=(
                    ("plain", "User and password (NONE, LDAP, PAM, CUSTOM)"),
                    ("nosasl", "NOSASL"),
                ),
                help="What hive.server2.authentication says. Kerberos is not there.",
            ),
            Field(
                "sslmode", "Encryption", "choice", default="disable",
                choices=(
                    ("disable", "None"),
                    ("require", "TLS"),
                    ("verify-full", "TLS, and the certificate must be the host's"),
                ),
            ),
        ),
    ),
    "ssh": Kind(
        "Machine by SSH",
        "Files by SFTP, and programs that run there. Only a machine that shows the known host key "
        "is believed.",
        (
            Field("host", "Host", required=True, help="A name or an address."),
            Field("port", "Port", "port", default=22),
            Field("user", "User", required=True),
            Field(
                "host_key", "Known host key", most=2000,
                help="What ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub prints there "
                "(SHA256:…), or the public key itself. Without it a test shows the one it saw.",
            ),
            Field("private_key", "Private key", "secret", required=True, lines=True),
            Field("passphrase", "Passphrase of the key", "secret"),
            Field(
                "folder", "Folder", default="flowml",
                help="Where files go and programs run: from the user's home, or from /.",
            ),
            *_TRAVEL,
        ),
        keeps_files=True,
    ),
    "s3": Kind(
        "S3",
        "Files in a bucket of S3, or of a server that speaks its protocol.",
        (
            Field(
                "host", "Host", required=True,
                help="s3.eu-central-1.amazonaws.com, say, or a server of your own.",
            ),
            Field("port", "Port", "port", default=443),
            Field("bucket", "Bucket", required=True),
            Field("region", "Region", default="us-east-1"),
            Field("folder", "Folder", help="What names of files begin with."),
            Field("access_key", "Access key", "secret", required=True),
            Field("secret_key", "Secret key", "secret", required=True),
            _TLS,
            *_TRAVEL,
        ),
        keeps_files=True,
    ),
    "hdfs": Kind(
        "HDFS (WebHDFS)",
        "Files in HDFS, by the REST interface of its name node.",
        (
            Field("host", "Host", required=True, help="Of the name node."),
            Field("port", "Port", "port", default=9870),
            Field("user", "User", required=True),
            Field("folder", "Folder", help="From /; /user/<user>/flowml where it is empty."),
            Field("token", "Delegation token", "secret"),
            _TLS,
            *_TRAVEL,
        ),
        keeps_files=True,
    ),
    "local": Kind(
        "Folder on a node",
        "Files on the machine of the node that does the work, where its operator allows it.",
        (Field("folder", "Folder", required=True, most=1000), *_TRAVEL),
        keeps_files=True,
    ),
    "webhook": Kind(
        "Web hook",
        "Is told, by a signed POST, how runs and long trainings have ended.",
        (
            Field("host", "Host", required=True, help="A name or an address."),
            Field("port", "Port", "port", default=443),
            Field("path", "Path", default="/", help="It begins with a slash."),
            _TLS,
            Field("key", "Signing key", "secret", help="What its receiver checks signatures with."),
            Field(
                "training_min", "Trainings that took at least so many minutes", "number",
                most=100_000, help="Empty: none. Runs of pipelines name the hook themselves.",
            ),
        ),
    ),
}  # fmt: skip


# What a stage can do with a connection, by its kind.
WAREHOUSES = ("duckdb", "postgres", "hive")
PLACES = tuple(name for name, kind in KINDS.items() if kind.keeps_files)
MACHINES = ("ssh", "local")


def check_settings(kind: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings as they are stored, and what is wrong with them: a sentence by name."""
    known, good, errors = KINDS[kind].settings, dict[str, Any](), dict[str, str]()
    for name in given:
        if name not in known:
            errors[name] = f"{KINDS[kind].title} has no such setting."
    for name, field in known.items():
        value = given.get(name)
        value = value.strip() if isinstance(value, str) else value
        if value in (None, ""):
            if field.required:
                errors[name] = "This is needed."
            elif field.default is not None:
                good[name] = field.default
            continue
        if problem := _problem(field, value):
            errors[name] = problem
        else:
            good[name] = int(value) if field.kind in {"port", "number"} else value
    return good, errors


def check_secrets(kind: str, given: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with secrets: a sentence by name. Null and "" stand for "none any more"."""
    known, errors = KINDS[kind].secrets, dict[str, str]()
    for name, value in given.items():
        if name not in known:
            errors[name] = f"{KINDS[kind].title} has no such secret."
        elif value is not None and not isinstance(value, str):
            errors[name] = "Give a text."
        elif value and (len(value) > MOST_SECRET or "\0" in value):
            errors[name] = f"Give a text of at most {MOST_SECRET:,} characters."
    return errors


def unfit(name: str, connections: Mapping[str, str], fit: Sequence[str]) -> str:
    """Why the connection ``name`` can't be used where only the kinds ``fit`` can. ``connections``:
    the kind of each by its name."""
    titles = [KINDS[one].title for one in fit]
    kind = KINDS.get(connections[name])
    have = sorted(one for one, kind in connections.items() if kind in fit)
    return (
        f"'{name}' is of the kind {kind.title if kind else connections[name]}. What fits here is "
        f"{', '.join(titles[:-1])} or {titles[-1]}: "
        + (f"{', '.join(have[:10])}." if have else "make such a connection first.")
    )


def leads_elsewhere(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a secret that was entered for ``before`` would be sent to somebody else."""
    return any(before.get(name) != after.get(name) for name in ("host", "port"))


def _problem(field: Field, value: Any) -> str:
    if field.kind == "port":
        text = str(value)
        good = not isinstance(value, bool) and text.isascii() and text.isdecimal()
        return "" if good and 0 < int(text[:9]) < 65536 else "Give a number from 1 to 65535."
    if field.kind == "number":
        text = str(value)
        good = not isinstance(value, bool) and text.isascii() and text.isdecimal()
        good = good and field.least <= int(text[:9]) <= field.most
        return "" if good else f"Give a whole number from {field.least} to {field.most}."
    if not isinstance(value, str) or len(value) > field.most or not value.isprintable():
        return f"Give a text of at most {field.most} characters, in one line."
    if field.kind == "choice" and value not in dict(field.choices):
        return f"Use one of: {', '.join(dict(field.choices))}."
    return ""
