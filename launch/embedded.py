"""The private broker of a launch home: found, or started and left running.

One Valkey or Redis server that listens on a unix socket and nothing else, so that no job and no other user reaches it.
It runs in a session of its own: it outlives whoever started it. Below ``<home>/broker/`` (mode 0700)::

    broker.sock      where it listens; in /tmp/openlaunch-<uid>-<hash of home>/ when this path would be too long
    appendonlydir/   the data, synced every second
    maker.json       which server wrote the data: another may not be able to read it
    data.lock        locked by the server for as long as it lives: never two servers on one data directory
    broker.pid, broker.log

The lock is taken before the server starts and handed to it as an open file, so there is no moment in which two
starters both believe that nobody else is starting, and none that a kill could leave behind.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from urllib.parse import quote

from launch.errors import ConfigError, TemporaryError
from launch.home import make_home
from launch.servers import Server, choose
from launch.settings import Settings

LOADING_LIMIT_S = 120.0
"""How long a server may read its data at start: about 1 GB in ten seconds."""

_MAX_SOCKET_PATH = 103
"""Bytes; macOS has room for 104 with the closing zero, Linux for 108."""

_PING_TIMEOUT_S = 1.0
_INHERITED = ("PATH", "HOME", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""All of the starter's environment that a server gets: what it outlives should not keep that one's secrets."""


def broker_url(settings: Settings, *, start: bool = True) -> str:
    """Return the broker's URL as kombu takes it, of a server that answers.

    ``LAUNCH_BROKER_URL`` is returned as it is, unasked. Else it is the embedded broker's, started if need be.

    Args:
        start: whether to start one that does not run.

    Raises:
        ConfigError: there is no server program to start, or none that can read the data there is.
        TemporaryError: it does not answer or does not start; or it does not run and ``start`` is false.
    """
    if settings.broker_url:
        return settings.broker_url
    place = _Place.of(settings.home)
    _wait_until_ready(place, settings.connect_timeout_s, start=start)
    return place.url


def running(settings: Settings) -> str | None:
    """Return the URL of the home's embedded broker if it runs, even if it is still loading its data.

    ``LAUNCH_BROKER_URL`` does not count: this is about the server that ``stop_broker`` would end.
    """
    place = _Place.of(settings.home)
    return place.url if place.is_held() else None


def stop_broker(settings: Settings, *, timeout_s: float = 10.0) -> bool:
    """End the home's embedded broker, its data written, and wait until it is gone.

    Returns:
        Whether there was one.

    Raises:
        TemporaryError: it is still there after ``timeout_s``.
    """
    place = _Place.of(settings.home)
    if not place.is_held():
        return False
    deadline = time.monotonic() + timeout_s
    while place.is_held():
        if _ask(place.socket, b"PING") is not _Answer.ABSENT:
            _ask(place.socket, b"SHUTDOWN")
        elif place.pid() is not None:
            _terminate(place)
        if time.monotonic() > deadline:
            raise TemporaryError(f"the broker (pid {place.pid()}) does not end; its log is {place.log}")
        time.sleep(0.02)
    with place.lock() as fd:
        if fd is not None and place.is_elsewhere:
            shutil.rmtree(place.socket.parent, ignore_errors=True)
    return True


# --- where it is -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """The files of one home's broker."""

    folder: Path
    socket: Path

    @classmethod
    def of(cls, home: Path) -> _Place:
        # Resolved, so that every spelling of one home leads to one socket.
        folder = home.expanduser().resolve() / "broker"
        own = folder / "broker.sock"
        return cls(folder, own if len(os.fsencode(own)) <= _MAX_SOCKET_PATH else _short_folder(folder) / own.name)

    @property
    def url(self) -> str:
        return f"redis+socket://{quote(str(self.socket))}"

    @property
    def is_elsewhere(self) -> bool:
        """Whether the socket has a folder of its own, its path in the home being too long."""
        return self.socket.parent != self.folder

    @property
    def log(self) -> Path:
        return self.folder / "broker.log"

    def is_held(self) -> bool:
        """Whether a server lives on this data."""
        try:
            if not (self.folder / "data.lock").exists():
                return False
            with self.lock() as mine:
                return mine is None
        except PermissionError as exc:
            raise ConfigError(f"LAUNCH_HOME: {exc.filename} is another user's; choose a home of your own") from exc

    @contextmanager
    def lock(self) -> Iterator[int | None]:
        """Yield the data lock's file descriptor, or none if a server holds it."""
        fd = os.open(self.folder / "data.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            yield fd if _try_lock(fd, self.folder) else None
        finally:
            os.close(fd)

    def pid(self) -> int | None:
        """Return the process id the server wrote."""
        with suppress(OSError, ValueError):
            return int((self.folder / "broker.pid").read_text())
        return None


def _short_folder(folder: Path) -> Path:
    # Not in XDG_RUNTIME_DIR: that is emptied at logout, which the broker outlives, and is unset in cron and services,
    # which must find the same socket.
    return Path("/tmp") / f"openlaunch-{os.getuid()}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}"  # noqa: S108


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"LAUNCH_HOME: {exc.filename} cannot be made: {exc.strerror}") from exc


def _check_private(folder: Path) -> None:
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(
            f"LAUNCH_HOME: its path is too long to hold a socket, and {folder}, used instead, is not a private folder "
            "of this user; remove that folder, or choose a shorter LAUNCH_HOME"
        )


def _try_lock(fd: int, folder: Path) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as exc:
        raise ConfigError(
            f"LAUNCH_HOME: files in {folder} cannot be locked ({exc.strerror}); choose a home on a local disk"
        ) from exc
    return True


# --- whether it answers ----------------------------------------------------------------------------------------------


class _Answer(Enum):
    READY = auto()
    LOADING = auto()
    """It reads its data."""
    SILENT = auto()
    """It accepts, and does not answer."""
    ABSENT = auto()
    """Nobody listens there."""


def _ask(path: Path, command: bytes) -> _Answer:
    # By hand: redis-py takes ten times as long to import as this takes to find or start a server.
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_PING_TIMEOUT_S)
        try:
            connection.connect(str(path))
            connection.sendall(command + b"\r\n")
            reply = connection.recv(64)
        except (TimeoutError, BlockingIOError):
            return _Answer.SILENT
        except (FileNotFoundError, NotADirectoryError, ConnectionError):
            return _Answer.ABSENT
        except PermissionError as exc:
            raise ConfigError(f"LAUNCH_HOME: {path} is another user's; choose a home of your own") from exc
        except OSError as exc:
            raise TemporaryError(f"the broker's socket {path} cannot be used: {exc.strerror}") from exc
    if not reply:
        return _Answer.ABSENT
    return _Answer.LOADING if reply.startswith(b"-LOADING") else _Answer.READY


def _wait_until_ready(place: _Place, patience_s: float, *, start: bool) -> None:
    began, pause, started = time.monotonic(), 0.002, False
    while (answer := _ask(place.socket, b"PING")) is not _Answer.READY:
        if answer is _Answer.ABSENT and not place.is_held():
            _check_may_start(place, start=start, started=started)
            started = _start_unless_alive(place)
        if time.monotonic() - began > (LOADING_LIMIT_S if answer is _Answer.LOADING else patience_s):
            raise TemporaryError(_unready(place, answer, time.monotonic() - began))
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)


def _unready(place: _Place, answer: _Answer, waited_s: float) -> str:
    who = f"the embedded broker of {place.folder.parent} (pid {place.pid()})"
    if answer is _Answer.LOADING:
        return f"{who} is still reading its data after {waited_s:.0f} s; try again"
    if answer is _Answer.SILENT:
        return f"{who} does not answer after {waited_s:.0f} s; is it suspended? Its log is {place.log}"
    return f"{who} runs, but its socket {place.socket} is gone; end it with 'launch down --force', then try again"


# --- starting and ending it ------------------------------------------------------------------------------------------


def _check_may_start(place: _Place, *, start: bool, started: bool) -> None:
    if not start:
        raise TemporaryError(
            f"no broker runs for {place.folder.parent}; start one with 'launch up', or name one with LAUNCH_BROKER_URL"
        )
    if started:
        tail = place.log.read_text(errors="replace").splitlines()[-5:] if place.log.exists() else []
        raise TemporaryError("\n".join([f"the broker ended as it started; its log {place.log} ends with:", *tail]))


def _start_unless_alive(place: _Place) -> bool:
    """Start a server, or return false if another starter was faster."""
    make_home(place.folder.parent)
    _make_private(place.folder)
    with place.lock() as fd:
        if fd is not None:
            if place.is_elsewhere:
                _make_private(place.socket.parent)
                _check_private(place.socket.parent)
            _run_server(place, choose(place.folder), fd)
        return fd is not None


def _run_server(place: _Place, server: Server, lock_fd: int) -> None:
    done = subprocess.run(
        [server.binary, *_options(place)],
        env={name: os.environ[name] for name in _INHERITED if name in os.environ},
        pass_fds=[lock_fd],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        umask=0o077,
        check=False,
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise TemporaryError(f"the broker did not start: {server.binary} said {said[-500:]!r}; its log is {place.log}")


def _options(place: _Place) -> list[str]:
    # fmt: off
    return [
        "--port", "0",
        "--unixsocket", str(place.socket),
        "--unixsocketperm", "700",
        "--daemonize", "yes",
        "--dir", str(place.folder),
        "--pidfile", str(place.folder / "broker.pid"),
        "--logfile", str(place.log),
        # The record of runs is here and nowhere else: keep it, and rather refuse a write than forget a run.
        "--appendonly", "yes",
        "--appendfsync", "everysec",
        "--aof-load-truncated", "yes",
        "--save", "",
        "--maxmemory-policy", "noeviction",
    ]
    # fmt: on


def _terminate(place: _Place) -> None:
    """End a server whose socket was removed from under it."""
    pid = place.pid()
    if pid is not None and _is_server(pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _is_server(pid: int) -> bool:
    # The number may be another process's by now, or the home may be shared with another machine.
    try:
        title = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        ps = ["ps", "-o", "command=", "-p", str(pid)]
        title = subprocess.run(ps, capture_output=True, text=True, check=False).stdout
    return "valkey-server" in title or "redis-server" in title
