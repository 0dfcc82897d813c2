"""A bucket as a place with files, against a real server: SeaweedFS."""

import asyncio
import json
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import boto3
import pytest

from flowml_site import processes
from pipelines import reach
from pipelines.connectors import s3
from pipelines.stages import check, download, upload
from tests.pipelines.test_ssh import Channel, made
from workers.node.channel import WorkError

pytestmark = [pytest.mark.timeout(180), pytest.mark.xdist_group("s3")]
WEED = Path(sys.prefix) / "bin" / "weed"
KEY, SECRET = "flow", "a-secret-of-the-bucket"
MIB = 1 << 20
PARTS = ("s3", "master", "volume", "filer")


class Server:
    def __init__(self, port: int) -> None:
        self.port = port
        self.reach = f"localhost:{port}"
        self.settings = {
            "host": "localhost", "port": port, "tls": "no", "bucket": "rows", "folder": "in",
        }  # fmt: skip
        self.secrets = {"access_key": KEY, "secret_key": SECRET}
        self.own = boto3.client(
            "s3", endpoint_url=f"http://127.0.0.1:{port}", aws_access_key_id=KEY,
            aws_secret_access_key=SECRET, region_name="us-east-1",
        )  # fmt: skip

    def task(self, payload, *, inputs=None, **change):
        told = {
            "kind": "s3", "settings": self.settings, "secrets": self.secrets, "reach": self.reach,
            "max_bytes": 2**30, "transfer": {"chunk_mib": 1, "workers": 3, "retries": 1}, **change,
        }  # fmt: skip
        return {"task": "t", "payload": payload, "inputs": inputs or {}, "confidential": told}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weed")
    ids = {"identities": [{
        "name": "flow", "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }]}  # fmt: skip
    (folder / "ids.json").write_text(json.dumps(ids))
    names = [f"{one}.port{kind}" for one in PARTS for kind in ("", ".grpc")]
    ports = set[int]()
    while len(ports) < len(names):
        ports.add(processes.free_port())
    used = dict(zip(names, sorted(ports), strict=True))
    command = [str(WEED), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"]
    command += [f"-{name}={port}" for name, port in used.items()]
    command += [
        f"-s3.config={folder}/ids.json",
        "-volume.max=10",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log)
    found = Server(used["s3.port"])
    try:
        for _ in range(300):
            try:
                found.own.create_bucket(Bucket="rows")
                break
            except Exception:
                assert child.poll() is None, (folder / "log").read_text()[-3000:]
                time.sleep(0.2)
        else:
            raise AssertionError((folder / "log").read_text()[-3000:])
        yield found
    finally:
        child.kill()
        child.wait(20)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stored(server, key) -> bytes:
    return server.own.get_object(Bucket="rows", Key=key)["Body"].read()


def test_a_test_says_what_was_found_or_what_to_change(server):
    said = check.run(server.task({}), Channel())["data"]["sentence"]
    assert "takes files" in said
    for change, said in (
        ({"secrets": {"access_key": KEY, "secret_key": "wrong"}}, "secret key does not fit"),
        ({"secrets": {"access_key": "who", "secret_key": "wrong"}}, "not known"),
        ({"settings": {**server.settings, "bucket": "nowhere"}}, "bucket"),
        ({"reach": ""}, "FLOWML_REACH"),
        ({"settings": {**server.settings, "host": "169.254.169.254"}, "reach": "0.0.0.0/0:*"},
         "never reach"),
        ({"settings": {**server.settings, "port": 1}, "reach": "localhost:1"}, "can't be reached"),
    ):  # fmt: skip
        with pytest.raises(WorkError) as failed:
            check.run(server.task({}, **change), Channel())
        assert said in failed.value.sentence, failed.value.sentence
        assert "wrong" not in failed.value.sentence


def test_a_file_goes_there_and_back_and_is_not_sent_twice(server, folder):
    data = made(folder / "data", 12)
    task = server.task({"path": "a/rows.bin"}, inputs={"data": str(folder / "data")})
    sent = upload.run(task, Channel())["data"]["transfer"]
    assert stored(server, "in/a/rows.bin") == data
    assert len(sent["chunks"]) == 3, "S3 takes no parts below 5 MiB"
    again = upload.run(task, Channel())["data"]["transfer"]
    assert (again["moved"], again["was_there"]) == (0, True)
    got = download.run(server.task({"path": "a/rows.bin"}), Channel())
    assert Path(got["files"]["data"]).read_bytes() == data
    with pytest.raises(WorkError, match="no file"):
        download.run(server.task({"path": "b"}), Channel())


def test_an_upload_that_was_cut_short_is_taken_up_again(server, folder, monkeypatch):
    data = made(folder / "data", 22)
    task = server.task({"path": "cut"}, inputs={"data": str(folder / "data")})
    real = s3.Object.write

    async def write(far, chunk, bytes_):
        if chunk.id == 4:
            raise WorkError("The node was switched off.")
        await real(far, chunk, bytes_)

    with monkeypatch.context() as patch:
        patch.setattr(s3.Object, "write", write)
        with pytest.raises(WorkError, match="switched off"):
            upload.run(task, Channel())
    assert "in/cut" not in [
        one["Key"] for one in server.own.list_objects_v2(Bucket="rows").get("Contents", ())
    ]
    sent = upload.run(task, Channel())["data"]["transfer"]
    assert stored(server, "in/cut") == data
    assert sent["moved"] <= 11 * MIB
    assert {one["state"] for one in sent["chunks"]} == {"there", "done"}


def test_a_damaged_part_is_sent_again(server, folder, monkeypatch):
    data = made(folder / "data", 11)
    real, sent = s3.Object.write, []

    async def write(far, chunk, bytes_):
        sent.append(chunk.id)
        if sent.count(1) == 1 and chunk.id == 1:
            bytes_ = bytes_[:-1] + bytes([bytes_[-1] ^ 1])
        await real(far, chunk, bytes_)

    monkeypatch.setattr(s3.Object, "write", write)
    task = server.task({"path": "flip"}, inputs={"data": str(folder / "data")})
    upload.run(task, Channel())
    assert stored(server, "in/flip") == data
    assert sorted(sent) == [0, 1, 1, 2]


def test_uploads_that_nobody_takes_up_again_are_ended(server, folder, monkeypatch):
    made(folder / "data", 1)

    def begun(key):
        return server.own.create_multipart_upload(Bucket="rows", Key=key)["UploadId"]

    def left():
        found = server.own.list_multipart_uploads(Bucket="rows").get("Uploads", ())
        return {one["Key"] for one in found} & {"in/mine", "in/old", "other/old"}

    begun("in/mine"), begun("in/mine"), begun("in/old"), begun("other/old")
    task = server.task({"path": "mine"}, inputs={"data": str(folder / "data")})
    upload.run(task, Channel())
    assert left() == {"in/old", "other/old"}, "a young one may go on"
    monkeypatch.setattr(s3, "ABANDONED", timedelta(0))
    made(folder / "data", 2)
    upload.run(task, Channel())
    assert left() == {"other/old"}, "what lies outside the folder is not its own"


def test_it_connects_to_the_address_that_was_judged(server):
    asked = []

    def resolve(host, port):
        asked.append(host)
        return ["127.0.0.1"]

    rules = reach.parse(f"s3.example.org:{server.port} localhost:{server.port}")
    settings = {**server.settings, "host": "s3.example.org"}
    bucket = s3.Bucket(settings, server.secrets, rules, resolve=resolve)
    assert "takes files" in asyncio.run(bucket.check())
    assert set(asked) == {"s3.example.org"}
    assert os.environ.get("AWS_SECRET_ACCESS_KEY") is None
