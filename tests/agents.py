"""Real agents for tests: ``launch agent`` as a user starts it, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from launch.store import RunStore

# Short lives, so that a test of a dead agent takes seconds; the code is the same.
QUICK = {"LAUNCH_HEARTBEAT_S": "0.5", "LAUNCH_DEAD_AFTER_S": "2", "LAUNCH_RECONCILE_S": "0.5"}


def wait_until(condition: Callable[[], Any], timeout_s: float = 30.0, what: str = "the condition") -> Any:
    """Return the first true value of a condition, or fail the test when it does not come."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.02)
    pytest.fail(f"{what} did not come about within {timeout_s:g} s")


class AgentProcess:
    """One ``launch agent``."""

    def __init__(self, environment: Mapping[str, str], log: Path, *options: str) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "launch", "agent", *options],
                env={**os.environ, **QUICK, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    def terminate(self) -> float:
        """Send SIGTERM and return how many seconds it took to be gone."""
        started = time.monotonic()
        self.process.terminate()
        self.process.wait(timeout=20)
        return time.monotonic() - started

    def kill(self) -> None:
        """SIGKILL the worker and its parent at once."""
        self.process.send_signal(signal.SIGSTOP)
        for child in self._children():
            os.kill(child, signal.SIGKILL)
        self.process.kill()
        self.process.wait(timeout=20)

    def _children(self) -> list[int]:
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in listed.split()]


class Fleet:
    """Starts agents against one Redis and one launch home, and ends those that a test leaves running."""

    def __init__(self, store: RunStore, redis_url: str, home: Path, folder: Path) -> None:
        self.store = store
        self.environment = {"LAUNCH_BROKER_URL": redis_url, "LAUNCH_HOME": str(home)}
        self._folder = folder
        self.agents: list[AgentProcess] = []

    def start(
        self,
        *queues: str,
        max_jobs: int = 1,
        name: str = "agent",
        options: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
    ) -> AgentProcess:
        """Start an agent and wait until it serves."""
        known = {agent.id for agent in self.store.agents()}
        queue_options = [item for queue in queues for item in ("-q", queue)]
        agent = AgentProcess(
            {**self.environment, **(environment or {})},
            self._folder / f"agent-{len(self.agents)}.log",
            *queue_options,
            *("--max-jobs", str(max_jobs), "--name", name),
            *(options or ("--tracking-url", "http://127.0.0.1:9")),
        )
        self.agents.append(agent)
        wait_until(
            lambda: agent.process.poll() is not None or {found.id for found in self.store.agents()} - known,
            what="the agent's first heartbeat",
        )
        assert agent.process.poll() is None, agent.log.read_text()
        return agent

    def end(self) -> None:
        for agent in self.agents:
            if agent.process.poll() is None:
                agent.terminate()


@contextmanager
def a_fleet(store: RunStore, redis_url: str, home: Path, folder: Path) -> Iterator[Fleet]:
    """Yield a fleet that is gone afterwards."""
    fleet = Fleet(store, redis_url, home, folder)
    try:
        yield fleet
    finally:
        fleet.end()
