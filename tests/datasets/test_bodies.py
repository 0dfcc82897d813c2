"""Large bodies at a real daphne."""

import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
MIB = b"a" * (1 << 20)


@pytest.fixture(scope="module")
def daphne() -> Iterator[tuple[int, psutil.Process]]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "daphne", "-v", "0", "-p", str(port)]
    process = subprocess.Popen([*command, "tests.datasets.tiny_asgi:application"], cwd=ROOT)
    try:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield port, psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


def form_of(mib: int) -> Iterator[bytes]:
    yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="t"\r\n\r\n'
    for _ in range(mib):
        yield MIB
    yield b"\r\n--x--\r\n"


def test_a_posted_form_is_not_held_in_memory(daphne):
    port, process = daphne
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    before = process.memory_info().rss
    connection.request("POST", "/large", form_of(150), FORM, encode_chunked=True)
    answer = connection.getresponse()
    assert answer.status == 200
    assert int(answer.read()) > 150 << 20
    assert process.memory_info().rss - before < 40 << 20


def test_an_answer_waits_for_a_client_that_reads_slowly(daphne):
    port, process = daphne
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    before = process.memory_info().rss
    connection.request("GET", "/download")
    answer = connection.getresponse()
    time.sleep(1)
    assert process.memory_info().rss - before < 40 << 20
    assert len(answer.read()) == (200 << 20) + 1  # and the count of the empty body
    cut = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    cut.request("GET", "/download")
    cut.getresponse()
    cut.close()  # a client that goes away holds nothing up
    connection.request("GET", "/")
    assert connection.getresponse().read() == b"0"


def test_a_body_over_the_limit_is_refused_by_its_length(daphne):
    port, _ = daphne
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.putrequest("POST", "/")
    connection.putheader("Content-Length", str(1 << 40))
    connection.endheaders()
    connection.send(MIB)
    answer = connection.getresponse()
    assert answer.status == 413
    assert answer.getheader("Content-Type") == "application/problem+json"
    assert b'"code": "too-large"' in answer.read()


def test_a_body_over_the_limit_is_refused_while_it_comes(daphne):
    port, _ = daphne
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("POST", "/", form_of(20), FORM, encode_chunked=True)
    assert connection.getresponse().status == 413


def test_other_requests_go_on(daphne):
    port, _ = daphne
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    for _ in range(3):  # over one connection
        connection.request("POST", "/", b"abc", {"Content-Type": "text/plain"})
        assert connection.getresponse().read() == b"3"
