"""Runs as anybody may read them: records, places, logs, history, events."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from launch.errors import NotFoundError
from launch.models import RunRecord, RunState
from launch.records import LogEntry, RunEvent, run_from_hash
from launch.scripted import P, Scripted


class RunReader(Scripted):
    """Reads runs; a part of :class:`launch.store.RunStore`."""

    def record(self, run_id: str) -> RunRecord:
        """Return a run.

        Raises:
            NotFoundError: there is no such run.
        """
        found = self.records([run_id])
        if not found:
            raise no_run(run_id)
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
