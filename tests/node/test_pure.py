"""The parts of a node that need no process: verdicts, archives, limits, the spool, settings."""

import asyncio
import io
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import types
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from workers.node import cache, gpus, probe, procs, spool
from workers.node.api import Api, Refused, backoff_s
from workers.node.cache import NotTrusted, safe_parts, signed_bytes, trim, unpack, verify
from workers.node.delivery import deliver
from workers.node.outcome import Seen, judge, should_start_again
from workers.node.settings import MAX_SOCKET_PATH, read
from workers.node.spool import BadFile, Spool

# --- verdicts ------------------------------------------------------------------------------------

saids = st.one_of(
    st.none(),
    st.just({"type": "result", "data": {"n": 1}, "files": {"a": "b"}}),
    st.builds(
        lambda fault: {"type": "error", "error": "No.", "code": "no", "fault": fault, "data": {}},
        st.sampled_from(["work", "platform", "nonsense", None]),
    ),
)
seens = st.builds(
    Seen,
    reason=st.sampled_from(["", "cancel", "returned", "stop", "time", "memory"]),
    signal=st.integers(0, 64),
    said=saids,
    candidates=st.integers(0, 3),
    keeps=st.booleans(),
    engine=st.sampled_from(["", "pycaret"]),
    ram_mib=st.integers(0, 100_000),
    time_s=st.floats(0, 1e5),
    tail=st.text(max_size=50),
)


@given(seens)
def test_every_end_has_a_verdict(seen: Seen) -> None:
    end = judge(seen)
    if end.outcome == "failed":
        assert end.error.endswith((".", "…")), end
        assert end.code
        assert end.fault in ("work", "platform")
    else:
        assert (end.error, end.code, end.fault) == ("", "", "")
    if end.files:
        assert seen.said is not None
        assert seen.said["type"] == "result"


@given(seens)
def test_a_cancelled_task_is_never_anything_else(seen: Seen) -> None:
    assert (judge(seen).outcome == "cancelled") == (seen.reason == "cancel")


@given(seens)
def test_finished_models_outlast_a_stop_and_a_time_limit(seen: Seen) -> None:
    if seen.keeps and seen.candidates and seen.reason in ("stop", "time"):
        end = judge(seen)
        assert end.outcome == "succeeded"
        assert end.data["stopped"] == ("asked" if seen.reason == "stop" else "time limit")


@given(seens, st.booleans())
def test_what_has_an_end_is_not_started_again_and_nothing_for_ever(
    seen: Seen, orphaned: bool
) -> None:
    if seen.said or seen.reason:
        assert not should_start_again(seen, 1, orphaned=orphaned)
    assert not should_start_again(seen, 3, orphaned=orphaned)


# --- trust ---------------------------------------------------------------------------------------


def test_a_signature_fits_one_artifact_one_content_one_organization() -> None:
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw().hex()
    artifact, organization, sha256 = uuid4(), uuid4(), "ab" * 32
    good = {
        "artifact": str(artifact),
        "sha256": sha256,
        "organization": str(organization),
        "signature": key.sign(signed_bytes(artifact, sha256, organization)).hex(),
    }
    verify(public, **good)
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()
    for wrong in (
        {**good, "artifact": str(uuid4())},
        {**good, "sha256": "ac" * 32},
        {**good, "organization": str(uuid4())},
        {**good, "signature": good["signature"][:-2] + "ff"},  # the last byte is 0x10 at most
        {**good, "sha256": "zz"},
    ):
        with pytest.raises(NotTrusted):
            verify(public, **wrong)
    for key_hex in (other, "", "beef"):
        with pytest.raises(NotTrusted):
            verify(key_hex, **good)


@given(st.text(min_size=1, max_size=30) | st.from_regex(r"[./\\a:]{1,8}", fullmatch=True))
def test_no_name_in_an_archive_leads_outside(name: str) -> None:
    member = zipfile.ZipInfo(name)
    member.filename = name
    try:
        parts = safe_parts(member)
    except NotTrusted:
        return
    root = Path("/somewhere/safe")
    path = Path(os.path.normpath(root.joinpath(*parts)))
    assert path != root
    assert path.is_relative_to(root)


def test_links_and_bombs_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(NotTrusted, match="link"):
        unpack(_zip(tmp_path, {link: b"/etc/passwd"}), tmp_path / "a")
    monkeypatch.setattr(cache, "MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(NotTrusted, match="unpacks to more"):
        unpack(_zip(tmp_path, {zipfile.ZipInfo("zeros"): bytes(2000)}), tmp_path / "b")
    (tmp_path / "x.zip").write_bytes(b"not a zip")
    with pytest.raises(NotTrusted, match="cannot be read"):
        unpack(tmp_path / "x.zip", tmp_path / "c")
    unpack(_zip(tmp_path, {zipfile.ZipInfo("d/e"): b"fine"}), tmp_path / "d")
    assert (tmp_path / "d" / "d" / "e").read_bytes() == b"fine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "t.zip", "x.zip"]


def _zip(folder: Path, members: dict[zipfile.ZipInfo, bytes]) -> Path:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        for member, content in members.items():
            bundle.writestr(member, content)
    (folder / "t.zip").write_bytes(buffer.getvalue())
    return folder / "t.zip"


def test_the_cache_forgets_what_was_used_longest_ago(tmp_path: Path) -> None:
    for age, name in enumerate(["new", "middle", "old"]):
        (tmp_path / name).write_bytes(bytes(600 * 1024))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    trim(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


# --- the spool -----------------------------------------------------------------------------------

CLAIM: dict[str, Any] = {"task": "t", "attempt": 1, "token": "secret", "done": []}


def test_a_spool_is_found_again_as_it_was_left(tmp_path: Path) -> None:
    async def play() -> None:
        file = tmp_path / "model"
        file.write_text("weights")
        out = Spool.create(tmp_path / "spool", CLAIM)
        out.add("notice", {"message": "hello"})
        out.add("progress", {"fraction": 0.1})
        out.add("candidate", {"name": "A"}, key="a", files={"artifact": file})
        out.add("candidate", {"name": "B"}, key="b", files={"artifact": file})
        file.unlink()
        out.arrived(out.take(3))
        out.finish({"outcome": "succeeded"})
        with (out.folder / "outbox.jsonl").open("a") as torn:
            torn.write('{"number": 4, "ty')
        again = Spool.open(out.folder)
        assert again.candidates == ["a", "b"]
        assert again.end == {"outcome": "succeeded", "files": {}}
        (left,) = again.take()
        assert (left.key, left.data) == ("b", {"name": "B"})
        assert (again.folder / left.files["artifact"]).read_text() == "weights"
        assert oct((again.folder / "claim.json").stat().st_mode & 0o777) == "0o600"
        again.discard()
        assert list((tmp_path / "spool").iterdir()) == []

    asyncio.run(play())


@given(st.lists(st.sampled_from(["progress", "log", "notice", "take", "arrived"]), max_size=40))
def test_events_arrive_in_order_and_none_twice(steps: list[str]) -> None:
    async def play(folder: Path) -> None:
        out, said, heard, batch = Spool.create(folder, CLAIM), [], [], []
        for number, step in enumerate([*steps, "arrived", "take", "arrived"]):
            if step == "take":
                batch = out.take(3)
            elif step == "arrived":
                out.arrived(batch)
                heard += batch
                batch = []
            elif step == "log":
                out.add("log", {"lines": [str(number)]})
                said.append((step, number))
            else:
                out.add(step, {"n": number})
                said.append((step, number))
        while rest := out.take():
            out.arrived(rest)
            heard += rest
        notices = [number for step, number in said if step == "notice"]
        assert [entry.data["n"] for entry in heard if entry.type == "notice"] == notices
        lines = [int(n) for e in heard if e.type == "log" for n in e.data["lines"]]
        assert lines == [number for step, number in said if step == "log"]
        shown = [entry.data["n"] for entry in heard if entry.type == "progress"]
        assert shown == sorted(set(shown))
        if said and said[-1][0] == "progress":
            assert shown[-1] == said[-1][1]  # the newest is never the one left out

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play(Path(folder)))


def test_only_files_of_the_work_folder_are_taken(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "good").touch()
    (work / "link").symlink_to("/etc/passwd")
    assert spool.inside(work, {"a": "good"}) == {"a": work / "good"}
    for bad in ("../x", "/etc/passwd", "link", "missing", "."):
        with pytest.raises(BadFile):
            spool.inside(work, {"a": bad})


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_retries_wait_longer_and_longer_but_not_for_ever(failures: int, spread: float) -> None:
    assert 0.1 <= backoff_s(failures, spread) <= 5.0
    assert backoff_s(failures, spread) <= backoff_s(failures + 1, spread) + 1e-9


class Listener:
    """What a web side hears, request by request. It can refuse events of a type."""

    def __init__(self, refuses: str = "") -> None:
        self.heard: list[tuple[str, list[str]]] = []
        self.refuses = refuses
        self.told = asyncio.Event()

    async def events(
        self, task: str, attempt: int, token: str, events: list[dict[str, Any]]
    ) -> str:
        self._hear("events", events)
        return "ok"

    async def end(self, task: str, token: str, body: dict[str, Any]) -> None:
        self._hear("end", body.get("events", []))

    def _hear(self, what: str, events: list[dict[str, Any]]) -> None:
        kinds = [event["type"] for event in events]
        if self.refuses in kinds:
            raise Refused(400, "no")
        self.heard.append((what, kinds))
        self.told.set()


def delivered(out: Spool, listener: Listener) -> list[tuple[str, list[str]]]:
    asyncio.run(asyncio.wait_for(deliver(out, cast("Api", listener), lambda _: None), 30))
    return listener.heard


def test_what_ended_at_once_is_told_in_one_request(tmp_path: Path) -> None:
    out = Spool.create(tmp_path / "spool", CLAIM)
    out.add("started", {"pid": 1})
    out.add("notice", {"message": "m"})
    out.finish({"outcome": "succeeded"})
    assert delivered(out, Listener()) == [("end", ["started", "notice"])]


def test_of_what_came_before_an_end_only_what_is_refused_is_lost(tmp_path: Path) -> None:
    out = Spool.create(tmp_path / "spool", CLAIM)
    out.add("started", {"pid": 1})
    out.add("notice", {"message": "m"})
    out.finish({"outcome": "succeeded"})
    assert delivered(out, Listener("notice")) == [("events", ["started"]), ("end", [])]


def test_what_goes_on_is_told_of_before_its_end(tmp_path: Path) -> None:
    async def both() -> list[tuple[str, list[str]]]:
        out, listener = Spool.create(tmp_path / "spool", CLAIM), Listener()
        telling = asyncio.create_task(deliver(out, cast("Api", listener), lambda _: None))
        out.add("started", {"pid": 1})
        await listener.told.wait()
        out.finish({"outcome": "succeeded"})
        await telling
        return listener.heard

    assert asyncio.run(asyncio.wait_for(both(), 30)) == [("events", ["started"]), ("end", [])]


# --- the machine ---------------------------------------------------------------------------------


def test_limits_of_control_groups_are_read() -> None:
    assert probe.parse_limit("max\n") is None
    assert probe.parse_limit("9223372036854771712\n") is None  # version 1's "no limit"
    assert probe.parse_limit("1073741824\n") == 1 << 30
    assert probe.parse_quota("150000", "100000") == 1.5
    assert probe.parse_quota("-1", "100000") is None
    assert probe.parse_quota("max", "100000") is None


class OneGpu(types.ModuleType):
    """The driver's library as it answers on a machine with one GPU, and one that has fallen off."""

    class NVMLError(Exception):
        pass

    def nvmlInit(self) -> None:
        pass

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"550.90.07"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 12040

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index:
            raise self.NVMLError("GPU is lost")
        return index

    def nvmlDeviceGetMemoryInfo(self, _: int) -> Any:
        return types.SimpleNamespace(total=81559 * 2**20, free=80535 * 2**20)

    def nvmlDeviceGetUUID(self, _: int) -> str:
        return "GPU-1a2b"

    def nvmlDeviceGetName(self, _: int) -> str:
        return "NVIDIA H100 80GB HBM3"

    def nvmlDeviceGetUtilizationRates(self, _: int) -> Any:
        return types.SimpleNamespace(gpu=37)


class PartOfAGpu(OneGpu):
    """A MIG instance, which can't tell how busy it is, after a GPU that has fallen off."""

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return super().nvmlDeviceGetHandleByIndex(1 - index)

    def nvmlDeviceGetUtilizationRates(self, _: int) -> Any:
        raise self.NVMLError("Not Supported")


def test_gpus_are_told_as_the_driver_tells_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", OneGpu("pynvml"))
    (gpu,) = probe.gpus()
    assert gpu == {
        "index": 0,
        "uuid": "GPU-1a2b",
        "name": "NVIDIA H100 80GB HBM3",
        "memory_mib": 81559,
        "driver": "550.90.07",
        "cuda": "12.4",
    }
    assert probe.gpu_usage() == [{"index": 0, "percent": 37, "memory_used_mib": 1024}]
    monkeypatch.setitem(sys.modules, "pynvml", PartOfAGpu("pynvml"))
    assert probe.gpu_usage() == [{"index": 1, "percent": None, "memory_used_mib": 1024}]
    assert [device.free_mib for device in gpus.devices()] == [80535]
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert (probe.gpus(), probe.gpu_usage()) == ([], [])


def test_ollama_is_found_by_asking_it() -> None:
    class Tags(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"models": [{"name": "llama3:8b"}]}'
            self.send_response(200 if self.path == "/api/tags" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Tags) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert probe.ollama(f"http://127.0.0.1:{server.server_port}") == ["llama3:8b"]
    assert probe.ollama("http://127.0.0.1:9") == []


def test_the_environment_chooses_work_engine_and_device() -> None:
    env = {"FLOWML_URL": "http://web", "WORKER_TYPE": "GPU", "MODEL_FRAMEWORK": "pycaret"}
    chosen = read(env, 4)
    assert (chosen.queues, chosen.engines, chosen.use_gpu) == (("gpu",), ("pycaret",), True)
    assert read(env, 4, queues="cpu").queues == ("cpu",)
    with pytest.raises(ValueError, match="USE_GPU is off"):
        read({**env, "USE_GPU": "0"}, 4)
    with pytest.raises(ValueError, match="either 1 or 0"):
        read({**env, "USE_GPU": "perhaps"}, 4)
    assert read({**env, "WORKER_TYPE": "", "USE_GPU": "no"}, 4).use_gpu is False


def test_the_probe_can_be_printed() -> None:
    command = [sys.executable, "-m", "workers.cli", "--probe-only"]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "cores" in table
    found = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout)["cpu"] == probe.cores()


def test_settings_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="server's address"):
        read({}, 2)
    with pytest.raises(ValueError, match="will not do"):
        read({"FLOWML_URL": "http://x", "FLOWML_NODE_NAME": "a/b"}, 2)
    env = {"FLOWML_URL": "http://x/", "FLOWML_NODE_NAME": "n", "FLOWML_VAR": str(tmp_path)}
    assert (read(env, 2).concurrency, read(env, 8).concurrency, read(env, 1).concurrency) == (
        1,
        4,
        1,
    )
    assert read(env, 2, concurrency=3, queues="cpu, gpu").queues == ("cpu", "gpu")
    assert read(env, 2).url == "http://x"


def test_the_socket_has_a_path_that_the_kernel_takes(tmp_path: Path) -> None:
    env = {"FLOWML_URL": "http://x", "FLOWML_NODE_NAME": "n"}
    short = read({**env, "FLOWML_VAR": "/srv/flowml"}, 2).socket_path
    assert str(short) == "/srv/flowml/run/node-n.sock"
    deep = read({**env, "FLOWML_VAR": "/" + "deep/" * 40}, 2).socket_path
    assert len(os.fsencode(deep)) <= MAX_SOCKET_PATH


def test_children_inherit_no_secret() -> None:
    env = {"FLOWML_URL": "http://x", "FLOWML_NODE_NAME": "n", "FLOWML_JOIN_TOKEN": "hush"}
    os.environ["A_SECRET"] = "hush"
    try:
        assert "hush" not in read(env, 2).child_environment().values()
    finally:
        del os.environ["A_SECRET"]


# --- processes -----------------------------------------------------------------------------------


@given(st.text(max_size=20), st.integers(1, 1 << 22), st.integers(0, 1 << 22))
def test_a_command_cannot_confuse_the_process_table(name: str, pid: int, parent: int) -> None:
    rest = " ".join(["0"] * 15)
    line = f"{pid} ({name}) S {parent} 1 {pid} {rest} 777 0 0"
    assert procs.parse_stat(line) == procs.Process(pid, parent, pid, "S", 777)


@given(
    st.dictionaries(st.integers(2, 30), st.tuples(st.integers(1, 30), st.integers(1, 30))),
    st.integers(1, 30),
)
def test_a_tree_is_closed_and_never_holds_its_root(
    rows: dict[int, tuple[int, int]], root: int
) -> None:
    table = {
        pid: procs.Process(pid, parent, session, "S", 0) for pid, (parent, session) in rows.items()
    }
    found = procs.tree(table, root)
    assert root not in found
    for pid, row in table.items():
        if pid != root and (row.parent in found or row.parent == root or row.session == root):
            assert pid in found


def test_a_reused_pid_is_spared() -> None:
    bystander = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        assert procs.kill_tree(bystander.pid, start=1) is True
        assert bystander.poll() is None
        row = procs.process(bystander.pid)
        assert row is not None
        assert procs.kill_tree(bystander.pid, row.start)
        assert bystander.wait(5) == -signal.SIGKILL
    finally:
        bystander.kill()


def test_marked_processes_are_found_wherever_they_hide() -> None:
    mark = f"FLOWML_MARK=test{os.getpid()}"
    name, _, value = mark.partition("=")
    code = "import os, time; os.fork() and os._exit(0); os.setsid(); time.sleep(60)"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, name: value}, check=True)
    deadline = time.monotonic() + 5
    while not procs.marked(mark) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert procs.kill_marked(mark) == 1
    assert procs.marked(mark) == []
