"""The world's agents: ``launch agent`` as a user starts it, in processes of their own, started again when they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_RESTART_S = 1.0
_GOODBYE_S = 20.0


class AgentProcess:
    """One agent of the world, over all its incarnations.

    Args:
        name: what it is called.
        queues: what it serves.
        max_jobs: its slots.
        environment: all of its environment.
        log: the file that all its incarnations write to.
    """

    def __init__(
        self, name: str, queues: Sequence[str], max_jobs: int, environment: Mapping[str, str], log: Path
    ) -> None:
        self.name = name
        self.queues = tuple(queues)
        self.max_jobs = max_jobs
        self.log = log
        self.starts = 0
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._may_start_at = 0.0

    def keep_alive(self) -> None:
        """Start it if it does not live; what ended a moment ago has a moment's rest."""
        if self.is_alive:
            return
        if self._process is not None:
            self._process = None
            self._may_start_at = time.monotonic() + _RESTART_S
        if time.monotonic() >= self._may_start_at:
            self._start()

    def _start(self) -> None:
        queues = [word for queue in self.queues for word in ("-q", queue)]
        options = ["--name", self.name, "--max-jobs", str(self.max_jobs), "--tracking-url", "http://127.0.0.1:9"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "launch", "agent", *queues, *options],
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        self.starts += 1

    @property
    def is_alive(self) -> bool:
        """Whether the parent lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def worker(self) -> int | None:
        """The pid of the Celery worker, if it lives."""
        if not self.is_alive:
            return None
        assert self._process is not None
        with suppress(OSError):
            listed = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
            return next((int(pid) for pid in listed.split()), None)
        return None

    def kill_worker(self) -> bool:
        """SIGKILL the worker; false if there is none."""
        worker = self.worker
        return worker is not None and _send(worker, signal.SIGKILL)

    def kill_parent(self) -> bool:
        """SIGKILL the parent, and leave the worker to notice."""
        if not self.is_alive or self.worker is None:
            return False
        assert self._process is not None
        self._process.kill()
        return True

    def kill_both(self) -> bool:
        """SIGKILL worker and parent, neither of which sees the other go."""
        worker = self.worker
        if worker is None:
            return False
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        _send(worker, signal.SIGKILL)
        self._process.kill()
        return True

    def freeze(self) -> int | None:
        """Let the worker stand still; returns which, to be continued by :func:`thaw`."""
        worker = self.worker
        return worker if worker is not None and _send(worker, signal.SIGSTOP) else None

    def terminate(self) -> bool:
        """Send SIGTERM; false if there is nobody to hear it."""
        if not self.is_alive:
            return False
        assert self._process is not None
        self._process.terminate()
        return True

    def end(self) -> float | None:
        """Send SIGTERM and return how many seconds it took to be gone; none: it had to be killed."""
        if self._process is None:
            return 0.0
        began = time.monotonic()
        self.terminate()
        try:
            self._process.wait(_GOODBYE_S)
        except subprocess.TimeoutExpired:
            self.kill_both()
            self._process.kill()
            self._process.wait(_GOODBYE_S)
            return None
        return time.monotonic() - began


def thaw(pid: int) -> None:
    """Let a worker go on, if it is still there."""
    _send(pid, signal.SIGCONT)


def _send(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
