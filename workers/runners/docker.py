"""Runs attempts as containers of a Docker engine.

An attempt is a container named by installation, run and attempt. A code job's files are in ``/launch/code``, its
working directory, and belong to the user it runs as. A command of the run's own replaces the image's entrypoint and
command; without one the image's own are used.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from launch.checking import parse
from launch.errors import ConfigError, TemporaryError
from launch.plugins import Attempt, LogChunk, Plan, Problem, Reach, Runner, Status, TargetContext
from workers.docker_engine import Engine, Refused, away
from workers.docker_settings import EngineSettings
from workers.docker_streams import PAUSE_S, read_with_pauses
from workers.runners import docker_options, docker_probe
from workers.runners.docker_logs import LogReader, Splitter
from workers.runners.docker_options import DockerOptions
from workers.runners.docker_plan import INSTALLATION_LABEL, NAME_LABEL, container_body
from workers.runners.docker_state import GONE, listed_status, status_of
from workers.runners.docker_submit import Owners, Submission

LOOK_UP_S = 10.0
"""How long a log may be silent before the container is looked at: a guard against a stream that does not end."""


class DockerRunner(Runner):
    """A Docker engine, local or remote."""

    name = "docker"
    aliases = ("local-container",)
    builder = "docker"
    Options = DockerOptions
    safe_overrides = docker_options.SAFE_OVERRIDES
    public_options = docker_options.PUBLIC_OPTIONS
    probe_options = frozenset(
        {"network", "add-host", "dns", "dns-search", "dns-option", "runtime", "userns", "builder"}
    )
    settings_where: ClassVar[str] = "agent config: targets/docker"

    def __init__(self, context: TargetContext, environ: Mapping[str, str] = os.environ) -> None:
        super().__init__(context)
        self.settings = parse(EngineSettings, context.settings, where=self.settings_where)
        self.engine = Engine(self.settings)
        self.environ = environ
        self._stopping: dict[str, float] = {}
        self._owners: Owners = {}
        self._lock = threading.Lock()

    @classmethod
    def canonical(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the config with each key under its name in ``docker run``.

        Raises:
            ConfigError: an option that a launch cannot have, such as ``rm``, or one given twice.
        """
        try:
            return docker_options.canonical(config)
        except ValueError as exc:
            raise ConfigError(str(exc)) from exc

    @classmethod
    def with_memory(cls, config: Mapping[str, Any], factor: float) -> dict[str, Any]:
        """Return the config with its memory limits multiplied."""
        return docker_options.with_memory(config, factor)

    # --- the target ---------------------------------------------------------------------------------------------------

    @property
    def locality(self) -> str:
        """The engine: an id of its own, and its data folder, since two engines of one machine can share the id."""
        try:
            info = self.engine.info()
        except Refused as exc:
            raise away(exc) from exc
        return f"docker:{info.get('ID')}:{info.get('DockerRootDir')}"

    def check(self) -> list[Problem]:
        """Return what keeps the engine from running containers now."""
        return self.engine.check()

    def tracking_host(self, options: Any) -> str | None:
        """Return this machine's address in the container's network; none without a network."""
        if self.settings.tracking_host:
            return self.settings.tracking_host
        network = options.network or "bridge"
        if network == "none":
            return None
        if network.startswith("container:"):
            network = "bridge"
        return self._address_in(network)

    def _address_in(self, network: str) -> str | None:
        remote = urllib.parse.urlsplit(self.engine.host)
        info = self._ask(lambda api: api.info())
        if remote.scheme in ("tcp", "ssh", "http", "https") and remote.hostname not in ("localhost", "127.0.0.1"):
            return _own_address_towards(remote.hostname or "")
        if "Docker Desktop" in str(info.get("OperatingSystem")):
            return "host.docker.internal"
        if network == "host":
            return "127.0.0.1"
        if any("rootless" in item for item in info.get("SecurityOptions") or ()):
            return _own_address_towards("192.0.2.1")  # its gateway is in a network namespace of its own
        found = self._ask(lambda api: api.inspect_network(network), missing=f"network: there is no network {network!r}")
        return next((item["Gateway"] for item in found["IPAM"]["Config"] or () if item.get("Gateway")), None)

    def probe(self, url: str, options: Any) -> Reach:
        """Ask from a short-lived container of a local image with Python; without one it is not tested."""
        version = self.settings.python_version or f"{sys.version_info.major}.{sys.version_info.minor}"
        base_image = options.builder.base or self.settings.base_image.format(python_version=version)
        return docker_probe.probe(self.engine, url, options, base_image, self.context.installation)

    # --- start --------------------------------------------------------------------------------------------------------

    def build_options(self, options: Any) -> Mapping[str, Any]:
        """Return the ``builder`` section, with ``pull`` and ``platform`` where ``docker run`` has them."""
        told: Mapping[str, Any] = options.build_options
        return told

    def plan(self, attempt: Attempt, image: str | None, options: Any) -> Plan:
        """Return the container to create; ``request`` is the body of ``POST /containers/create``."""
        assert isinstance(options, DockerOptions)
        if image is None:
            raise ConfigError("image: the docker target needs one; give --image, or a job with code")
        body, secrets = container_body(attempt, image, options, self.settings, self.environ)
        return Plan(attempt.name, body, secrets, attempt.code)

    def submit(self, plan: Plan) -> str:
        """Create, fill and start the container, or find it, and return its id."""
        return Submission(self.engine, plan, self._owners).handle()

    # --- follow -------------------------------------------------------------------------------------------------------

    def status(self, handles: Sequence[str]) -> dict[str, Status]:
        """Return ``{handle: Status}``: one list for all, and a closer look at the ended ones."""
        if not handles:
            return {}
        listed = {item["Id"]: listed_status(item) for item in self._list()}
        return {handle: listed.get(handle, GONE) or self._status(handle) for handle in handles}

    def _status(self, handle: str) -> Status:
        found = self.engine.inspect(handle)
        if found is None:
            return GONE
        return status_of(found, lambda: self._last_words(handle))

    def _last_words(self, handle: str) -> str:
        """Return the last line on stderr: where an init says that it found no command."""
        try:
            with self.engine.talk() as api:
                return bytes(api.logs(handle, stdout=False, tail=1)).decode("utf-8", "replace").strip()
        except Refused:
            return ""

    def wait(self, handle: str, timeout_s: float) -> Status:
        """Return the status as soon as the engine says that the container has ended."""
        deadline = time.monotonic() + timeout_s
        status = self._wait("not-running", handle, timeout_s)
        left = deadline - time.monotonic()
        if status.is_final or left <= 0:
            return status
        return self._wait("next-exit", handle, left)  # it was created only: not running, but not ended either

    def _wait(self, condition: str, handle: str, timeout_s: float) -> Status:
        self.engine.wait(handle, condition, timeout_s)
        return self._status(handle)

    def logs(self, handle: str, cursor: str | None = None) -> Iterator[LogChunk]:
        """Yield what the job has written since ``cursor`` and what it goes on to write; empty text in silence."""
        reader = LogReader.at(cursor)
        is_over = False
        while not is_over:
            # A stream that breaks is like one that ends: whether the engine is away or the job has ended, wait tells.
            with contextlib.suppress(TemporaryError):
                for chunk in self._read(handle, reader, follow=True):
                    yield chunk or LogChunk("stdout", "", reader.cursor)
            is_over = self.wait(handle, PAUSE_S).is_final
        yield from (chunk for chunk in self._read(handle, reader, follow=False) if chunk)
        yield from reader.finish()

    def _read(self, handle: str, reader: LogReader, *, follow: bool) -> Iterator[LogChunk | None]:
        """Yield chunks until the stream ends; ``None`` for a pause."""
        since, skips = reader.resume()
        params = {"stdout": 1, "stderr": 1, "timestamps": 1, "follow": int(follow), "since": since}
        try:
            pieces, close = self.engine.open_stream("GET", f"/containers/{handle}/logs", params)
        except Refused as exc:
            if exc.status == 404:
                return
            raise away(exc) from exc
        silent_since = time.monotonic()
        splitter = Splitter()
        for batch in read_with_pauses(pieces, close, PAUSE_S):
            if batch:
                yield from reader.read(splitter.split(batch), skips)
                silent_since = time.monotonic()
                continue
            yield None
            if time.monotonic() - silent_since > LOOK_UP_S:
                if self._status(handle).is_final:
                    return
                silent_since = time.monotonic()

    # --- end ----------------------------------------------------------------------------------------------------------

    def stop(self, handle: str, grace_s: float) -> None:
        """Ask the container to end, and have the engine kill it after ``grace_s``, rounded up to whole seconds.

        The engine does the waiting, so that the kill comes also when this agent is gone by then.
        """
        deadline = time.monotonic() + grace_s
        with self._lock:
            if self._stopping.get(handle, math.inf) <= deadline:
                return  # it was asked, and will be killed sooner than that
            self._stopping[handle] = deadline
        if self.engine.inspect(handle) is None:
            self._stopped(handle, deadline)
            return
        threading.Thread(target=self._stop, args=(handle, grace_s, deadline), name="docker-stop", daemon=True).start()

    def _stop(self, handle: str, grace_s: float, deadline: float) -> None:
        try:
            self.engine.stop(handle, math.ceil(grace_s))
        except (Refused, TemporaryError):
            pass  # gone, or the engine is away: whoever wants it stopped asks again
        finally:
            self._stopped(handle, deadline)

    def _stopped(self, handle: str, deadline: float) -> None:
        with self._lock:
            if self._stopping.get(handle) == deadline:
                del self._stopping[handle]

    def find(self) -> dict[str, str]:
        """Return ``{attempt name: container id}`` of this installation."""
        return {item["Labels"][NAME_LABEL]: item["Id"] for item in self._list() if NAME_LABEL in item["Labels"]}

    def remove(self, handle: str) -> None:
        """Remove the container, its anonymous volumes and its log."""
        try:
            with self.engine.talk() as api:
                api.remove_container(handle, v=True, force=True)
        except Refused as exc:
            if exc.status not in (404, 409):  # 409: another removal is under way
                raise away(exc) from exc

    # --- asking -------------------------------------------------------------------------------------------------------

    def _list(self) -> Iterable[Mapping[str, Any]]:
        label = f"{INSTALLATION_LABEL}={self.context.installation}"
        found: Iterable[Mapping[str, Any]] = self._ask(lambda api: api.containers(all=True, filters={"label": label}))
        return found

    def _ask(self, question: Any, missing: str = "") -> Any:
        try:
            with self.engine.talk() as api:
                return question(api)
        except Refused as exc:
            if exc.status == 404 and missing:
                raise ConfigError(missing) from exc
            raise away(exc) from exc


def _own_address_towards(host: str) -> str | None:
    """Return this machine's address on the way to ``host``; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])
