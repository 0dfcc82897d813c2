"""A HiveServer2: Spark's Thrift server from the pyspark package, with a warehouse of its own."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flowml_site import processes
from pipelines import reach

ROOT = Path(__file__).resolve().parents[2]
SPARK = ROOT / ".venvs" / "spark" / "lib" / "python3.11" / "site-packages" / "pyspark"
STARTS_S = 240  # on a machine that is busy with other tests; some 15 s on a quiet one


class Server:
    def __init__(self, port: int) -> None:
        self.port = port
        self.rules = reach.parse(f"localhost:{port} warehouse.example.org:{port}")
        self.settings: dict[str, Any] = {"host": "localhost", "port": port, "user": "ann"}


@contextmanager
def running(folder: Path) -> Iterator[Server]:
    port = processes.free_port()
    conf = {
        "spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1", "spark.sql.shuffle.partitions": "1",
        "spark.default.parallelism": "1", "spark.sql.warehouse.dir": str(folder / "warehouse"),
        "spark.driver.extraJavaOptions": f"-Dderby.system.home={folder / 'derby'}",
    }  # fmt: skip
    command = [str(SPARK / "bin" / "spark-submit"), "--master", "local[1]", "--driver-memory", "1g"]
    command += ["--class", "org.apache.spark.sql.hive.thriftserver.HiveThriftServer2"]
    for name, value in conf.items():
        command += ["--conf", f"{name}={value}"]
    command += ["spark-internal", "--hiveconf", f"hive.server2.thrift.port={port}"]
    command += ["--hiveconf", "hive.server2.thrift.bind.host=127.0.0.1"]
    command += ["--hiveconf", "hive.server2.authentication=NONE"]
    env = dict(
        os.environ, SPARK_HOME=str(SPARK), SPARK_LOCAL_IP="127.0.0.1",
        SPARK_LOCAL_HOSTNAME="localhost",
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            command, cwd=folder, env=env, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + STARTS_S
        while True:
            assert child.poll() is None, log.read_text()[-3000:]
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        yield Server(port)
    finally:
        os.killpg(child.pid, signal.SIGKILL)  # what it wrote goes with its folder
        child.wait(30)
