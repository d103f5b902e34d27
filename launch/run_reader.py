"""Runs as anybody may read them: records, places, logs, history, events."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, TypeVar

from launch.errors import NewerVersionError, NotFoundError
from launch.models import LaunchSpec, RunRecord, RunState
from launch.records import LogEntry, RunEvent, run_from_hash, spec_from_json
from launch.scripted import P, Scripted

log = logging.getLogger(__name__)

R = TypeVar("R")
T = TypeVar("T")

_PAGE = 500


class RunReader(Scripted):
    """Reads runs; a part of :class:`launch.store.RunStore`."""

    def record(self, run_id: str) -> RunRecord:
        """Return a run.

        Raises:
            NotFoundError: there is no such run.
            NewerVersionError: a later version of openlaunch wrote it.
        """
        found = self._hashes([run_id])
        if not found:
            raise no_run(run_id)
        return run_from_hash(found[0])

    def records(self, run_ids: Sequence[str]) -> list[RunRecord]:
        """Return the runs that exist among the ids, in their order.

        Those that a later version of openlaunch wrote are left out, and a warning says so once.
        """
        return list(_understood(run_from_hash, self._hashes(run_ids)))

    def _hashes(self, run_ids: Sequence[str]) -> list[dict[str, str]]:
        with self.redis.pipeline(transaction=False) as pipe:
            for run_id in run_ids:
                pipe.hgetall(f"{P}run:{run_id}")
            self.meter.hand_on(pipe)
            found = pipe.execute_first(len(run_ids))
        return [raw for raw in found if raw]

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

    def places(self, queue: str, run_ids: Sequence[str]) -> dict[str, int]:
        """Return ``{run id: place}``, 1 for the next, of those of the runs that wait in the queue."""
        with self.redis.pipeline(transaction=False) as pipe:
            for run_id in run_ids:
                pipe.zrank(f"{P}queue:{queue}:waiting", run_id)
            ranks = pipe.execute()
        return {run_id: int(rank) + 1 for run_id, rank in zip(run_ids, ranks, strict=True) if rank is not None}

    def ids(self, queue: str, kind: Literal["waiting", "held", "delayed", "active"], limit: int = 0) -> list[str]:
        """Return the ids of a queue's runs of one kind, in its order; 0: all of them."""
        return list(self.redis.zrange(f"{P}queue:{queue}:{kind}", 0, limit - 1))

    def launches(self, run_ids: Sequence[str]) -> dict[str, LaunchSpec]:
        """Return ``{run id: its launch}`` of the runs that exist: much less to read than their records."""
        with self.redis.pipeline(transaction=False) as pipe:
            for run_id in run_ids:
                pipe.hget(f"{P}run:{run_id}", "spec")
            found = pipe.execute()
        return {spec.run_id: spec for spec in _understood(spec_from_json, (text for text in found if text))}

    def finished_seconds(self, queue: str, limit: int = 300) -> list[tuple[LaunchSpec, float]]:
        """Return ``[(launch, seconds)]`` of a queue's runs that finished last, claim to end, the newest first."""
        run_ids = self.redis.zrange(f"{P}queue:{queue}:finished", 0, limit - 1, desc=True)
        with self.redis.pipeline(transaction=False) as pipe:
            for run_id in run_ids:
                pipe.hmget(f"{P}run:{run_id}", "state", "spec", "claimed_at", "ended_at")
            found = pipe.execute()
        return [
            (spec, float(ended_at) - float(claimed_at))
            for state, text, claimed_at, ended_at in found
            if state == RunState.FINISHED and claimed_at is not None
            for spec in _understood(spec_from_json, [text])
        ]

    def ended_since(self, queue: str, since: float) -> Iterator[RunRecord]:
        """Yield a queue's runs that ended at or after a time, the oldest first."""
        run_ids = self.redis.zrange(f"{P}queue:{queue}:finished", since, "+inf", byscore=True)
        for start in range(0, len(run_ids), _PAGE):
            yield from self.records(run_ids[start : start + _PAGE])

    def last_failures(self, queues: Sequence[str], limit: int) -> list[RunRecord]:
        """Return the runs that failed or crashed last, newest first, among the last 100 that ended in each queue."""
        with self.redis.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.zrange(f"{P}queue:{queue}:finished", 0, 99, desc=True, withscores=True)
            ended = [item for page in pipe.execute() for item in page]
        ended.sort(key=lambda item: -item[1])
        with self.redis.pipeline(transaction=False) as pipe:
            for run_id, _ in ended:
                pipe.hget(f"{P}run:{run_id}", "state")
            states = pipe.execute()
        wanted = (RunState.FAILED, RunState.CRASHED)
        failed = [run_id for (run_id, _), state in zip(ended, states, strict=True) if state in wanted]
        return self.records(failed[:limit])

    def known(self, run_ids: Sequence[str]) -> set[str]:
        """Return those of the ids that are a run's, in Redis or in the archive."""
        with self.redis.pipeline(transaction=False) as pipe:
            for run_id in run_ids:
                pipe.exists(f"{P}run:{run_id}")
                pipe.hexists(f"{P}archive", run_id)
            found = pipe.execute()
        return {run_id for place, run_id in enumerate(run_ids) if any(found[2 * place : 2 * place + 2])}

    def read_log(self, run_id: str, after: str = "0", limit: int = 500) -> list[LogEntry]:
        """Return what Redis holds of a run's log after an entry, oldest first."""
        found = self.redis.xrange(f"{P}run:{run_id}:log", min=f"({after}" if after != "0" else "-", count=limit)
        return [LogEntry(id, fields["s"], fields["t"]) for id, fields in found]

    def whole_log(self, run_id: str, *, stream: str) -> list[LogEntry]:
        """Return all that Redis holds of one stream of a run's log."""
        entries: list[LogEntry] = []
        after = "0"
        while page := self.read_log(run_id, after):
            entries += [entry for entry in page if entry.stream == stream]
            after = page[-1].id
        return entries

    def newest_log(self, run_id: str, count: int = 50) -> list[LogEntry]:
        """Return the last entries of a run's log, oldest first."""
        found = self.redis.xrevrange(f"{P}run:{run_id}:log", count=count)
        return [LogEntry(id, fields["s"], fields["t"]) for id, fields in reversed(found)]

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
        return self._wait(
            {f"{P}run:{run_id}:{name}": entry for name, entry in seen.items() if entry is not None}, timeout_s
        )

    def wait_for_events(self, seen: Mapping[str, str], *, timeout_s: float) -> bool:
        """Wait until something happens to one of several runs; returns whether it has.

        Args:
            seen: ``{run id: the last event seen}``, ``"0"`` for none yet.
            timeout_s: how long at most; bounded by the connection's own timeout.
        """
        return self._wait({f"{P}run:{run_id}:events": entry for run_id, entry in seen.items()}, timeout_s)

    def _wait(self, streams: Mapping[str, str], timeout_s: float) -> bool:
        socket_timeout = self.redis.connection_pool.connection_kwargs.get("socket_timeout") or 60.0
        block_s = max(0.01, min(timeout_s, socket_timeout - 1.0))
        return bool(self.redis.xread(streams, count=1, block=int(block_s * 1000)))


def _understood(read: Callable[[R], T], raw: Iterable[R]) -> Iterator[T]:
    """Yield what can be read; what a later version wrote is left alone, whoever asks for many."""
    for one in raw:
        try:
            yield read(one)
        except NewerVersionError as exc:
            _warn_once(str(exc))


@lru_cache(maxsize=1000)
def _warn_once(message: str) -> None:
    log.warning(message)


def _sets_holding(states: frozenset[RunState]) -> list[str]:
    sets = []
    if RunState.QUEUED in states:
        sets += ["waiting", "held", "delayed"]
    if any(state.is_claimed for state in states):
        sets.append("active")
    if any(state.is_final for state in states):
        sets.append("finished")
    return sets


def no_run(run_id: str) -> NotFoundError:
    """Return the error that there is no such run."""
    return NotFoundError(f"no run {run_id!r}; `launch runs` lists them")
