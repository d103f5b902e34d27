"""Processes that a command starts and leaves running in the background, found again by pid and start time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from launch.errors import TemporaryError

_TAIL_LINES = 15
# A Popen that is forgotten warns that its process still runs, which is just what is wanted here; and a child must be
# polled to disappear once it has ended.
_children: dict[int, subprocess.Popen[bytes]] = {}


def start_time(pid: int) -> str | None:
    """Return when a process started, in words of the system's own; none if there is no such process.

    A pid alone may be another process's by now; a pid with its start time is not.
    """
    if pid in _children:
        _children[pid].poll()
    if sys.platform == "linux":
        fields = _stat(pid)
        return None if not fields or fields[0] in "ZX" else fields[19]
    state, _, started = _ps("stat=,lstart=", pid).partition(" ")
    return started.strip() if started and not state.startswith("Z") else None


def parent_of(pid: int) -> int | None:
    """Return the process id of a process's parent; none if there is no such process."""
    said = (_stat(pid) or ["", ""])[1] if sys.platform == "linux" else _ps("ppid=", pid)
    return int(said) if said else None


def _stat(pid: int) -> list[str]:
    """Return the fields of a process behind its name, empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _ps(columns: str, pid: int) -> str:
    done = subprocess.run(["ps", "-o", columns, "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.stdout.strip()


@dataclass(frozen=True)
class Background:
    """One background process of a launch home: ``<home>/run/<name>.json`` says which, ``<name>.log`` what it said."""

    name: str
    folder: Path

    @property
    def log(self) -> Path:
        """What it writes to its standard output and error."""
        return self.folder / f"{self.name}.log"

    @property
    def _file(self) -> Path:
        return self.folder / f"{self.name}.json"

    def pid(self) -> int | None:
        """Return its process id if it lives."""
        found = self._read()
        return found[0] if found and start_time(found[0]) == found[1] else None

    def argv(self) -> list[str]:
        """Return the command it was last started with, empty if it never was."""
        found = self._read()
        return found[2] if found else []

    def _read(self) -> tuple[int, str, list[str]] | None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            said = json.loads(self._file.read_text())
            return int(said["pid"]), str(said["started"]), [str(word) for word in said["argv"]]
        return None

    def start(self, argv: Sequence[str], env: Mapping[str, str]) -> int:
        """Start it in a session of its own, its log begun anew, and return its pid."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            child = subprocess.Popen(
                argv,
                env=dict(env),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _children[child.pid] = child
        said = {"pid": child.pid, "started": start_time(child.pid), "argv": list(argv)}
        temporary = self._file.with_suffix(".new")
        temporary.write_text(json.dumps(said) + "\n")
        temporary.replace(self._file)
        return child.pid

    def wait_until(self, is_ready: Callable[[], bool], *, timeout_s: float) -> None:
        """Return as soon as the process is ready.

        Raises:
            TemporaryError: it ended, or is not ready in time; the message ends with the last lines of its log.
        """
        deadline = time.monotonic() + timeout_s
        while not is_ready():
            if self.pid() is None:
                raise TemporaryError(self._with_tail(f"the {self.name} ended as it started"))
            if time.monotonic() > deadline:
                raise TemporaryError(self._with_tail(f"the {self.name} is not ready after {timeout_s:g} s"))
            time.sleep(0.05)

    def _with_tail(self, sentence: str) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-_TAIL_LINES:] if self.log.exists() else []
        return "\n".join([f"{sentence}; its log {self.log} ends with:", *(f"  {line}" for line in lines)])

    def stop(self, *, timeout_s: float) -> bool:
        """Ask it to end, kill it when it has not after ``timeout_s``, and return whether it lived."""
        pid = self.pid()
        if pid is None:
            self._file.unlink(missing_ok=True)
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        if not self._is_gone_within(timeout_s):
            with suppress(ProcessLookupError):
                # It leads its own session: what it started for itself goes with it, jobs have sessions of their own.
                os.killpg(pid, signal.SIGKILL)
            self._is_gone_within(timeout_s)
        self._file.unlink(missing_ok=True)
        return True

    def _is_gone_within(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self.pid() is not None:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True
