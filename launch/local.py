"""A whole installation on this machine: what ``launch up``, ``down`` and ``run`` start and end.

The embedded broker, a tracking server and an agent, each a background process that outlives the command. Below
``<home>/run/``: a file and a log for each, and the lock that makes starting and ending one at a time. All of it may be
repeated: what runs already is left alone.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

from launch.embedded import broker_url, running, stop_broker
from launch.errors import ConflictError, NotFoundError
from launch.home import make_home
from launch.models import RunState
from launch.processes import Background, parent_of, start_time
from launch.queue_spec import queue_spec
from launch.records import AgentRecord
from launch.settings import Settings
from launch.store import RunStore

LOCAL_QUEUE = "local"
_READY_S = 30.0
_LIVE = (RunState.BUILDING, RunState.STARTING, RunState.RUNNING)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Local:
    """The background processes of one launch home."""

    settings: Settings

    @property
    def folder(self) -> Path:
        """Where their files are."""
        return self.settings.home / "run"

    @property
    def server(self) -> Background:
        """The tracking server."""
        return Background("server", self.folder)

    @property
    def agent(self) -> Background:
        """The agent."""
        return Background("agent", self.folder)

    def up(self, say: Say, *, queues: Sequence[str] = (LOCAL_QUEUE,), max_jobs: int | None = None) -> str:
        """Start what does not run yet, and return the broker's URL once everything is ready.

        Args:
            say: called with one sentence for each thing that was started.
            queues: what the agent serves; the queue ``local`` is made if it is among them and missing.
            max_jobs: how many runs the agent takes at once; none: its default.

        Raises:
            TemporaryError: something does not come up; the message ends with the last lines of its log.
            ConflictError: the agent runs already, for other queues.
        """
        with self._lock():
            was_running = self.settings.broker_url is not None or running(self.settings) is not None
            url = broker_url(self.settings, start=True)
            if not was_running:
                say(f"started the broker in {self.settings.home}")
            store = RunStore.connect(url, timeout_s=self.settings.connect_timeout_s)
            try:
                _make_queues(store, queues, say)
                self._up_server(store, say)
                self._up_agent(store, queues, max_jobs, say)
            finally:
                store.redis.close()
            return url

    def _up_server(self, store: RunStore, say: Say) -> None:
        if self.server.pid() is None:
            if any(_accepts(url) for url in store.server_urls()):
                return
            store.withdraw_server()
            # -P: a `launch` or `workers` in the folder it starts in is the user's, not ours.
            self.server.start([sys.executable, "-P", "-m", "launch", "server"], self._environ())
            say(f"started the server (log: {self.server.log})")
        self.server.wait_until(lambda: bool(store.server_urls()), timeout_s=_READY_S)

    def _up_agent(self, store: RunStore, queues: Sequence[str], max_jobs: int | None, say: Say) -> None:
        if self.agent.pid() is None:
            if _serving(store, queues):
                return
            words = [word for name in queues for word in ("-q", name)]
            words += ["--max-jobs", str(max_jobs)] if max_jobs is not None else []
            self.agent.start([sys.executable, "-P", "-m", "launch", "agent", *words], self._environ())
            say(f"started an agent for {', '.join(queues)} (log: {self.agent.log})")
        else:
            _check_serves(self.agent.argv(), queues)
        self.agent.wait_until(lambda: bool(_serving(store, queues)), timeout_s=_READY_S)
        for problem in dict.fromkeys(problem for agent in _serving(store, queues) for problem in agent.problems):
            say(f"the agent takes no runs yet: {problem}")

    def _environ(self) -> dict[str, str]:
        """The environment, with the settings in it by name: they may have come from elsewhere."""
        given = self.settings.model_dump(exclude_none=True)
        named = {f"LAUNCH_{name.upper()}": str(value) for name, value in given.items()}
        # Their logs are files, but of one machine, for the person at it.
        return {**os.environ, "LAUNCH_LOG_FORMAT": "text", **named}

    def live_runs(self) -> list[str]:
        """Return the ids of runs at work that ``down`` would leave without an agent.

        With an embedded broker these are all of its runs, with another broker those of this machine's agents.
        """
        url = self.settings.broker_url or running(self.settings)
        if url is None or (self.settings.broker_url and self.agent.pid() is None):
            return []
        store = RunStore.connect(url, timeout_s=self.settings.connect_timeout_s)
        try:
            here = {agent.id for agent in store.agents() if agent.host == socket.gethostname()}
            live = store.runs(states=_LIVE, limit=10_000)
            return [run.id for run in live if not self.settings.broker_url or run.agent in here]
        finally:
            store.redis.close()

    def other_agents(self) -> list[AgentRecord]:
        """Return the living agents that use the embedded broker and are not the one that ``up`` has started.

        Raises:
            TemporaryError: the broker runs, but does not answer.
        """
        url = running(self.settings)
        if url is None:
            return []
        store = RunStore.connect(url, timeout_s=self.settings.connect_timeout_s)
        try:
            agents = store.agents(dead_after_s=self.settings.dead_after_s)
        finally:
            store.redis.close()
        own, here = self.agent.pid(), socket.gethostname()
        return [agent for agent in agents if _lives(agent, here) and (own is None or parent_of(agent.pid) != own)]

    def down(self, say: Say, *, only_agent: bool = False) -> None:
        """End the agent (its runs go on at their targets) and, unless others need them, server and embedded broker."""
        with self._lock():
            if self.agent.stop(timeout_s=10.0):
                say("ended the agent")
            if only_agent:
                return
            if self.server.stop(timeout_s=10.0):
                say("ended the server")
            if stop_broker(self.settings):
                say("ended the broker; its data stays")

    @contextmanager
    def _lock(self) -> Iterator[None]:
        make_home(self.settings.home)
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _make_queues(store: RunStore, queues: Sequence[str], say: Say) -> None:
    for name in queues:
        try:
            store.queue(name)
        except NotFoundError:
            if name != LOCAL_QUEUE:
                raise
            store.create_queue(queue_spec(LOCAL_QUEUE, "process", None, "safe", False, None))
            say(f"made the queue {LOCAL_QUEUE!r} (resource: process)")


def _serving(store: RunStore, queues: Sequence[str]) -> list[AgentRecord]:
    """Return the living agents on this machine that serve all the queues."""
    here = socket.gethostname()
    return [
        agent
        for agent in store.agents()
        if agent.host == here and _lives(agent, here) and set(queues) <= set(agent.queues)
    ]


def _lives(agent: AgentRecord, here: str) -> bool:
    # One that was killed a moment ago still counts as alive in the record.
    return agent.is_alive and (agent.host != here or start_time(agent.pid) is not None)


def _check_serves(argv: Sequence[str], queues: Sequence[str]) -> None:
    serves = [word for flag, word in pairwise(argv) if flag == "-q"]
    missing = sorted(set(queues) - set(serves))
    if missing:
        raise ConflictError(
            f"the agent runs already and serves {', '.join(serves)}, not {', '.join(missing)}; start another with "
            f"`launch agent -q {missing[0]}`, or end this one first with `launch down`"
        )


def _accepts(url: str) -> bool:
    """Whether something listens at the URL: a server that was killed stays announced for some seconds."""
    parts = urlsplit(url)
    with suppress(OSError, ValueError), socket.create_connection((parts.hostname or "", parts.port or 80), timeout=1.0):
        return True
    return False
