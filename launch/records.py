"""How records stand in Redis' hashes, and the small ones that have no model of their own. No I/O here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from launch.errors import NewerVersionError
from launch.models import SCHEMA_VERSION, AttemptRecord, Cause, Fence, LaunchSpec, RunRecord, RunState, StopRequest


@dataclass(frozen=True)
class QueueCounts:
    """How many runs of a queue are where."""

    waiting: int
    held: int
    delayed: int
    active: int


@dataclass(frozen=True)
class LogEntry:
    """A piece of a run's log."""

    id: str
    """Give the last one back to read on."""
    stream: str
    """``stdout``, ``stderr`` or ``build``."""
    text: str
    """Not necessarily whole lines."""


@dataclass(frozen=True)
class RunEvent:
    """Something that happened in a run's life."""

    id: str
    at: float
    state: RunState
    attempt: int
    note: str


@dataclass(frozen=True)
class AgentRecord:
    """An agent as it last described itself."""

    id: str
    """Its incarnation: name and boot id. An agent started anew is another one."""
    name: str
    host: str
    pid: int
    version: str
    queues: tuple[str, ...]
    localities: tuple[str, ...]
    max_jobs: int
    runs: tuple[str, ...]
    """Ids of the runs in its slots."""
    state: str
    """``serving``, ``draining`` or ``blocked``."""
    problems: tuple[str, ...]
    """What keeps it from taking runs, for people."""
    started_at: float
    heartbeat_at: float
    is_alive: bool
    tracking_url: str | None = None
    """Where its jobs reach the tracking server, if it was told; none: wherever the server says it listens."""
    outdated: tuple[str, ...] = ()
    """Queues whose next run was written by a later version of openlaunch: it takes no run of these."""
    has_namesake: bool = False
    """Whether another living agent has its name."""

    @property
    def label(self) -> str:
        """What to call it: its name, or its id where the name does not tell it from another that lives."""
        return self.id if self.has_namesake else self.name


@dataclass(frozen=True)
class Wishes:
    """What somebody has asked of an agent."""

    max_jobs: int | None
    drain: bool


def spec_to_json(spec: LaunchSpec) -> str:
    """Return a launch as records and messages hold it: compact, no defaults, the same text for the same launch."""
    data = spec.model_dump(mode="json", exclude_defaults=True)
    # The kind of the source is a default of its class, yet it is what tells the classes apart.
    data["job"]["source"]["kind"] = spec.job.source.kind
    data["schema_version"] = spec.schema_version
    return json.dumps(data, separators=(",", ":"), sort_keys=True, allow_nan=False, ensure_ascii=False)


def spec_from_json(text: str) -> LaunchSpec:
    """Return the launch that a record holds.

    Raises:
        NewerVersionError: a later version of openlaunch wrote it.
    """
    try:
        spec = LaunchSpec.model_validate_json(text)
        version = spec.schema_version
    except ValidationError:
        version = json.loads(text).get("schema_version", SCHEMA_VERSION)
        if version <= SCHEMA_VERSION:
            raise
    if version > SCHEMA_VERSION:
        raise NewerVersionError(
            f"run {json.loads(text).get('run_id')} was written by a later version of openlaunch (form {version}, and "
            f"this one knows {SCHEMA_VERSION}): update openlaunch here; nothing of the run was touched"
        )
    return spec


def run_from_hash(raw: Mapping[str, str]) -> RunRecord:
    """Return the run that a record's hash holds. Raises NewerVersionError as :func:`spec_from_json` does."""
    epoch, nonce = int(raw.get("epoch", 0)), raw.get("nonce", "")
    return RunRecord(
        spec=spec_from_json(raw["spec"]),
        state=RunState(raw["state"]),
        seq=int(raw["seq"]),
        attempt=int(raw.get("attempt", 0)),
        attempts=tuple(AttemptRecord.model_validate(item) for item in json.loads(raw.get("attempts", "[]"))),
        memory_factor=float(raw.get("memory_factor", 1.0)),
        held_by=raw.get("held_by"),
        due_at=_seconds(raw, "due_at"),
        released_at=_seconds(raw, "released_at"),
        submitting=raw.get("submitting") == "1",
        timed_out_s=_seconds(raw, "timed_out_s"),
        agent=raw.get("agent"),
        locality=raw.get("locality") or None,
        fence=Fence(epoch=epoch, nonce=nonce) if epoch else None,
        image=raw.get("image"),
        image_digest=raw.get("image_digest"),
        handle=raw.get("handle"),
        note=raw.get("note"),
        stop=StopRequest.model_validate_json(raw["stop"]) if "stop" in raw else None,
        cause=Cause.model_validate_json(raw["cause"]) if "cause" in raw else None,
        tracked=raw.get("tracked") == "1",
        config=json.loads(raw.get("config", "{}")),
        summary=json.loads(raw.get("summary", "{}")),
        log_cursor=raw.get("log_cursor"),
        log_bytes=int(raw.get("log_bytes", 0)),
        log_archive=raw.get("log_archive"),
        created_at=float(raw["created_at"]),
        claimed_at=_seconds(raw, "claimed_at"),
        started_at=_seconds(raw, "started_at"),
        ended_at=_seconds(raw, "ended_at"),
    )


def _seconds(raw: Mapping[str, str], field: str) -> float | None:
    return float(raw[field]) if field in raw else None


_NOT_SAID = frozenset({"unbroken_since", "wished_max_jobs", "wished_drain"})


def agent_from_hash(agent: str, raw: Mapping[str, str], beat: float, *, is_alive: bool) -> AgentRecord:
    """Return the agent that a hash of JSON values holds."""
    said: dict[str, Any] = {name: json.loads(value) for name, value in raw.items() if name not in _NOT_SAID}
    return AgentRecord(
        id=agent,
        name=said["name"],
        host=said["host"],
        pid=said["pid"],
        version=said["version"],
        queues=tuple(said["queues"]),
        localities=tuple(said["localities"]),
        max_jobs=said["max_jobs"],
        runs=tuple(said["runs"]),
        state=said["state"],
        problems=tuple(said["problems"]),
        started_at=said["started_at"],
        heartbeat_at=beat,
        is_alive=is_alive,
        tracking_url=said.get("tracking_url"),
        outdated=tuple(said.get("outdated", ())),
    )
