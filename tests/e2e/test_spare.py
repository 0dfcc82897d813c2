"""Work with no node anywhere: this machine starts one for it, and lets it go."""

import time
from contextlib import closing

import pytest

from flowml_site.platform import Platform
from tests.e2e.conftest import Person
from tests.seeds import seed

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240), pytest.mark.xdist_group("spare")]


def test_work_that_no_node_can_do_is_done_here_by_a_node_that_goes_afterwards(tmp_path):
    env = {"FLOWML_SPARE_IDLE_SECONDS": "4", "WEB_PROCESSES": "1", "FLOWML_LOCAL_FALLBACK": "1"}
    seed(tmp_path / "var")
    platform = Platform(tmp_path / "var", env=env, args=["--without-node"])
    try:
        platform.start(nodes=0)
        with pytest.raises(LookupError):
            platform.process("node")
        with closing(Person(platform.url, "ada")) as person:
            dataset = person.dataset()
            assert dataset["state"] == "ready"
            node = platform.process("node")
            nodes = person.ok("GET", "/api/workers")["results"]
            assert [(one["name"], one["state"]) for one in nodes] == [("local", "online")]
            deadline = time.monotonic() + 60
            while node.is_alive:
                assert time.monotonic() < deadline, "it did not go"
                time.sleep(0.2)
            log = platform.log("up")
            assert "starts: work waits" in log
            time.sleep(1)
            with pytest.raises(LookupError):
                platform.process("node")
    finally:
        platform.stop()
