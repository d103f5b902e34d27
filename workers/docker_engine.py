"""The connection to a Docker engine, shared by the runner and the builder: the only module that imports its SDK.

The SDK is imported when a connection is first needed. Its errors end here: an engine that is away is a
:class:`~launch.errors.TemporaryError`, a refused request a :class:`Refused` with the engine's own words, which the
caller turns into what it means there.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import socket
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

from launch.errors import LaunchError, TemporaryError
from launch.plugins import Problem
from workers.docker_settings import EngineSettings
from workers.docker_streams import PAUSE_S, json_lines, read_with_pauses

MIN_API = (1, 40)
"""API of Docker 19.03: the first with GPUs, and with one time stamp for all parts of a long line."""
_PASSING = re.compile(
    r"no space left|deadline exceeded|i/o timeout|timed? ?out|connection refused|connection reset|broken pipe"
    r"|unexpected EOF|error while dialing|ttrpc: closed|toomanyrequests|rate limit|server misbehaving"
    r"|temporary failure|service unavailable|bad gateway|TLS handshake timeout|network is unreachable",
    re.IGNORECASE,
)
"""Words of an engine or registry that is away or full for now."""


class Refused(Exception):  # noqa: N818  # not an error of its own: the caller says what it means
    """The engine answered, and said no."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status
        self.words = words

    @property
    def is_passing(self) -> bool:
        """Whether the same request may succeed later: a full disk, a registry that is away."""
        return _PASSING.search(self.words) is not None


class Engine:
    """One engine, connected when first used, and again after it was away. Safe to use from several threads."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self._client: Any = None
        self._info: dict[str, Any] | None = None
        self._lock = threading.Lock()

    @functools.cached_property
    def host(self) -> str:
        """The engine's address, as far as it is known without asking it."""
        return self.settings.host or os.environ.get("DOCKER_HOST") or _context_host() or "unix:///var/run/docker.sock"

    @property
    def api(self) -> Any:
        """The SDK's low-level client; use it inside :meth:`talk`."""
        with self._lock:
            if self._client is None:
                self._client = self._connect()
                weakref.finalize(self, self._client.close)  # closes the connections it keeps open
            return self._client

    def _connect(self) -> Any:
        import docker
        from docker.utils import kwargs_from_env

        from_env = kwargs_from_env() if not self.settings.host and os.environ.get("DOCKER_HOST") else {}
        make: Any = docker.APIClient
        arguments = {"base_url": self.host, "version": "auto", "timeout": self.settings.timeout_s, **from_env}
        return make(**arguments)

    @contextlib.contextmanager
    def talk(self) -> Iterator[Any]:
        """Give the client for a block whose errors become ours.

        Raises:
            TemporaryError: the engine is away.
            Refused: it said no.
        """
        with self._border():
            self._knock()
            yield self.api

    @contextlib.contextmanager
    def _border(self) -> Iterator[None]:
        import docker.errors
        import requests
        import urllib3

        try:
            yield
        except docker.errors.APIError as exc:
            raise Refused(exc.status_code or 500, _words(exc)) from exc
        except (docker.errors.DockerException, requests.RequestException, urllib3.exceptions.HTTPError, OSError) as exc:
            raise TemporaryError(f"the Docker engine at {self.host} does not answer: {_why(exc)}") from exc

    def _knock(self) -> None:
        """Raise what keeps us from the engine's unix socket: the SDK would say it less clearly, and leak a socket."""
        if self.host.startswith("unix://"):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(self.settings.timeout_s)
                probe.connect(self.host.removeprefix("unix://"))

    def open_stream(
        self, method: str, path: str, params: Mapping[str, Any], **request: Any
    ) -> tuple[Iterator[bytes], Callable[[], None]]:
        """Return the pieces of an endless answer as they come, and a function that ends it from any thread.

        The SDK's own streams cannot be left before they end.
        """
        with self.talk() as api:
            url = f"{api.base_url}/v{api.api_version}{path}"
            patience = (self.settings.timeout_s, None)
            response = api.request(method, url, params=params, stream=True, timeout=patience, **request)
            if response.status_code >= 400:
                with response:
                    raise _refusal(response)
        return self._pieces(response), stream_closer(response)

    def _pieces(self, response: Any) -> Iterator[bytes]:
        with self._border():
            yield from response.raw.stream(1 << 16)

    def open_messages(self, path: str, params: Mapping[str, Any], **request: Any) -> Generator[list[dict[str, Any]]]:
        """Post a request whose answer is a stream of JSON messages; yield them as they come, ``[]`` after a pause."""
        pieces, close = self.open_stream("POST", path, params, **request)
        yield from read_with_pauses(json_lines(pieces), close, PAUSE_S)

    def registry_auth(self, image: str) -> dict[str, str]:
        """Return the header with the credentials for an image's registry: the agent config's, else ``docker login``'s.

        Raises:
            TemporaryError: a credential helper cannot be asked.
        """
        from docker import auth
        from docker.errors import DockerException

        registry = auth.resolve_repository_name(image)[0]
        login = self.settings.registries.get(registry)
        if login is not None:
            return _auth_header({**login.model_dump(), "serveraddress": registry})
        try:
            # Read each time: somebody may have logged in since.
            found = auth.load_config().resolve_authconfig(registry)
        except DockerException as exc:
            raise TemporaryError(
                f"the login for registry {registry} cannot be read from Docker's config: {exc}"
            ) from exc
        return _auth_header(found) if found else {}

    def distribution(self, image: str) -> dict[str, Any]:
        """Return what an image's registry says of it, asked by the engine.

        Source: https://docs.docker.com/reference/api/engine/version/v1.41/#tag/Distribution
        """
        headers = self.registry_auth(image)
        with self.talk() as api:
            url = f"{api.base_url}/v{api.api_version}/distribution/{image}/json"
            with api.get(url, headers=headers) as response:
                if response.status_code >= 400:
                    raise _refusal(response)
                return dict(response.json())

    def wait(self, container: str, condition: str, timeout_s: float) -> None:
        """Return when the engine says that the container meets the condition, is unknown, or after the timeout.

        Source: https://docs.docker.com/reference/api/engine/version/v1.41/#tag/Container/operation/ContainerWait
        """
        import requests

        with contextlib.suppress(Refused), self.talk() as api:
            try:
                api.wait(container, timeout=timeout_s, condition=condition)
            except requests.ReadTimeout:
                return
            except requests.ConnectionError as exc:
                if "Read timed out" not in str(exc):  # the SDK's answer to a timeout after the headers
                    raise

    def stop(self, container: str, grace_s: int) -> None:
        """Have the engine ask the container to end, and kill it after ``grace_s``; returns when it has ended."""
        with self.talk() as api:
            url = f"{api.base_url}/v{api.api_version}/containers/{container}/stop"
            with api.post(url, params={"t": grace_s}, timeout=grace_s + self.settings.timeout_s) as response:
                if response.status_code >= 400:
                    raise _refusal(response)

    def inspect(self, container: str) -> dict[str, Any] | None:
        """Return what the engine knows of a container; none when it knows none.

        Raises:
            TemporaryError: the engine is away or in trouble.
        """
        try:
            with self.talk() as api:
                return dict(api.inspect_container(container))
        except Refused as exc:
            if exc.status == 404:
                return None
            raise away(exc) from exc

    def info(self) -> dict[str, Any]:
        """Return the engine's description of itself, asked once."""
        if self._info is None:
            with self.talk() as api:
                self._info = dict(api.info())
        return self._info

    def check(self) -> list[Problem]:
        """Return what keeps the engine from running containers now."""
        try:
            self._info = None
            info = self.info()
            with self.talk() as api:
                version = api.version()
        except ImportError:
            return [Problem("the Docker SDK is not installed", "pip install 'openlaunch[docker]'")]
        except (LaunchError, Refused) as exc:
            return [Problem(str(exc), self._how_to_reach(str(exc)))]
        return [*_check_version(version), *self._check_disk(info)]

    def _how_to_reach(self, why: str) -> str:
        if "Permission denied" in why:
            return "sudo usermod -aG docker $USER, then log in again"
        return "start Docker (sudo systemctl start docker), or name its address in DOCKER_HOST or in the agent's config"

    def _check_disk(self, info: Mapping[str, Any]) -> list[Problem]:
        root, free_gb = str(info.get("DockerRootDir", "")), self._free_gb(info)
        if free_gb >= self.settings.min_free_gb:
            return []
        return [Problem(f"{free_gb:.1f} GB are free in {root}", "free some space: launch images gc --keep-gb 10")]

    def _free_gb(self, info: Mapping[str, Any]) -> float:
        root = str(info.get("DockerRootDir", ""))
        if not self.host.startswith("unix://") or not os.path.isdir(root):  # noqa: PTH112
            return math.inf  # a remote engine, or one in a virtual machine: its disk cannot be seen from here
        stat = os.statvfs(root)
        return stat.f_bavail * stat.f_frsize / 1e9

    def is_short_of_space(self) -> bool:
        """Whether the engine's disk, as far as it can be seen, has less free space than it should.

        Raises:
            TemporaryError: the engine is away.
        """
        try:
            return self._free_gb(self.info()) < self.settings.min_free_gb
        except Refused as exc:
            raise away(exc) from exc


def _auth_header(login: Mapping[str, Any]) -> dict[str, str]:
    from docker import auth

    header = auth.encode_header(dict(login))
    return {"X-Registry-Auth": header.decode() if isinstance(header, bytes) else str(header)}


def away(exc: Refused) -> TemporaryError:
    """Return the error for a question that a healthy engine answers."""
    return TemporaryError(f"the Docker engine is in trouble: {exc.words}")


def _check_version(version: Mapping[str, Any]) -> list[Problem]:
    api = str(version.get("ApiVersion", "0"))
    if tuple(int(part) for part in api.split(".")) >= MIN_API:
        return []
    return [Problem(f"Docker {version.get('Version')} speaks API {api}", "update to Docker 19.03 or later")]


def _context_host() -> str | None:
    from docker.context import ContextAPI

    with contextlib.suppress(Exception):  # a broken ~/.docker/config.json: the default address is tried
        context = ContextAPI.get_current_context()
        return str(context.Host) if context is not None and context.Host else None
    return None


def _refusal(response: Any) -> Refused:
    """Return the error in an answer: JSON with a message, or whatever a proxy in between says."""
    try:
        return Refused(response.status_code, str(response.json()["message"]).strip())
    except (ValueError, KeyError, TypeError):
        return Refused(response.status_code, f"{response.status_code} {response.reason}")


def _words(exc: Any) -> str:
    return str(exc.explanation or exc).strip()


def _why(exc: BaseException) -> str:
    """Return the innermost reason: the outer ones repeat it with class names around."""
    while exc.__cause__ is not None or exc.__context__ is not None:
        exc = exc.__cause__ or exc.__context__ or exc
    return str(exc) or type(exc).__name__


def stream_closer(response: Any) -> Callable[[], None]:
    """Return a function that ends a streamed answer, also while another thread is blocked reading it."""
    from docker.types import CancellableStream

    def close() -> None:
        with contextlib.suppress(Exception):  # it may have ended by itself just now
            CancellableStream(iter(()), response).close()
        response.close()

    return close
