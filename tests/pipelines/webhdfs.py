"""WebHDFS as its REST documents tell it, in memory: a name node that redirects to a data node.

It checks the client against our reading of the documents, not against Hadoop.
https://hadoop.apache.org/docs/stable/hadoop-project-dist/hadoop-hdfs/WebHDFS.html
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit


class Cluster:
    """``data_host``: the host that redirects name. ``asked``: operations, in order."""

    def __init__(self) -> None:
        self.files: dict[str, bytearray] = {}
        self.asked: list[str] = []
        self.data_host = "localhost"
        self.flip_next_append = False
        self.down = False
        self.name, self.data = _serve(self, is_data=False), _serve(self, is_data=True)

    @property
    def port(self) -> int:
        return int(self.name.server_address[1])

    @property
    def data_port(self) -> int:
        return int(self.data.server_address[1])


class _Refused(Exception):
    def __init__(self, status: int, name: str, message: str) -> None:
        self.status, self.name, self.message = status, name, message


def _serve(cluster: Cluster, *, is_data: bool) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            where = urlsplit(self.path)
            query = {key: one[0] for key, one in parse_qs(where.query).items()}
            path = unquote(where.path).removeprefix("/webhdfs/v1")
            try:
                if cluster.down:
                    raise _Refused(403, "StandbyException", "Operation is not supported in standby")
                self.do(query["op"].upper(), path, query, body)
            except _Refused as refused:
                said = {"exception": refused.name, "message": refused.message}
                self.say(refused.status, {"RemoteException": said})

        do_GET = do_PUT = do_POST = do_DELETE = answer

        def say(self, status: int, content: Any = b"", **headers: str) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def do(self, op: str, path: str, query: dict[str, str], body: bytes) -> None:
            files = cluster.files
            if query.get("user.name") != "flow":
                raise _Refused(403, "AccessControlException", "Permission denied: user=nobody")
            if (
                op in {"OPEN", "APPEND", "TRUNCATE", "GETFILESTATUS", "RENAME"}
                and path not in files
            ):
                raise _Refused(404, "FileNotFoundException", f"File does not exist: {path}")
            if op in {"OPEN", "CREATE", "APPEND"} and not is_data:
                assert not body, "the name node takes no data"
                there = f"http://{cluster.data_host}:{cluster.data_port}/webhdfs/v1{path}"
                self.say(307, Location=f"{there}?{urlencode(query)}")
                return
            cluster.asked.append(op)
            match op:
                case "MKDIRS":
                    self.say(200, {"boolean": True})
                case "CREATE":
                    files[path] = bytearray(body)
                    self.say(201)
                case "APPEND":
                    if cluster.flip_next_append:
                        cluster.flip_next_append = False
                        body = body[:-1] + bytes([body[-1] ^ 1])
                    files[path] += body
                    self.say(200)
                case "TRUNCATE":
                    del files[path][int(query["newlength"]) :]
                    self.say(200, {"boolean": True})
                case "GETFILESTATUS":
                    status = {"length": len(files[path]), "type": "FILE"}
                    self.say(200, {"FileStatus": status})
                case "OPEN":
                    first = int(query.get("offset", 0))
                    last = first + int(query.get("length", len(files[path])))
                    self.say(200, bytes(files[path][first:last]))
                case "RENAME":
                    target = query["destination"]
                    if target in files and query.get("renameoptions") != "OVERWRITE":
                        self.say(200, {"boolean": False})
                        return
                    files[target] = files.pop(path)
                    self.say(200)
                case "DELETE":
                    self.say(200, {"boolean": files.pop(path, None) is not None})
                case _:
                    raise _Refused(400, "IllegalArgumentException", f"Invalid value: {op}")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@contextmanager
def running() -> Iterator[Cluster]:
    cluster = Cluster()
    try:
        yield cluster
    finally:
        for one in (cluster.name, cluster.data):
            one.shutdown()
            one.server_close()
