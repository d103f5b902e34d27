"""A Redis server of the world's own on its append-only file, to be killed and brought back."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from launch.errors import TemporaryError
from launch.servers import choose

_PATIENCE_S = 30.0


class RedisServer:
    """One server on loopback. Its data survive :meth:`kill`.

    Args:
        folder: where its data and log are.
        fsync: its ``appendfsync``.
    """

    def __init__(self, folder: Path, *, fsync: str) -> None:
        folder.mkdir(mode=0o700)
        self.folder = folder
        self.fsync = fsync
        self.program = choose(folder)
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """``redis://127.0.0.1:port/0``"""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def is_up(self) -> bool:
        """Whether its process lives; it may be stopped or loading."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it on what it has written before; it answers a little later."""
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "dir": self.folder,
            "appendonly": "yes",
            "appendfsync": self.fsync,
            "save": "",
            "daemonize": "no",
        }
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.program.binary, *words], stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )

    def wait_until_ready(self) -> None:
        """Return when it answers.

        Raises:
            TemporaryError: it does not.
        """
        until = time.monotonic() + _PATIENCE_S
        while not self.answers():
            if not self.is_up or time.monotonic() > until:
                tail = (self.folder / "log").read_text(errors="replace")[-1500:]
                raise TemporaryError(f"{self.program} does not start:\n{tail}")
            time.sleep(0.02)

    def answers(self) -> bool:
        """Whether it answers PING."""
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            connection.settimeout(1)
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
        return False

    def kill(self) -> None:
        """End it by SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it."""
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """Let it stand still, its connections open."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _end(self, number: int) -> None:
        self._signal(number)
        self.thaw()
        if self._process is not None:
            self._process.wait(30)
            self._process = None

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
