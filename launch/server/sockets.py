"""The server's addresses: sockets, the port that is kept in the launch home, the Docker bridge.

Below ``<home>/server/``: ``port``, which running jobs hold in their URL, and ``lock``, held by the one server there is.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from launch.errors import ConfigError, ConflictError, TemporaryError
from launch.home import make_home

LOOPBACK = "127.0.0.1"
ANYWHERE = ("0.0.0.0", "::")  # noqa: S104
BRIDGE = "docker0"
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
    folder = make_home(home) / "server"
    folder.mkdir(exist_ok=True)
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
