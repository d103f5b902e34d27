"""The record of every queue, run and agent, in Redis: the truth that messages only point at.

Each change is one Lua script (``launch/scripts``), so that a process may die between any two lines here and leave
nothing half done. A write on a claimed run names its :class:`~launch.models.Fence`; when the claim has passed to
another agent it is refused with :class:`~launch.errors.LostClaimError`. Every call may be repeated: the answer to the
first may have been lost.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from launch.broker import encode_bell, message_lists
from launch.connection import LaunchRedis, connect
from launch.errors import ConflictError, LaunchError, LostClaimError, NotFoundError
from launch.models import (
    LEGAL_MOVES,
    Cause,
    CauseKind,
    Fence,
    LaunchSpec,
    QueueSpec,
    RunRecord,
    RunState,
    did_you_mean,
)
from launch.records import AgentRecord, LogEntry, QueueCounts, RunEvent, agent_from_hash, run_from_hash, spec_to_json

P = "launch:"
WAKE_CHANNEL = f"{P}wake"
_SETS = ("waiting", "held", "delayed", "active")
_BATCH = 500
_SERVER_TTL_S = 10


@dataclass(frozen=True)
class Claimed:
    """The agent owns the run now."""

    record: RunRecord
    fence: Fence


@dataclass(frozen=True)
class Blocked:
    """The queue gives out no run just now."""

    reason: Literal["paused", "limit"]


class RunStore:
    """Queues, runs and agents in one Redis."""

    def __init__(self, redis: LaunchRedis) -> None:
        # redis-py types every answer as bytes, str or a promise of either; this connection always gives strings.
        self.redis: Any = redis
        self._scripts: dict[str, Any] = {}

    @classmethod
    def connect(cls, url: str, *, timeout_s: float = 5.0) -> RunStore:
        """Return the store in the Redis at a broker URL.

        Raises:
            TemporaryError: nothing answers there.
        """
        return cls(connect(url, timeout_s=timeout_s))

    def _run(self, script: str, *args: Any) -> Any:
        registered = self._scripts.get(script)
        if registered is None:
            registered = self._scripts[script] = self.redis.register_script(_source(script))
        return registered(args=args)

    def installation(self) -> str:
        """Return eight hex digits, made once, that tell this installation's things at a target from another's."""
        self.redis.set(f"{P}installation", secrets.token_hex(4), nx=True)
        return str(self.redis.get(f"{P}installation"))

    def now(self) -> float:
        """Return Redis' time in Unix seconds: the only clock that counts."""
        seconds, micros = self.redis.time()
        return float(seconds + micros / 1e6)

    # --- queues ------------------------------------------------------------------------------------------------------

    def create_queue(self, spec: QueueSpec) -> QueueSpec:
        """Make a queue; making the same one again changes nothing.

        Raises:
            ConflictError: there is one of that name with other settings.
        """
        if self._run("create_queue", spec.name, spec.model_dump_json(exclude={"paused"}), *_queue_fields(spec)) == "OK":
            return spec
        existing = self.queue(spec.name)
        if existing.model_copy(update={"paused": spec.paused}) != spec:
            raise ConflictError(f"queue {spec.name!r} exists with other settings; see `launch queue show {spec.name}`")
        return existing

    def queue(self, name: str) -> QueueSpec:
        """Return a queue's settings.

        Raises:
            NotFoundError: there is none of that name; the message lists those there are.
        """
        raw = self.redis.hmget(f"{P}queue:{name}", "spec", "paused")
        if raw[0] is None:
            known = sorted(self.redis.smembers(f"{P}queues"))
            hint = did_you_mean(name, known) or "; there are none yet: `launch queue create NAME --resource process`"
            raise NotFoundError(f"no queue {name!r}{hint}")
        return QueueSpec.model_validate_json(raw[0]).model_copy(update={"paused": raw[1] == "1"})

    def queues(self) -> list[QueueSpec]:
        """Return all queues, by name."""
        names = sorted(self.redis.smembers(f"{P}queues"))
        with self.redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hmget(f"{P}queue:{name}", "spec", "paused")
            found = pipe.execute()
        return [
            QueueSpec.model_validate_json(spec).model_copy(update={"paused": paused == "1"})
            for spec, paused in found
            if spec
        ]

    def queue_config(self, name: str, version: int) -> dict[str, Any]:
        """Return the resource config a queue had at a version.

        Raises:
            NotFoundError: it never had that version.
        """
        raw = self.redis.hget(f"{P}queue:{name}", f"config:{version}")
        if raw is None:
            raise NotFoundError(f"queue {name!r} has no config version {version}")
        return dict(json.loads(raw))

    def set_paused(self, name: str, paused: bool) -> None:
        """Let a queue give out no more runs, or let it again.

        Raises:
            NotFoundError: there is none of that name.
        """
        self.queue(name)
        self.redis.hset(f"{P}queue:{name}", "paused", "1" if paused else "0")
        self.redis.publish(WAKE_CHANNEL, f"queue {name}")

    def counts(self, names: Iterable[str]) -> dict[str, QueueCounts]:
        """Return ``{queue: QueueCounts}``."""
        names = list(names)
        with self.redis.pipeline(transaction=False) as pipe:
            for name in names:
                for kind in _SETS:
                    pipe.zcard(f"{P}queue:{name}:{kind}")
            sizes = pipe.execute()
        return {name: QueueCounts(*sizes[i * 4 : i * 4 + 4]) for i, name in enumerate(names)}

    # --- producers ---------------------------------------------------------------------------------------------------

    def enqueue(self, spec: LaunchSpec) -> RunRecord:
        """Record a run, give it the last place of its class and ring for it. See :meth:`enqueue_many`."""
        return self.enqueue_many([spec])[0]

    def enqueue_many(self, specs: Sequence[LaunchSpec], *, ring: bool = True) -> list[RunRecord]:
        """Record runs in order, each all or nothing. The same id and spec again returns the run there is.

        Args:
            specs: frozen launches, any queues.
            ring: false when the caller already holds a message for each.

        Raises:
            ConflictError: an id is taken by another launch; the others are recorded.
            NotFoundError: a queue is not there.
        """
        answers: list[str] = []
        for start in range(0, len(specs), _BATCH):
            batch = specs[start : start + _BATCH]
            args: list[Any] = []
            for spec in batch:
                text = spec_to_json(spec)
                bell = encode_bell(spec, text) if ring else ""
                args += [spec.run_id, text, bell, int(spec.priority), spec.queue, spec.queue_version]
            answers += self._run("enqueue", len(batch), *args)
        for spec, answer in zip(specs, answers, strict=True):
            if answer == "CONFLICT":
                raise ConflictError(f"run id {spec.run_id!r} is taken by another launch; choose another id, or none")
            if answer == "NOQUEUE":
                self.queue(spec.queue)
            if answer == "STALE":
                raise ConflictError(f"queue {spec.queue!r} was changed at this moment; enqueue again")
        return self.records([spec.run_id for spec in specs])

    def request_stop(self, run_id: str, *, by: str, grace_s: float) -> RunRecord:
        """End a queued run at once, or ask for a claimed one to be stopped. Returns the run as it then is.

        Raises:
            NotFoundError: there is no such run.
        """
        cause = Cause(kind=CauseKind.STOPPED, message=f"Stopped by {by} before it started.")
        if self._run("request_stop", run_id, by, grace_s, cause.model_dump_json(), cause.message) == "GONE":
            raise _no_run(run_id)
        return self.record(run_id)

    # --- readers -----------------------------------------------------------------------------------------------------

    def record(self, run_id: str) -> RunRecord:
        """Return a run.

        Raises:
            NotFoundError: there is no such run.
        """
        found = self.records([run_id])
        if not found:
            raise _no_run(run_id)
        return found[0]

    def records(self, run_ids: Sequence[str]) -> list[RunRecord]:
        """Return the runs that exist among the ids, in their order."""
        with self.redis.pipeline(transaction=False) as pipe:
            for run_id in run_ids:
                pipe.hgetall(f"{P}run:{run_id}")
            found = pipe.execute()
        return [run_from_hash(raw) for raw in found if raw]

    def runs(
        self, *, queue: str | None = None, states: Iterable[RunState] | None = None, limit: int = 50
    ) -> list[RunRecord]:
        """Return the runs enqueued last, newest first."""
        wanted = frozenset(states) if states is not None else frozenset(RunState)
        names = [queue] if queue is not None else sorted(self.redis.smembers(f"{P}queues"))
        sets = _sets_holding(wanted)
        with self.redis.pipeline(transaction=False) as pipe:
            for name in names:
                for kind in sets:
                    # Active runs are few, and their order is that of the claim, so all are looked at.
                    pipe.zrange(f"{P}queue:{name}:{kind}", 0, -1 if kind == "active" else limit - 1, desc=True)
            pages = pipe.execute()
        records = [run for run in self.records([run_id for page in pages for run_id in page]) if run.state in wanted]
        return sorted(records, key=lambda run: -run.seq)[:limit]

    def position(self, run_id: str) -> int | None:
        """Return a waiting run's place in its queue, 1 for the next; none if it does not wait."""
        queue = self.redis.hget(f"{P}run:{run_id}", "queue")
        rank = self.redis.zrank(f"{P}queue:{queue}:waiting", run_id) if queue else None
        return None if rank is None else int(rank) + 1

    def read_log(self, run_id: str, after: str = "0", limit: int = 500) -> list[LogEntry]:
        """Return what Redis holds of a run's log after an entry, oldest first."""
        found = self.redis.xrange(f"{P}run:{run_id}:log", min=f"({after}" if after != "0" else "-", count=limit)
        return [LogEntry(id, fields["s"], fields["t"]) for id, fields in found]

    def read_history(self, run_id: str, after: str = "0", limit: int = 1000) -> list[tuple[str, dict[str, Any]]]:
        """Return ``[(entry id, row)]`` of what the script logged after an entry, oldest first."""
        found = self.redis.xrange(f"{P}run:{run_id}:history", min=f"({after}" if after != "0" else "-", count=limit)
        return [(id, json.loads(fields["r"])) for id, fields in found]

    def read_events(self, run_id: str, after: str = "0") -> list[RunEvent]:
        """Return a run's life after an entry, oldest first."""
        found = self.redis.xrange(f"{P}run:{run_id}:events", min=f"({after}" if after != "0" else "-")
        return [
            RunEvent(id, float(raw["at"]), RunState(raw["state"]), int(raw["attempt"]), raw["note"])
            for id, raw in found
        ]

    def wait_for_news(
        self,
        run_id: str,
        *,
        log: str | None = None,
        history: str | None = None,
        events: str | None = None,
        timeout_s: float,
    ) -> bool:
        """Wait until one of a run's streams has something after the given entry.

        Args:
            run_id: the run.
            log: the last log entry seen; ``"0"`` for none yet, ``None`` to leave the log out. Likewise the others.
            history: the last row seen.
            events: the last event seen.
            timeout_s: how long at most; bounded by the connection's own timeout.

        Returns:
            Whether there is something.
        """
        seen = {"log": log, "history": history, "events": events}
        streams = {f"{P}run:{run_id}:{name}": entry for name, entry in seen.items() if entry is not None}
        socket_timeout = self.redis.connection_pool.connection_kwargs.get("socket_timeout") or 60.0
        block_s = max(0.01, min(timeout_s, socket_timeout - 1.0))
        return bool(self.redis.xread(streams, count=1, block=int(block_s * 1000)))

    # --- a claimed run: every write names its fence -------------------------------------------------------------------

    def claim(self, queue: str, agent: str, *, locality: str = "") -> Claimed | Blocked | None:
        """Give the head of a queue to an agent; none when nobody waits."""
        nonce = secrets.token_hex(8)
        answer = self._run("claim", queue, agent, locality, nonce)
        if answer[0] == "RUN":
            return self._claimed(answer[1], nonce)
        return Blocked(answer[1]) if answer[0] == "BLOCKED" else None

    def adopt(self, record: RunRecord, agent: str, *, locality: str, dead_after_s: float) -> Claimed | None:
        """Give a run without a living owner to an agent; none when it may not have it (now)."""
        nonce = secrets.token_hex(8)
        epoch = record.fence.epoch if record.fence else 0
        if self._run("adopt", record.id, agent, locality, nonce, epoch, dead_after_s) != "OK":
            return None
        return self._claimed(record.id, nonce)

    def _claimed(self, run_id: str, nonce: str) -> Claimed | None:
        record = self.record(run_id)
        if record.fence is None or record.fence.nonce != nonce:
            return None
        return Claimed(record, record.fence)

    def advance(
        self, run_id: str, fence: Fence, to: RunState | None = None, *, note: str = "", **fields: str | None
    ) -> None:
        """Move a claimed run to a state and set fields of its record (``None`` deletes one).

        Raises:
            LostClaimError: the claim is another's.
            LaunchError: the state cannot follow the one it is in.
        """
        flat = [item for name, value in fields.items() for item in (name, value or "")]
        self._fenced("advance", run_id, fence, to or "", _comes_from(to), note, *flat)

    def finish(
        self, run_id: str, fence: Fence, state: RunState, cause: Cause, *, log_archive: str | None = None
    ) -> None:
        """End a claimed run. Raises LostClaimError when the claim is another's."""
        assert state.is_final
        self._fenced("finish", run_id, fence, state, cause.model_dump_json(), cause.message, log_archive or "")

    def unclaim(self, record: RunRecord, fence: Fence, *, note: str, counts: bool) -> None:
        """Put a claimed run back to its old place; ``counts`` says whether the attempt was used up."""
        bell = encode_bell(record.spec, spec_to_json(record.spec))
        self._fenced("unclaim", record.id, fence, bell, note, int(counts))

    def release(self, run_id: str, fence: Fence) -> None:
        """Let go of a run that stays as it is, for the next agent to adopt at once."""
        self._fenced("release", run_id, fence)

    def append_log(
        self,
        run_id: str,
        fence: Fence,
        chunks: Sequence[tuple[str, str]],
        *,
        cursor: str | None,
        bytes_before: int,
        bytes_after: int,
        cap_chars: int,
    ) -> None:
        """Add ``[(stream, text)]`` to a job's log, with the target's cursor and the full log's length behind it.

        ``bytes_before`` is the length the caller last wrote: a call repeated after a lost answer adds nothing.
        """
        flat = [item for chunk in chunks for item in chunk]
        self._fenced("append_log", run_id, fence, cursor or "", bytes_before, bytes_after, cap_chars, *flat)

    def _fenced(self, script: str, run_id: str, fence: Fence, *args: Any) -> None:
        answer = self._run(script, run_id, fence.epoch, fence.nonce, *args)
        if answer in ("LOST", "ENDED"):
            raise LostClaimError(f"run {run_id}: the claim of epoch {fence.epoch} is no longer the run's")
        if answer != "OK":
            raise LaunchError(f"run {run_id}: {script} refused: {answer}")

    def owners(self, queue: str) -> dict[str, str | None]:
        """Return ``{run id: agent}`` of a queue's claimed runs, the longest claimed first; none: nobody's."""
        run_ids = self.redis.zrange(f"{P}queue:{queue}:active", 0, -1)
        with self.redis.pipeline(transaction=False) as pipe:
            for run_id in run_ids:
                pipe.hget(f"{P}run:{run_id}", "agent")
            return dict(zip(run_ids, pipe.execute(), strict=True))

    def stops(self, run_ids: Sequence[str]) -> dict[str, float]:
        """Return ``{run id: grace in seconds}`` of those among the runs that somebody wants stopped."""
        with self.redis.pipeline(transaction=False) as pipe:
            for run_id in run_ids:
                pipe.hget(f"{P}run:{run_id}", "stop")
            found = pipe.execute()
        return {run_id: float(json.loads(stop)["grace_s"]) for run_id, stop in zip(run_ids, found, strict=True) if stop}

    # --- messages and waiting runs, compared -------------------------------------------------------------------------

    def messages(self, queue: str) -> tuple[int, int]:
        """Return how many messages a queue's lists hold, and how many runs wait: the same, but for a moment."""
        with self.redis.pipeline(transaction=True) as pipe:
            for name in message_lists(queue):
                pipe.llen(name)
            pipe.zcard(f"{P}queue:{queue}:waiting")
            *lengths, waiting = pipe.execute()
        return sum(lengths), waiting

    def ring_missing(self, queue: str) -> int:
        """Add the messages a queue is short of; returns how many."""
        messages, waiting = self.messages(queue)
        if messages >= waiting:
            return 0
        # Whose messages they are does not matter: receiving one means claiming the head.
        heads = self.redis.zrange(f"{P}queue:{queue}:waiting", 0, min(waiting - messages, _BATCH) - 1)
        bells = [encode_bell(run.spec, spec_to_json(run.spec)) for run in self.records(heads)]
        return int(self._run("ring", queue, *bells))

    def peek(self, queue: str, limit: int = 20_000) -> Iterator[tuple[str, str]]:
        """Yield ``(list, message)`` of what waits in a queue's lists, the next to be received first."""
        for name in message_lists(queue):
            for start in range(1, limit + 1, _BATCH):
                page = self.redis.lrange(name, -(start + _BATCH - 1), -start)
                yield from ((name, message) for message in reversed(page))
                if len(page) < _BATCH:
                    break

    def take_message(self, name: str, message: str) -> bool:
        """Remove one message from a list; false when it is no longer there."""
        return bool(self.redis.lrem(name, -1, message))

    def waiting_among(self, queue: str, run_ids: Sequence[str]) -> set[str]:
        """Return those of the runs that wait in the queue."""
        with self.redis.pipeline(transaction=False) as pipe:
            for run_id in run_ids:
                pipe.zscore(f"{P}queue:{queue}:waiting", run_id)
            return {run_id for run_id, score in zip(run_ids, pipe.execute(), strict=True) if score is not None}

    def refuse(self, spec: LaunchSpec, cause: Cause) -> None:
        """Record a request that is no valid launch as a failed run, so that its sender can see why."""
        self._run("refuse", spec.run_id, spec_to_json(spec), spec.queue, cause.model_dump_json(), cause.message)

    def gives_out(self, queue: str) -> bool:
        """Return whether a claim would not be blocked now."""
        paused, limit = self.redis.hmget(f"{P}queue:{queue}", "paused", "max_concurrent")
        return paused != "1" and (limit is None or self.redis.zcard(f"{P}queue:{queue}:active") < int(limit))

    def subscribe(self) -> Any:
        """Return a subscription to the wake channel: ``stop <run>``, ``queue <name>``, ``orphan <run>``."""
        pubsub = self.redis.pubsub()
        pubsub.subscribe(WAKE_CHANNEL)
        return pubsub

    @contextmanager
    def turn(self, duty: str, agent: str, for_s: float) -> Iterator[bool]:
        """Give one agent at a time the turn at a duty, for so long at most: yields whether it is this one's."""
        key = f"{P}turn:{duty}"
        mine = bool(self.redis.set(key, agent, nx=True, px=int(for_s * 1000)))
        try:
            yield mine
        finally:
            if mine and self.redis.get(key) == agent:
                self.redis.delete(key)

    # --- agents and the server ---------------------------------------------------------------------------------------

    def heartbeat(self, agent: str, fields: Mapping[str, Any], *, gap_s: float) -> None:
        """Say that an agent lives. A longer gap than ``gap_s`` between two makes it wait before it adopts again."""
        flat = [item for name, value in fields.items() for item in (name, json.dumps(value))]
        self._run("heartbeat", agent, gap_s, *flat)

    def forget_agent(self, agent: str) -> None:
        """Take an agent that went of its own will off the list."""
        self.redis.zrem(f"{P}agents", agent)
        self.redis.delete(f"{P}agent:{agent}")

    def living(self, *, dead_after_s: float) -> set[str]:
        """Return the agents that have been seen within so many seconds."""
        return set(self.redis.zrange(f"{P}agents", self.now() - dead_after_s, "+inf", byscore=True))

    def agents(self, *, dead_after_s: float = 10.0) -> list[AgentRecord]:
        """Return the agents that have been seen, the living first, then by name."""
        beats = self.redis.zrange(f"{P}agents", 0, -1, withscores=True)
        with self.redis.pipeline(transaction=False) as pipe:
            for agent, _ in beats:
                pipe.hgetall(f"{P}agent:{agent}")
            hashes = pipe.execute()
        now = self.now()
        found = [
            agent_from_hash(agent, raw, beat, is_alive=now - beat < dead_after_s)
            for (agent, beat), raw in zip(beats, hashes, strict=True)
            if raw.get("name")
        ]
        return sorted(found, key=lambda agent: (not agent.is_alive, agent.name, -agent.heartbeat_at))

    def announce_server(self, urls: Sequence[str]) -> None:
        """Say where the tracking server listens; to be said again every three seconds."""
        self.redis.set(f"{P}server", json.dumps(list(urls)), ex=_SERVER_TTL_S)

    def withdraw_server(self) -> None:
        """Say that the tracking server ends."""
        self.redis.delete(f"{P}server")

    def server_urls(self) -> list[str]:
        """Return where the tracking server listens; empty when none is up."""
        raw = self.redis.get(f"{P}server")
        return list(json.loads(raw)) if raw else []


@cache
def _source(script: str) -> str:
    folder = files("launch").joinpath("scripts")
    return "\n".join(folder.joinpath(f"{name}.lua").read_text() for name in ("prelude", script))


def _queue_fields(spec: QueueSpec) -> list[Any]:
    fields = {
        "version": spec.version,
        f"config:{spec.version}": json.dumps(spec.config, sort_keys=True),
        "paused": int(spec.paused),
    }
    if spec.max_concurrent is not None:
        fields["max_concurrent"] = spec.max_concurrent
    return [item for pair in fields.items() for item in pair]


def _sets_holding(states: frozenset[RunState]) -> list[str]:
    sets = []
    if RunState.QUEUED in states:
        sets += ["waiting", "held", "delayed"]
    if any(state.is_claimed for state in states):
        sets.append("active")
    if any(state.is_final for state in states):
        sets.append("finished")
    return sets


def _comes_from(state: RunState | None) -> str:
    return " ".join(before for before, after in LEGAL_MOVES.items() if state in after)


def _no_run(run_id: str) -> NotFoundError:
    return NotFoundError(f"no run {run_id!r}; `launch runs` lists them")
