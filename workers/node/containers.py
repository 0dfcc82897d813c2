"""Containers of deployments, by the API of this machine's Docker or Podman.

A container gets no privileges, no capabilities and nothing of the machine's files, the memory and
processor that its replica was given, and a port that only this machine reaches. It outlives the
supervisor: after a restart it is found again by its label. When it has ended the platform decides
what follows; the engine never starts it again by itself.
"""

import asyncio
import base64
import binascii
import contextlib
import logging
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

from workers.node.settings import Settings

log = logging.getLogger("flowml.node.containers")

CALL_S = 60.0  # what the engine takes for anything but a pull
PULL_S = 900.0
START_S = 120.0  # to become healthy
HEALTH_S = 5.0
AGAIN_S = 0.5
LAST_WORDS_S = 3.0
MOST_PROCESSES = 512
MOST_ANSWERED = 32 * 1024 * 1024  # bytes of one answer
TOO_LONG = f"it answered more than {MOST_ANSWERED // 2**20} MB"
LOG_LINES = 200  # a second, of which the newest are told
LOG_CHARS = 2000
REPLICA, NODE, ORGANIZATION = "flowml.replica", "flowml.node", "flowml.organization"
SOCKETS = ("/var/run/docker.sock", "/run/podman/podman.sock")
STAMPED = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d) ?(.*)", re.DOTALL)


class ContainerBroken(Exception):
    """It can't run, or does not any more. The text says why."""


class NoAnswer(Exception):
    """The container could not be asked. ``sent``: it may have heard the question all the same."""

    def __init__(self, detail: str, *, sent: bool) -> None:
        super().__init__(detail)
        self.sent = sent


def options(
    spec: Mapping[str, Any], *, replica: str, node: str, network: str, devices: Sequence[str]
) -> dict[str, Any]:
    """What the engine is asked for, in docker-py's words. Pure."""
    limits, port = spec["limits"], int(spec["port"])
    ram_mib, cpu_millis = int(limits["ram_mib"]), int(limits["cpu_millis"])
    asked: dict[str, Any] = {
        "image": str(spec["image"]),
        "name": f"flowml-{replica}",
        "environment": {"PORT": str(port), **spec["env"]},
        "labels": {REPLICA: replica, NODE: node, ORGANIZATION: str(spec["organization"])},
        "privileged": False,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "ipc_mode": "private",
        "mem_limit": ram_mib * 1024 * 1024,
        "memswap_limit": ram_mib * 1024 * 1024,  # memory and swap together: no swap
        "nano_cpus": cpu_millis * 1_000_000,
        "pids_limit": MOST_PROCESSES,
        "restart_policy": {"Name": "no"},
        "log_config": {"Type": "json-file", "Config": {"max-size": "10m"}},
        "network": network,
        "detach": True,
    }
    if network == "host":  # asked for by the machine's owner alone: ports are the machine's then
        asked["network_mode"] = asked.pop("network")
    else:
        asked["ports"] = {f"{port}/tcp": ("127.0.0.1", None)}
    if devices:
        gpu = {"Driver": "", "Count": 0, "DeviceIDs": list(devices), "Capabilities": [["gpu"]]}
        asked["device_requests"] = [gpu]
    return asked


class Lines:
    """What a replica prints, on its way to the log of its deployment: the newest, bounded."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._waiting: deque[tuple[str, str]] = deque()
        self._left_out = 0
        self._hidden = sorted((one for one in secrets.values() if len(one) >= 8), key=len)[::-1]

    def take(self, text: str, at: datetime | None = None) -> None:
        for secret in self._hidden:
            text = text.replace(secret, "[secret]")
        if len(self._waiting) >= LOG_LINES:
            self._waiting.popleft()
            self._left_out += 1
        said_at = (at or datetime.now(UTC)).isoformat()
        self._waiting.append((said_at, text.replace("\0", "�")[:LOG_CHARS]))

    def give(self) -> list[tuple[str, str]]:
        """All that waits, oldest first; then nothing waits any more."""
        found = list(self._waiting)
        if self._left_out:
            found.insert(0, (found[0][0], f"... {self._left_out:,} lines left out here"))
        self._waiting.clear()
        self._left_out = 0
        return found

    def put_back(self, lines: Sequence[tuple[str, str]]) -> None:
        """They could not be told yet."""
        room = max(0, LOG_LINES - len(self._waiting))
        self._left_out += max(0, len(lines) - room)
        self._waiting.extendleft(reversed(lines[len(lines) - room :]))


class Container:
    """One replica's container, which runs."""

    def __init__(
        self, url: str, found: Any, address: str, health_path: str, *, is_new: bool
    ) -> None:
        self._url = url
        self._found = found  # docker-py's
        self.address = address  # host:port
        self.health_path = health_path
        self.is_new = is_new
        self._session: aiohttp.ClientSession | None = None
        self._told = asyncio.Event()  # all that it printed
        self._told.set()

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(auto_decompress=False)
        return self._session

    async def is_healthy(self) -> bool:
        """Whether its health path answers well."""
        timeout = aiohttp.ClientTimeout(total=HEALTH_S)
        url = f"http://{self.address}{self.health_path}"
        try:
            asking = self.session.get(url, timeout=timeout, allow_redirects=False)
            async with asking as answer:
                return answer.status < 400
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def end(self) -> str:
        """How it has ended, in words; "" while it runs."""

        def look() -> Mapping[str, Any]:
            import docker.errors

            try:
                self._found.reload()
            except docker.errors.NotFound:
                return {"gone": True}
            return dict(self._found.attrs["State"])

        state = await _call(look)
        if state.get("gone"):
            return "Its container was removed."
        if state.get("Running"):
            return ""
        if state.get("OOMKilled"):
            return "Its container was ended: it took more memory than it may."
        code = int(state.get("ExitCode") or 0)
        if code > 128:
            return f"Its container was killed by signal {code - 128}."
        why = str(state.get("Error") or "").strip()
        return f"Its container ended with status {code}." + (f" {why}" if why else "")

    async def stop(self, grace_s: float) -> None:
        """Ask it to end (SIGTERM); what still runs after that is killed."""
        try:
            await _call(lambda: self._found.stop(timeout=max(0, round(grace_s))), grace_s + CALL_S)
        except ContainerBroken as error:
            log.warning("a container was not stopped: %s", error)

    async def remove(self) -> None:
        """Nothing is left of it, its anonymous volumes included. Its last lines are told first."""
        await self.let_go()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._told.wait(), LAST_WORDS_S)
        try:
            await _call(lambda: _remove(self._found))
        except ContainerBroken as error:
            log.warning("a container was not removed: %s", error)

    async def let_go(self) -> None:
        """It runs on; we don't ask it any more."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def forward(self, asked: Mapping[str, Any], within_s: float) -> dict[str, Any]:
        """Its answer to an HTTP request {method, path, headers, body}; bodies are in Base64.

        Raises NoAnswer.
        """
        headers = [(str(name), str(value)) for name, value in asked.get("headers") or ()]
        try:
            body = base64.b64decode(asked.get("body") or "", validate=True)
        except binascii.Error:
            raise NoAnswer("The request's body is no Base64.", sent=False) from None
        try:
            asking = self.session.request(
                str(asked["method"]),
                f"http://{self.address}{asked['path']}",
                headers=headers,
                data=body or None,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=within_s, sock_connect=5),
            )
            async with asking as answer:
                said = bytearray()
                async for piece in answer.content.iter_chunked(64 * 1024):
                    said += piece
                    if len(said) > MOST_ANSWERED:
                        raise NoAnswer(TOO_LONG, sent=True)
                return {
                    "status": answer.status,
                    "headers": [[name, value] for name, value in answer.headers.items()],
                    "body": base64.b64encode(said).decode(),
                }
        except (aiohttp.ClientConnectorError, aiohttp.InvalidURL, ValueError) as error:
            raise NoAnswer(f"The container can't be reached: {error}", sent=False) from error
        except TimeoutError:
            raise
        except (aiohttp.ClientError, OSError) as error:
            why = str(error) or type(error).__name__
            raise NoAnswer(f"The container broke off: {why}", sent=True) from error

    def follow(self, take: Callable[[str, datetime], None], after: datetime | None) -> None:
        """Have its output told line by line, in this loop, for as long as it runs."""
        loop = asyncio.get_running_loop()
        self._told.clear()

        def tell(line: str) -> None:
            said = STAMPED.fullmatch(line)
            at, text = _when(said), said[4] if said else line
            if after is None or at > after:
                loop.call_soon_threadsafe(take, text, at)

        def read() -> None:
            client = _client(self._url, None)
            since = {"since": int(after.timestamp())} if after else {}
            try:
                left = b""
                mine = client.api.logs(
                    self._found.id, stream=True, follow=True, timestamps=True, **since
                )
                for piece in mine:
                    *whole, left = (left + piece).split(b"\n")
                    for line in whole:
                        tell(line.decode(errors="replace").rstrip("\r"))
                if left:
                    tell(left.decode(errors="replace"))
            except Exception as error:  # removed meanwhile, or the loop has ended
                log.debug("the output of %s is not followed any more: %s", self._found.name, error)
            finally:
                client.close()
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(self._told.set)

        # Each waits all the time: the threads of asyncio are few.
        threading.Thread(target=read, name="container-log", daemon=True).start()


class Containers:
    """The engine of this machine, if there is one that this node may use."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._url = ""
        self._client: Any = None
        self._node = settings.mark.partition("=")[2]
        self.is_podman = False

    def open(self) -> str:
        """Look for the engine. Returns what answers ("docker 27.1"), or "". Blocks."""
        for url in self._addresses():
            try:
                client = _client(url, CALL_S)
                told = client.version()
            except Exception as error:
                log.warning("no containers: %s does not answer: %s", url, error)
                continue
            names = " ".join(str(one.get("Name")) for one in told.get("Components") or ())
            self.is_podman = "podman" in names.lower()
            self._client, self._url = client, url
            return f"{'podman' if self.is_podman else 'docker'} {told.get('Version', '')}"[:80]
        return ""

    def _addresses(self) -> list[str]:
        said = self._settings.containers
        if said.lower() in {"off", "0", "no", "false"}:
            return []
        if said:
            return [said]
        if os.environ.get("DOCKER_HOST"):
            return [os.environ["DOCKER_HOST"]]
        own = os.environ.get("XDG_RUNTIME_DIR")
        paths = [*SOCKETS, *([f"{own}/podman/podman.sock"] if own else [])]
        return [f"unix://{path}" for path in paths if Path(path).exists() and os.access(path, 6)]

    async def run(self, replica: str, spec: Mapping[str, Any], devices: Sequence[str]) -> Container:
        """The replica's container: the one that runs already, or a new one. Raises Broken."""
        if self._client is None:
            raise ContainerBroken("This node has no Docker or Podman that it may use.")
        found = await _call(lambda: self._find(replica))
        is_new = found is None
        if found is None:
            await _call(lambda: self._fetch(str(spec["image"])), PULL_S)
            found = await _call(lambda: self._create(replica, spec, devices))
        try:
            address = await _call(lambda: self._address(found, int(spec["port"])))
            path = str(spec["health_path"])
            return Container(self._url, found, address, path, is_new=is_new)
        except BaseException:
            await asyncio.shield(_call(lambda: _remove(found)))
            raise

    async def forget(self, wanted: Sequence[str]) -> None:
        """Remove this node's containers that nobody wants any more: left by an earlier life."""
        if self._client is None:
            return

        def clear() -> None:
            for one in self._mine({NODE: self._node}):
                if one.labels.get(REPLICA) not in wanted:
                    log.info("removing a container that nobody wants any more: %s", one.name)
                    _remove(one)

        try:
            await _call(clear)
        except ContainerBroken as error:
            log.warning("old containers were not removed: %s", error)

    def _mine(self, labels: Mapping[str, str]) -> list[Any]:
        marks = [f"{name}={value}" for name, value in labels.items()]
        found: list[Any] = self._client.containers.list(
            all=True, filters={"label": marks}, ignore_removed=True
        )
        return found

    def _find(self, replica: str) -> Any:
        for one in self._mine({NODE: self._node, REPLICA: replica}):
            if one.status == "running":
                return one
            _remove(one)  # created and never begun, or ended while nobody looked
        return None

    def _fetch(self, image: str) -> None:
        """Have the image here: one that is named ``latest`` is looked for anew each time."""
        import docker.errors

        known = True
        try:
            self._client.images.get(image)
        except docker.errors.ImageNotFound:
            known = False
        if known and not image.endswith(":latest"):
            return
        try:
            for told in self._client.api.pull(image, stream=True, decode=True):
                if problem := told.get("error"):
                    raise docker.errors.APIError(problem, explanation=problem)
        except docker.errors.APIError as error:
            if not known:
                why = error.explanation or error
                raise ContainerBroken(f"The image {image} can't be fetched: {why}") from error
            log.warning("%s could not be looked for anew: what is here runs", image)

    def _create(self, replica: str, spec: Mapping[str, Any], devices: Sequence[str]) -> Any:
        network = self._settings.container_network or self._network(str(spec["organization"]))
        made = self._client.containers.create(
            **options(spec, replica=replica, node=self._node, network=network, devices=devices)
        )
        try:
            made.start()
        except BaseException:
            _remove(made)
            raise
        return made

    def _network(self, organization: str) -> str:
        """The organization's own network: containers of others can't be reached from it."""
        name = f"flowml-{organization}"
        if not self._client.networks.list(names=[name]):
            more = {"options": {"isolate": "true"}} if self.is_podman else {}
            self._client.networks.create(
                name, driver="bridge", labels={ORGANIZATION: organization}, **more
            )
        return name

    def _address(self, found: Any, port: int) -> str:
        found.reload()
        if found.attrs["HostConfig"].get("NetworkMode") == "host":
            return f"127.0.0.1:{port}"
        bound = found.attrs["NetworkSettings"]["Ports"].get(f"{port}/tcp") or []
        if not bound:
            ended = not found.attrs["State"].get("Running")
            raise ContainerBroken(
                "Its container ended at once." if ended else "It was given no port."
            )
        return f"127.0.0.1:{bound[0]['HostPort']}"


def _client(url: str, timeout_s: float | None) -> Any:
    """docker-py is imported where there is an engine alone: it is large."""
    import docker

    return docker.DockerClient(base_url=url, timeout=timeout_s)


def _remove(one: Any) -> None:
    import docker.errors

    try:
        one.remove(force=True, v=True)
    except docker.errors.NotFound:
        pass


def _when(said: "re.Match[str] | None") -> datetime:
    """The time that the engine has put before a line: of the nine digits, Python takes six."""
    if said is None:
        return datetime.now(UTC)
    zone = "+00:00" if said[3] == "Z" else said[3]
    return datetime.fromisoformat(f"{said[1]}{(said[2] or '.0')[:7]}{zone}").astimezone(UTC)


async def _call(work: Callable[[], Any], within_s: float = CALL_S) -> Any:
    """Do it in a thread. Raises ContainerBroken, with what the engine said."""
    import docker.errors
    import requests.exceptions

    try:
        return await asyncio.wait_for(asyncio.to_thread(work), within_s)
    except docker.errors.APIError as error:
        raise ContainerBroken(f"The container engine says: {error.explanation or error}") from error
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        raise ContainerBroken(f"The container engine does not answer: {error}") from error
    except TimeoutError:
        raise ContainerBroken(
            f"The container engine was not done within {within_s:.0f} s."
        ) from None
