"""The record of every queue, run and agent, in Redis: the truth that messages only point at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis import Redis

from launch.models import Cause, Fence, LaunchSpec, Model, QueueSpec, RunRecord, RunState


class AgentRecord(Model):
    id: str  # incarnation: name + boot id
    name: str
    host: str
    pid: int
    version: str
    queues: tuple[str, ...]
    localities: tuple[str, ...]
    max_jobs: int
    runs: tuple[str, ...]  # run ids in its slots
    state: str  # "serving" | "draining" | "detaching" | "blocked"
    problems: tuple[str, ...] = ()  # what keeps it from taking runs, for people
    started_at: float
    heartbeat_at: float
    is_alive: bool


@dataclass(frozen=True)
class QueueCounts:
    waiting: int
    held: int
    delayed: int
    active: int


@dataclass(frozen=True)
class LogEntry:
    id: str  # stream id: give the last one back to read on
    stream: str  # "stdout" | "stderr" | "build"
    text: str  # a chunk, not necessarily whole lines


@dataclass(frozen=True)
class RunEvent:
    id: str
    at: float
    state: RunState
    attempt: int
    note: str


class RunStore:
    def __init__(self, redis: Redis) -> None: ...  # decode_responses=True connection
    @classmethod
    def connect(
        cls, url: str, *, timeout_s: float = 5.0
    ) -> RunStore: ...  # TemporaryError naming the URL (password masked)

    redis: Redis

    def installation(self) -> str: ...  # 8 hex digits, made once
    def now(self) -> float: ...

    # queues
    def create_queue(self, spec: QueueSpec) -> QueueSpec: ...  # same again: returned; other: ConflictError
    def queue(self, name: str) -> QueueSpec: ...  # NotFoundError listing the queues
    def queues(self) -> list[QueueSpec]: ...  # by name
    def queue_config(self, name: str, version: int) -> dict[str, Any]: ...
    def set_paused(self, name: str, paused: bool) -> None: ...
    def counts(self, names: Iterable[str]) -> dict[str, QueueCounts]: ...

    # runs: producers and readers
    def enqueue(self, spec: LaunchSpec) -> RunRecord: ...  # same id and spec: that run; other spec: ConflictError
    def enqueue_many(self, specs: Sequence[LaunchSpec]) -> list[RunRecord]: ...
    def record(self, run_id: str) -> RunRecord: ...  # NotFoundError
    def records(self, run_ids: Sequence[str]) -> list[RunRecord]: ...
    def runs(
        self, *, queue: str | None = None, states: Iterable[RunState] | None = None, limit: int = 50
    ) -> list[RunRecord]: ...  # newest first
    def position(self, run_id: str) -> int | None: ...  # 1 = next; None when not waiting
    def request_stop(self, run_id: str, *, by: str, grace_s: float) -> RunRecord: ...  # as it is afterwards
    def read_log(self, run_id: str, after: str = "0", limit: int = 500) -> list[LogEntry]: ...
    def read_history(self, run_id: str, after: str = "0", limit: int = 1000) -> list[tuple[str, dict[str, Any]]]: ...
    def read_events(self, run_id: str, after: str = "0") -> list[RunEvent]: ...
    def wait_for_news(
        self, run_id: str, *, log: str | None, history: str | None, events: str | None, timeout_s: float
    ) -> bool:
        ...
        # blocks until one of the named streams has something after the given id ("0" from the start), or timeout: False

    # agents
    def agents(self) -> list[AgentRecord]: ...  # live first

    # the tracking server
    def announce_server(self, urls: Sequence[str]) -> None: ...  # call it every 3 s; forgotten after 10 s
    def withdraw_server(self) -> None: ...
    def server_urls(self) -> list[str]: ...  # of a live server; empty: none
