"""Ingest in a real child process with little memory: it does its work, or fails and is gone."""

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import polars as pl

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import json, os, resource, sys
from datasets import ingest
from tests.datasets.ingesting import Channel
from workers.node.channel import WorkError
limit = int(sys.argv[3]) << 20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
task = {"inputs": {"upload": sys.argv[1]}, "payload": {"filename": sys.argv[2]}}
try:
    answer = ingest.run(task, Channel())["data"]
    print(json.dumps({"rows": answer["rows"], "rejected": answer["rejected"]}))
except WorkError as error:
    print(json.dumps({"code": error.code}))
# Not ru_maxrss: that counts what the test process held when it forked.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
peak = int(status["VmHWM"].split()[0]) >> 10
print(json.dumps({"peak_mib": peak}))
"""


def ingest(work: Path, content: bytes, name: str, *, limit_mib: int) -> dict:
    (work / "upload").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(work / "upload"), name, str(limit_mib)],
        cwd=work,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "POLARS_MAX_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    said = {"status": done.returncode, "stderr": done.stderr[-2000:]}
    for line in done.stdout.splitlines():
        said |= json.loads(line)
    return said


def test_a_table_much_larger_than_a_block_fits_into_little_memory(tmp_path):
    row = b"12345,some text that goes on and on %d,3.14159,2024-01-31\n"
    content = b"id,note,x,day\n" + b"".join(row % i for i in range(700_000))
    said = ingest(tmp_path, content, "t.csv", limit_mib=4096)
    assert said["rows"] == 700_000, said
    assert said["peak_mib"] < 700


def lying_parquet() -> bytes:
    """A megabyte that stands for 16 GiB once its one text is written out for each row."""
    text = "x" * (1 << 20)
    column = pl.Series("a", [text], dtype=pl.Enum([text])).new_from_index(0, 16_000)
    buffer = io.BytesIO()
    column.to_frame().write_parquet(buffer, statistics=False)
    return buffer.getvalue()


def test_a_bomb_that_passes_every_check_ends_its_process_only(tmp_path):
    content = lying_parquet()
    assert len(content) < 2 << 20
    said = ingest(tmp_path, content, "t.parquet", limit_mib=3072)
    assert said["status"] != 0
    assert "memory allocation" in said["stderr"]


def test_a_workbook_that_unpacks_to_gigabytes(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
        with archive.open("xl/worksheets/sheet1.xml", "w", force_zip64=True) as part:
            for _ in range(600):
                part.write(b" " * (1 << 20))
            part.write(b'<c r="XFD1048576"><v>1</v></c>')
    said = ingest(tmp_path, buffer.getvalue(), "t.xlsx", limit_mib=2048)
    assert said["code"] == "too-large-decoded"
    assert said["peak_mib"] < 400
