"""HDFS as a place with files, against a server of our own (tests/pipelines/webhdfs.py)."""

import threading
import time
from pathlib import Path

import pytest

from pipelines.stages import check, download, upload
from tests.pipelines import webhdfs
from tests.pipelines.test_ssh import MIB, Channel, made
from workers.node.channel import WorkError

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def cluster():
    with webhdfs.running() as found:
        yield found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def task(cluster, payload, *, inputs=None, **change):
    told = {
        "kind": "hdfs",
        "settings": {"host": "localhost", "port": cluster.port, "tls": "no", "user": "flow"},
        "secrets": {}, "max_bytes": 2**30, "transfer": {"chunk_mib": 1, "workers": 3},
        "reach": f"localhost:{cluster.port} localhost:{cluster.data_port}", **change,
    }  # fmt: skip
    return {"task": "t", "payload": payload, "inputs": inputs or {}, "confidential": told}


def test_a_file_goes_there_in_pieces_and_comes_back(cluster, folder):
    assert (
        "takes files in /user/flow/flowml"
        in check.run(task(cluster, {}), Channel())["data"]["sentence"]
    )
    data = made(folder / "data", 4)
    there = task(cluster, {"path": "a/rows.bin"}, inputs={"data": str(folder / "data")})
    for _ in range(2):  # the second takes the first one's place
        cluster.flip_next_append = True
        sent = upload.run(there, Channel())["data"]["transfer"]
        assert cluster.files == {"/user/flow/flowml/a/rows.bin": data}
        assert sum(one["retry_count"] for one in sent["chunks"]) == 1, "the damaged one"
    got = download.run(task(cluster, {"path": "a/rows.bin"}), Channel())
    assert Path(got["files"]["data"]).read_bytes() == data
    with pytest.raises(WorkError, match="no file"):
        download.run(task(cluster, {"path": "none"}), Channel())


def test_what_an_earlier_try_has_left_is_not_sent_again(cluster, folder):
    data = made(folder / "data", 5)
    part = "/user/flow/flowml/big.flowml-part"
    cluster.files[part] = bytearray(data[: 3 * MIB + 99])
    sent = upload.run(
        task(cluster, {"path": "big"}, inputs={"data": str(folder / "data")}), Channel()
    )["data"]["transfer"]
    assert cluster.files == {"/user/flow/flowml/big": data}
    assert [one["state"] for one in sent["chunks"]] == ["there"] * 3 + ["done"] * 2


def test_a_redirect_leads_only_where_connections_may(cluster, folder):
    made(folder / "data", 1)
    inputs = {"data": str(folder / "data")}
    only = f"localhost:{cluster.port}"
    with pytest.raises(WorkError, match="FLOWML_REACH"):
        upload.run(task(cluster, {"path": "x"}, inputs=inputs, reach=only), Channel())
    cluster.data_host = "169.254.169.254"
    wide = f"{only} 0.0.0.0/0:*"
    with pytest.raises(WorkError, match="never reach"):
        upload.run(task(cluster, {"path": "x"}, inputs=inputs, reach=wide), Channel())
    assert "CREATE" not in cluster.asked


def test_who_may_not_and_who_is_away(cluster, folder, monkeypatch):
    data = made(folder / "data", 1)
    stranger = {"host": "localhost", "port": cluster.port, "tls": "no", "user": "nobody"}
    with pytest.raises(WorkError, match="may not do that"):
        check.run(task(cluster, {}, settings=stranger), Channel())
    cluster.down = True  # a name node that is a standby for now

    def up():
        time.sleep(1)
        cluster.down = False

    threading.Thread(target=up).start()
    upload.run(task(cluster, {"path": "x"}, inputs={"data": str(folder / "data")}), Channel())
    assert cluster.files["/user/flow/flowml/x"] == data
