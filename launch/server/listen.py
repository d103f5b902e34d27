"""Where the server listens, and for how long: sockets, the port that is kept, signals, announcements.

It listens on loopback for jobs on this machine and on the gateway address of the Docker bridge, if there is one, for
jobs in containers. Docker may be started later, so the bridge is looked for again and again. Never on all addresses
unless ``--host`` says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import random
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from launch.errors import ConfigError, ConflictError, LaunchError, TemporaryError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from launch.store import RunStore

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
ANYWHERE = ("0.0.0.0", "::")  # noqa: S104
BRIDGE = "docker0"
ANNOUNCE_S = 3.0
"""The store forgets a server that has not announced itself for 10 s."""
_DRAIN_S = 0.5
_FORCE_S = 0.9
# Below the ports that Linux and macOS hand out to outgoing connections, which would now and then be in the way.
_PORTS = range(20000, 30000)
_SIOCGIFADDR = 0x8915


def bridge_address(name: str = BRIDGE) -> str | None:
    """Return the IPv4 address of a network interface of this machine; none if it is not there (or not Linux)."""
    if not sys.platform.startswith("linux"):
        return None
    request = struct.pack("256s", name.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])


@contextlib.contextmanager
def only_server_of(home: Path) -> Iterator[Path]:
    """Hold the server's folder of a launch home, so that there is one server only.

    Raises:
        ConflictError: another process holds it.
    """
    folder = home / "server"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            lock.seek(0)
            raise ConflictError(f"a tracking server of {home} is running already, as process {lock.read()}") from exc
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield folder


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address, not listening yet.

    Raises:
        OSError: it is taken, or not this machine's.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def bind_kept_port(folder: Path, configured: int | None, *, host: str = LOOPBACK) -> socket.socket:
    """Return a socket at the server's port: the configured one, or the one that the folder remembers.

    Raises:
        ConflictError: the port is taken by another program. Another one would do no good, since running jobs hold it.
    """
    kept = folder / "port"
    port = configured or _read_port(kept)
    if port is None:
        bound = _bind_free_port(host)
    else:
        bound = _bind_or_explain(host, port, kept, is_configured=configured is not None)
    kept.write_text(f"{bound.getsockname()[1]}\n")
    return bound


def _read_port(kept: Path) -> int | None:
    text = kept.read_text().strip() if kept.exists() else ""
    if text and not (text.isdigit() and 0 < int(text) < 65536):
        raise ConfigError(f"{kept}: should hold a port, not {text[:40]!r}; delete it to have one chosen")
    return int(text) if text else None


def _bind_free_port(host: str) -> socket.socket:
    # Its own randomness: another seed would have two fresh installations fight for one port.
    for port in random.SystemRandom().sample(_PORTS, 50):
        with contextlib.suppress(OSError):
            return bind(host, port)
    raise TemporaryError(f"none of 50 ports between {_PORTS[0]} and {_PORTS[-1]} is free; set LAUNCH_TRACKING_PORT")


def _bind_or_explain(host: str, port: int, kept: Path, *, is_configured: bool) -> socket.socket:
    try:
        return bind(host, port)
    except OSError as exc:
        source = "LAUNCH_TRACKING_PORT" if is_configured else str(kept)
        fix = "choose another there" if is_configured else f"if no job runs, delete {kept} to have another chosen"
        raise ConflictError(
            f"port {port} ({source}) is taken by another program ({exc.strerror}): end that one, since running jobs "
            f"report to this port, or {fix}"
        ) from exc


def bind_all(folder: Path, configured: int | None, hosts: Sequence[str]) -> list[tuple[str, socket.socket]]:
    """Return ``[(host, bound socket)]`` for loopback and the hosts that ``--host`` names, all at the server's port.

    ``0.0.0.0`` or ``::`` among them takes the place of all others.

    Raises:
        ConfigError: one is not an address of this machine, or the port is taken there.
        ConflictError: the port is taken by another program.
    """
    first = next((host for host in hosts if host in ANYWHERE), LOOPBACK)
    bound = [(first, bind_kept_port(folder, configured, host=first))]
    if first in ANYWHERE:
        return bound
    port = bound[0][1].getsockname()[1]
    for host in dict.fromkeys(hosts):
        if host in (LOOPBACK, "localhost"):
            continue
        try:
            bound.append((host, bind(host, port)))
        except OSError as exc:
            for _, other in bound:
                other.close()
            raise ConfigError(f"--host {host}: cannot listen on it at port {port}: {exc.strerror}") from exc
    return bound


class _Listener(uvicorn.Server):
    """uvicorn on one address, whose signals are ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Listeners:
    """The addresses the server answers at."""

    def __init__(self, app: FastAPI, port: int) -> None:
        self._app = app
        self._port = port
        self._open: dict[str, tuple[_Listener, asyncio.Task[None]]] = {}
        self._wished: dict[str, None] = {}
        self._complained: set[str] = set()

    def open(self, host: str, bound: socket.socket) -> None:
        """Answer at a bound socket."""
        config = uvicorn.Config(
            self._app,
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            # Longer than the heartbeat of the SDK, which then keeps its connection.
            timeout_keep_alive=75,
        )
        listener = _Listener(config)
        self._open[host] = (listener, asyncio.create_task(listener.serve(sockets=[bound])))

    def open_if_possible(self, host: str) -> None:
        """Answer at an address too, or say once why not."""
        self._wished.setdefault(host)
        if host in self._open or any(everywhere in self._open for everywhere in ANYWHERE):
            return
        try:
            self.open(host, bind(host, self._port))
        except OSError as exc:
            if host not in self._complained:
                log.warning("not listening on %s:%d yet: %s", host, self._port, exc.strerror)
            self._complained.add(host)

    @property
    def urls(self) -> list[str]:
        """Where it answers, loopback first."""
        hosts = list(self._open)
        if any(host in ANYWHERE for host in hosts):
            hosts = [LOOPBACK, *self._wished]
        return [f"http://{f'[{host}]' if ':' in host else host}:{self._port}" for host in hosts]

    async def ready(self) -> None:
        """Wait until all answer."""
        while not all(listener.started for listener, _ in self._open.values()):
            await asyncio.sleep(0.005)

    async def close(self) -> None:
        """Take no more connections, and end as soon as the requests that came are answered, or in half a second."""
        for listener, _ in self._open.values():
            listener.should_exit = True
        tasks = [task for _, task in self._open.values()]
        await asyncio.wait(tasks, timeout=_DRAIN_S)
        for listener, _ in self._open.values():
            listener.force_exit = True
        await asyncio.wait(tasks, timeout=_DRAIN_S / 2)


def run(
    app: FastAPI,
    store: RunStore,
    sockets: Sequence[tuple[str, socket.socket]],
    *,
    bridge: str | None = BRIDGE,
    on_ready: Callable[[list[str]], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, which end it within a second.

    Args:
        app: the application.
        store: told every three seconds where the server is.
        sockets: ``[(host, bound socket)]``, all at the same port.
        bridge: a network interface to listen on as well whenever it is there.
        on_ready: called with the URLs once they answer.
    """
    asyncio.run(_run(app, store, sockets, bridge, on_ready))


async def _run(
    app: FastAPI,
    store: RunStore,
    sockets: Sequence[tuple[str, socket.socket]],
    bridge: str | None,
    on_ready: Callable[[list[str]], None] | None,
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop_soon, stop)
    listeners = Listeners(app, sockets[0][1].getsockname()[1])
    for host, bound in sockets:
        listeners.open(host, bound)
    _look_for_bridge(listeners, bridge)
    await listeners.ready()
    await _announce(store, listeners)
    if on_ready is not None:
        on_ready(listeners.urls)
    while not await _is_set_within(stop, ANNOUNCE_S):
        _look_for_bridge(listeners, bridge)
        await _announce(store, listeners)
    await _withdraw(store)
    await listeners.close()


def _stop_soon(stop: asyncio.Event) -> None:
    stop.set()
    # A request may hang in a Redis that does not answer; all it has not written yet is posted again by the SDK.
    timer = threading.Timer(_FORCE_S, os._exit, args=(0,))
    timer.daemon = True
    timer.start()


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()


def _look_for_bridge(listeners: Listeners, bridge: str | None) -> None:
    address = bridge_address(bridge) if bridge else None
    if address is not None:
        listeners.open_if_possible(address)


async def _announce(store: RunStore, listeners: Listeners) -> None:
    try:
        await asyncio.to_thread(store.announce_server, listeners.urls)
    except LaunchError as exc:
        log.warning("the server cannot be announced: %s", exc)


async def _withdraw(store: RunStore) -> None:
    with contextlib.suppress(LaunchError, TimeoutError):
        await asyncio.wait_for(asyncio.to_thread(store.withdraw_server), _DRAIN_S)
