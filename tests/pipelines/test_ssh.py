"""A machine by SSH: a real sshd on loopback, with what can go wrong between two machines."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from uuid import uuid4

import pytest

from pipelines import reach
from pipelines.connectors import ssh
from pipelines.stages import check, download, remote, upload
from tests.pipelines import sshd
from workers.node.channel import WorkError

pytestmark = pytest.mark.timeout(120)
MIB = 1 << 20
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server():
    with sshd.running() as found:
        yield found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Channel:
    """What a handler says, kept."""

    def __init__(self):
        self.lines, self.notices, self.told = [], [], []
        self.stopping = False
        self.on_log = lambda text: None

    def progress(self, fraction, message="", **data):
        self.told.append({"fraction": fraction, "message": message, **data})

    def notice(self, message, **data):
        self.notices.append(message)

    def log(self, text):
        self.lines += text.splitlines()
        self.on_log(text)


def task(server, payload, *, inputs=None, run_id="", **change):
    told = {
        "kind": "ssh", "settings": server.settings(), "secrets": server.secrets,
        "reach": server.reach, "max_bytes": 2**30, "transfer": {"chunk_mib": 1, "workers": 3},
    }  # fmt: skip
    payload = {"run_id": run_id or uuid4().hex, **payload}
    return {
        "task": change.pop("task", str(uuid4())), "payload": payload, "inputs": inputs or {},
        "confidential": told | change,
    }  # fmt: skip


def machine(server, secrets=None, **change) -> ssh.Machine:
    rules = reach.parse(change.pop("reach", server.reach))
    return ssh.Machine(server.settings(**change), secrets or server.secrets, rules)


def made(path: Path, mib: int) -> bytes:
    data = os.urandom(mib * MIB - 12_345)
    path.write_bytes(data)
    return data


# --- Who is at the other end ---


def test_a_test_says_what_was_found(server):
    said = check.run(task(server, {}), Channel())["data"]["sentence"]
    assert "OpenSSH" in said
    assert str(server.files) in said
    assert "Programs can run there" in said
    assert list(server.files.iterdir()) == []


def test_only_the_known_host_key_is_believed(server, folder):
    for known, said in (
        ("", "Nobody has said yet that this is the right machine"),
        ("SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "is not the known one"),
    ):
        with pytest.raises(WorkError) as refused:
            asyncio.run(machine(server, host_key=known).check())
        assert said in refused.value.sentence
        assert server.fingerprint in refused.value.sentence, "to be compared by a person"
        assert refused.value.code == "host-key"
    sshd.make_key(folder / "other")
    with pytest.raises(WorkError, match="is not the known one"):
        asyncio.run(machine(server, host_key=(folder / "other.pub").read_text()).check())
    public = (server.folder / "host.pub").read_text()
    for known in (public, f"[localhost]:{server.port} {public}"):
        assert "takes files" in asyncio.run(machine(server, host_key=known).check())
    with pytest.raises(WorkError, match="neither a fingerprint"):
        asyncio.run(machine(server, host_key="trust me").check())


def test_nothing_is_sent_to_a_machine_that_shows_another_key(server, folder):
    made(folder / "data", 1)
    changed = task(
        server, {"path": "secret.bin"}, inputs={"data": str(folder / "data")},
        settings=server.settings(host_key="SHA256:" + "A" * 43),
    )  # fmt: skip
    with pytest.raises(WorkError, match="nothing was sent"):
        upload.run(changed, Channel())
    assert not list(server.files.rglob("secret*"))


def test_who_is_not_let_in_reads_what_to_change(server, folder):
    sshd.make_key(folder / "stranger")
    sshd.make_key(folder / "locked", passphrase="open sesame")
    stranger, locked = (folder / "stranger").read_text(), (folder / "locked").read_text()
    for secrets, change, said in (
        ({"private_key": stranger}, {}, "authorized_keys"),
        ({"private_key": locked}, {}, "passphrase"),
        ({"private_key": locked, "passphrase": "wrong"}, {}, "passphrase"),
        ({"private_key": "-----BEGIN"}, {}, "from BEGIN to END"),
        ({}, {"reach": ""}, "FLOWML_REACH"),
        ({}, {"host": "169.254.169.254", "reach": "0.0.0.0/0:*"}, "never reach"),
    ):
        with pytest.raises(WorkError) as refused:
            asyncio.run(machine(server, secrets, **change).check())
        assert said in refused.value.sentence, refused.value.sentence
        assert "PRIVATE" not in refused.value.sentence


def test_it_connects_to_the_address_that_was_judged(server):
    asked = []

    def resolve(host, port):
        asked.append(host)
        return ["127.0.0.1"]

    rules = reach.parse(f"machine.example.org:{server.port} localhost:{server.port}")
    settings = server.settings(host="machine.example.org")
    there = ssh.Machine(settings, server.secrets, rules, resolve=resolve)
    assert "takes files" in asyncio.run(there.check())
    assert asked == ["machine.example.org"]


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "a/../../out", "", "a\nb"])
def test_files_lie_in_the_folder_of_the_connection(server, folder, name):
    made(folder / "data", 1)
    with pytest.raises(WorkError, match="no path within"):
        upload.run(task(server, {"path": name}, inputs={"data": str(folder / "data")}), Channel())


# --- Files ---


def test_a_file_goes_there_and_back_and_is_not_sent_twice(server, folder):
    data = made(folder / "data", 7)
    channel = Channel()
    there = task(server, {"path": "round/trip.bin"}, inputs={"data": str(folder / "data")})
    sent = upload.run(there, channel)["data"]["transfer"]
    assert (server.files / "round/trip.bin").read_bytes() == data
    assert (sent["moved"], len(sent["chunks"])) == (len(data), 7)
    assert {one["state"] for one in sent["chunks"]} == {"done"}
    assert all(len(one["sha256"]) == 64 for one in sent["chunks"])
    again = upload.run(there, channel)["data"]["transfer"]
    assert (again["moved"], again["was_there"]) == (0, True)
    got = download.run(task(server, {"path": "round/trip.bin"}), channel)
    assert Path(got["files"]["data"]).read_bytes() == data
    # Another content of the same name takes its place, all of it.
    data = made(folder / "data", 2)
    upload.run(there, channel)
    assert (server.files / "round/trip.bin").read_bytes() == data
    assert [path.name for path in (server.files / "round").iterdir()] == ["trip.bin"]


def test_what_is_not_there_or_too_large_is_said_so(server, folder):
    with pytest.raises(WorkError, match=r"There is no file none\.csv"):
        download.run(task(server, {"path": "none.csv"}), Channel())
    made(server.files / "large", 2)
    with pytest.raises(WorkError, match="larger"):
        download.run(task(server, {"path": "large"}, max_bytes=MIB), Channel())


def test_an_empty_file_is_a_file(server, folder):
    (folder / "data").write_bytes(b"")
    upload.run(task(server, {"path": "empty"}, inputs={"data": str(folder / "data")}), Channel())
    assert (server.files / "empty").read_bytes() == b""


HANGS = """
import sys, asyncio, json
from pathlib import Path
from pipelines import reach, transfers
from pipelines.connectors import ssh
told = json.load(sys.stdin)
sent = 0
real = ssh._Lane.has
async def has(lane, chunk, data):
    global sent
    found = await real(lane, chunk, data)
    sent += 1
    if sent == told["most"]:
        print("there", flush=True)
    if sent >= told["most"]:
        await asyncio.sleep(3600)
    return found
ssh._Lane.has = has
machine = ssh.Machine(told["settings"], told["secrets"], reach.parse(told["reach"]))
rules = transfers.Rules(chunk_bytes=1 << 20, workers=2)
asyncio.run(transfers.send(Path(told["data"]), machine.file("big"), "big", rules, lambda t: None))
"""


def test_after_a_kill_in_the_middle_only_the_rest_is_sent(server, folder):
    data = made(folder / "data", 20)
    told = {
        "settings": server.settings(), "secrets": server.secrets, "reach": server.reach,
        "data": str(folder / "data"), "most": 18,
    }  # fmt: skip
    child = subprocess.Popen(
        [sys.executable, "-c", HANGS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    child.stdin.write(json.dumps(told).encode())
    child.stdin.close()
    assert child.stdout.readline() == b"there\n"
    child.send_signal(signal.SIGKILL)
    child.wait(10)
    assert not (server.files / "big").exists(), "nobody sees a part of a file"
    sent = upload.run(
        task(server, {"path": "big"}, inputs={"data": str(folder / "data")}), Channel()
    )["data"]["transfer"]
    assert (server.files / "big").read_bytes() == data
    assert sent["moved"] <= 3 * MIB, "18 of 20 were there"
    assert sum(one["state"] == "there" for one in sent["chunks"]) >= 17


def test_a_machine_that_is_away_for_some_seconds_is_waited_for(server, folder, monkeypatch):
    data = made(folder / "data", 6)
    real, seen = ssh._Lane.write, threading.Event()

    async def write(lane, chunk, bytes_):
        await real(lane, chunk, bytes_)
        if chunk.id == 2 and not seen.is_set():
            seen.set()
            await asyncio.sleep(1)

    monkeypatch.setattr(ssh._Lane, "write", write)

    def outage():
        seen.wait(60)
        server.stop()
        time.sleep(3)
        server.start()

    trouble = threading.Thread(target=outage)
    trouble.start()
    channel = Channel()
    sent = upload.run(
        task(server, {"path": "away"}, inputs={"data": str(folder / "data")}), channel
    )["data"]["transfer"]
    trouble.join()
    assert (server.files / "away").read_bytes() == data
    assert any("away" in text for text in channel.notices)
    assert any(one["retry_count"] for one in sent["chunks"])


def test_a_chunk_that_is_damaged_on_its_way_is_sent_again_alone(server, folder, monkeypatch):
    data = made(folder / "data", 5)
    real, writes = ssh._Lane.write, []

    async def write(lane, chunk, bytes_):
        writes.append(chunk.id)
        if chunk.id == 3 and writes.count(3) == 1:
            bytes_ = bytes_[:777] + bytes([bytes_[777] ^ 1]) + bytes_[778:]
        await real(lane, chunk, bytes_)

    monkeypatch.setattr(ssh._Lane, "write", write)
    there = task(server, {"path": "flipped"}, inputs={"data": str(folder / "data")})
    sent = upload.run(there, Channel())["data"]["transfer"]
    assert (server.files / "flipped").read_bytes() == data
    assert sorted(writes) == [0, 1, 2, 3, 3, 4]
    assert [one["retry_count"] for one in sent["chunks"]] == [0, 0, 0, 1, 0]

    async def always(lane, chunk, bytes_):
        await real(lane, chunk, bytes_[::-1])

    monkeypatch.setattr(ssh._Lane, "write", always)
    there = task(
        server, {"path": "never"}, inputs={"data": str(folder / "data")},
        transfer={"chunk_mib": 1, "workers": 1, "retries": 1},
    )  # fmt: skip
    with pytest.raises(WorkError, match="failed 2 times") as failed:
        upload.run(there, Channel())
    assert failed.value.data["transfer"]["chunks"][0]["state"] == "failed"
    assert not (server.files / "never").exists()


def test_a_byte_that_flips_after_its_chunk_was_checked_is_found_in_the_whole(
    server, folder, monkeypatch
):
    data = made(folder / "data", 3)
    real, once = ssh.RemoteFile.digest, []

    async def digest(far, *, partial):
        if partial and not once:
            once.append(True)
            file = os.open(far._part, os.O_WRONLY)
            os.pwrite(file, bytes([data[MIB + 5] ^ 1]), MIB + 5)
            os.close(file)
        return await real(far, partial=partial)

    monkeypatch.setattr(ssh.RemoteFile, "digest", digest)
    there = task(server, {"path": "rotten"}, inputs={"data": str(folder / "data")})
    sent = upload.run(there, Channel())["data"]["transfer"]
    assert (server.files / "rotten").read_bytes() == data
    assert sent["moved"] == len(data) + MIB, "one chunk twice"


def test_a_full_disk_there_is_told_and_what_arrived_stays(server, folder):
    small = server.files / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "flowml-test", str(small)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system can't be mounted here")
    try:
        data = made(folder / "data", 5)
        there = task(server, {"path": "small/big"}, inputs={"data": str(folder / "data")})
        with pytest.raises(WorkError, match=r"disk of .* is full") as full:
            upload.run(there, Channel())
        assert full.value.code == "disk-full"
        assert not (small / "big").exists()
        subprocess.run(["mount", "-o", "remount,size=20m", str(small)], check=True)
        sent = upload.run(there, Channel())["data"]["transfer"]
        assert (small / "big").read_bytes() == data
        assert sent["moved"] < len(data)
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False)


def test_a_machine_where_no_programs_run_still_takes_files(folder):
    with sshd.running("ForceCommand internal-sftp") as server:
        assert "Programs can't run" in asyncio.run(machine(server).check())
        data = made(folder / "data", 3)
        there = task(server, {"path": "plain"}, inputs={"data": str(folder / "data")})
        upload.run(there, Channel())
        assert (server.files / "plain").read_bytes() == data
        with pytest.raises(WorkError, match="Programs can't run"):
            remote.run(task(server, {"command": "true"}), Channel())


# --- Programs ---


def test_a_program_runs_and_its_log_comes_as_it_prints(server, folder):
    channel = Channel()
    command = "echo one; echo two >&2; pwd; printf three"
    done = remote.run(task(server, {"command": command, "folder": "work"}), channel)
    assert done["data"]["status"] == 0
    assert channel.lines == ["one", "two", str(server.files / "work"), "three"]


def test_a_program_that_fails_says_how_and_the_next_try_starts_it_anew(server, folder):
    command = "echo tried >> tries; echo no such column: age; exit 7"
    for tries in (1, 2):
        again = task(server, {"command": command}, run_id="fails")
        with pytest.raises(WorkError, match=r"status 7.*no such column: age") as failed:
            remote.run(again, Channel())
        assert failed.value.data == {"status": 7}
        assert (server.files / "tries").read_text().count("tried") == tries
    # The same task again (its end was never heard) finds that end, and starts nothing.
    with pytest.raises(WorkError, match="status 7"):
        remote.run(again, Channel())
    assert (server.files / "tries").read_text().count("tried") == 2


def test_a_program_outlives_the_connection_and_is_found_again(server, folder):
    command = (
        "echo started >> starts; echo begun; while [ ! -e go ]; do sleep 0.1; done; echo finished"
    )
    for name in ("starts", "go"):  # of an earlier try
        (server.files / name).unlink(missing_ok=True)
    channel = Channel()
    hurt = threading.Event()
    channel.on_log = lambda text: hurt.set()

    def outage():
        hurt.wait(60)
        server.stop()
        time.sleep(2)
        server.start()
        time.sleep(1)
        (server.files / "go").touch()

    trouble = threading.Thread(target=outage)
    trouble.start()
    remote.run(task(server, {"command": command}), channel)
    trouble.join()
    assert channel.lines == ["begun", "finished"], "nothing twice, nothing lost"
    assert (server.files / "starts").read_text() == "started\n"
    assert any("goes on there" in text for text in channel.notices)
    assert any("answers again" in text for text in channel.notices)


def test_a_program_that_is_not_wanted_any_more_ends_with_all_it_started(server, folder):
    # What it started writes as long as it lives.
    command = "(while :; do date +%s%N > beat; sleep 0.1; done) & wait"
    for how in ("cancelled", "stopped"):
        channel = Channel()
        going = task(server, {"command": command}, run_id=how)

        def follow(going=going, channel=channel):
            with pytest.raises(WorkError):
                remote.run(going, channel)

        beat = server.files / "beat"
        beat.unlink(missing_ok=True)
        following = threading.Thread(target=follow)
        following.start()
        while not beat.exists():
            time.sleep(0.05)
        if how == "cancelled":
            remote.end(going, Channel())
        else:
            channel.stopping = True
        following.join(30)
        assert not following.is_alive()
        last = beat.read_text()
        time.sleep(0.5)
        assert beat.read_text() == last
